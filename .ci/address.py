"""
Write the repository's address where it has to stand: ``python .ci/address.py OWNER/NAME``.

That is the project's links in pyproject.toml, and the badges with which notebooks open in Colab.
"""

import json
import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
_BADGE = "https://colab.research.google.com/assets/colab-badge.svg"


def write_address(repository: str, root: Path = ROOT) -> None:
    """
    Write it.

    :param repository: owner and name, as in "owner/name"
    :param root: the checkout
    """
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", repository):
        raise SystemExit(f"{repository!r} is not of the form owner/name")
    url = f"https://github.com/{repository}"
    pages = {
        "Repository": url,
        "Documentation": f"{url}/tree/main/docs",
        "Changelog": f"{url}/blob/main/CHANGELOG.md",
        "Issues": f"{url}/issues",
        "Paper": "https://arxiv.org/abs/2502.01652",
    }
    project = root / "pyproject.toml"
    section = "[project.urls]\n" + "".join(f'{name} = "{page}"\n' for name, page in pages.items())
    text = re.sub(r"^\[project\.urls\]\n(?:\w+ = .*\n)+", section, project.read_text(encoding="utf-8"), flags=re.MULTILINE)
    project.write_text(text, encoding="utf-8")
    for path in sorted((root / "examples").glob("*.ipynb")):
        _write_badge(path, f"https://colab.research.google.com/github/{repository}/blob/main/examples/{path.name}")


def _write_badge(path: Path, target: str) -> None:
    notebook = json.loads(path.read_text(encoding="utf-8"))
    title = notebook["cells"][0]["source"]
    has_badge = len(title) > 2 and _BADGE in title[2]
    title[1:] = ["\n", f"[![Open in Colab]({_BADGE})]({target})\n", *title[3 if has_badge else 1 :]]
    path.write_text(json.dumps(notebook, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    if len(sys.argv) != 2:
        raise SystemExit(__doc__)
    write_address(sys.argv[1])
