"""CONTRIBUTING.md leads to files and functions that exist."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
GUIDE = (ROOT / "CONTRIBUTING.md").read_text()
PATHS = sorted(set(re.findall(r"`((?:sb3_hybrid_grpo|tests|benchmarks|docs)/[\w/.]+)`", GUIDE)) - {"docs/_build/html"})


@pytest.mark.parametrize("path", PATHS)
def test_paths_exist(path):
    assert (ROOT / path).exists() or "NAME" in path


def test_functions_are_where_the_table_says():
    rows = re.findall(r"^\| .+ \| `(sb3_hybrid_grpo/[\w/]+\.py)`((?:, `\w+`)+)", GUIDE, flags=re.MULTILINE)
    assert len(rows) >= 3
    for path, names in rows:
        for name in re.findall(r"`(\w+)`", names):
            assert re.search(rf"^(def )?{name}\b", (ROOT / path).read_text(), flags=re.MULTILINE), (path, name)
