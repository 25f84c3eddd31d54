"""The pages that people read: README, CONTRIBUTING and the documentation."""

from pathlib import Path

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"


def read(paths):
    return {path.relative_to(ROOT).with_suffix("").as_posix(): path.read_text(encoding="utf-8") for path in paths}


PAGES = read([ROOT / "README.md", *sorted(path for path in DOCS.rglob("*.md") if "_build" not in path.parts)])
"""Text by path without suffix, the README first."""
