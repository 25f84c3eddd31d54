"""Configuration of Sphinx."""

import inspect
import os
import re
from pathlib import Path
from typing import Any

from sphinx.application import Sphinx
from sphinx.util.typing import stringify_annotation

from sb3_hybrid_grpo import __version__

REPOSITORY = Path(__file__).parents[1]

project = "sb3-hybrid-grpo"
author = "sb3-hybrid-grpo contributors"
copyright = f"{author}, MIT license"
release = __version__
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.viewcode", "sphinx_copybutton"]
exclude_patterns = ["_build"]

html_theme = "furo"
html_title = f"sb3-hybrid-grpo {release}"
html_static_path = ["_static"]
html_css_files = ["figures.css"]

myst_heading_anchors = 3

autodoc_member_order = "bysource"
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented_params"
autodoc_typehints_format = "short"
autodoc_preserve_defaults = True
# Classes of other projects, whose sites a build must not depend on, and type variables.
nitpick_ignore_regex = [
    (r"py:.*", r"(stable_baselines3|sb3_contrib|gymnasium|gym|torch|th|numpy|np|npt|spaces)\..*"),
    (r"py:.*", r"(collections|typing|pathlib|io)\..*"),
    (r"py:class", r"BaseCallback|VecEnv|sb3_hybrid_grpo\..*\.(Self\w+|Mark|S|T)"),
]

INCLUDED = {
    REPOSITORY / "CHANGELOG.md": "changelog.md",
    REPOSITORY / "CODE_OF_CONDUCT.md": "code_of_conduct.md",
    REPOSITORY / "CONTRIBUTING.md": "contributing.md",
    REPOSITORY / "SECURITY.md": "security.md",
    REPOSITORY / "benchmarks" / "RESULTS.md": "results.md",
    REPOSITORY / "benchmarks" / "RESEARCH.md": "research.md",
}
"""Files that a page consists of, and that page."""


def turn_links(app: Sphinx, relative_path: Path, parent_docname: str, content: list[str]) -> None:
    """Make the links of an included file start from the page that includes it."""
    folder = (Path(app.srcdir) / relative_path).parent

    def turned(match: re.Match[str]) -> str:
        target = Path(os.path.normpath(folder / match["path"]))
        page = INCLUDED.get(target) or Path(os.path.relpath(target, app.srcdir)).as_posix()
        return f"]({page}{match['anchor'] or ''})"

    content[0] = re.sub(r"\]\((?P<path>[^)#:\s]+)(?P<anchor>#[^)]*)?\)", turned, content[0])


def take_types_of_constructor(app: Sphinx, what: str, name: str, obj: Any, *_: Any) -> None:
    """Describe arguments with the types that the constructor has for them; Sphinx prefers those of attributes."""
    if what == "class" and not issubclass(obj, str):
        parameters = inspect.signature(obj).parameters.values()
        app.env.current_document.autodoc_annotations[name] = {
            parameter.name: stringify_annotation(parameter.annotation, "smart")
            for parameter in parameters
            if parameter.annotation is not parameter.empty
        }


def setup(app: Sphinx) -> None:
    """Connect to Sphinx."""
    app.connect("autodoc-process-signature", take_types_of_constructor)
    app.connect("include-read", turn_links)
