"""What is released: its version, its contents, and where its links lead."""

import json
import re
import runpy
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import sb3_hybrid_grpo

ROOT = Path(__file__).parents[1]
RELEASE = runpy.run_path(str(ROOT / ".ci" / "release.py"))
ADDRESS = runpy.run_path(str(ROOT / ".ci" / "address.py"))
PYPROJECT = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
PACKAGE = ROOT / "sb3_hybrid_grpo"


def test_version_is_the_same_everywhere():
    assert RELEASE["version"]() == sb3_hybrid_grpo.__version__
    assert f"\nversion: {sb3_hybrid_grpo.__version__}\n" in (ROOT / "CITATION.cff").read_text(encoding="utf-8")


def test_package_data_is_all_that_is_not_code():
    patterns = json.loads(re.search(r"^sb3_hybrid_grpo = (\[.*\])$", PYPROJECT, re.MULTILINE)[1])
    packed = {path.relative_to(ROOT).as_posix() for pattern in patterns for path in PACKAGE.glob(pattern)}
    files = {path for path in PACKAGE.rglob("*") if path.is_file() and "__pycache__" not in path.parts}
    assert {path.relative_to(ROOT).as_posix() for path in files if path.suffix != ".py"} == packed
    assert RELEASE["package_files"]() == {path.relative_to(ROOT).as_posix() for path in files}


def test_folders_with_code_are_packages():
    assert {path.parent for path in PACKAGE.rglob("*.py")} == {path.parent for path in PACKAGE.rglob("__init__.py")}


def test_classifiers_name_the_declared_pythons():
    oldest = int(re.search(r'^requires-python = ">=3\.(\d+)"$', PYPROJECT, re.MULTILINE)[1])
    declared = [int(minor) for minor in re.findall(r'"Programming Language :: Python :: 3\.(\d+)"', PYPROJECT)]
    assert declared == list(range(oldest, declared[-1] + 1))
    for workflow in ("ci", "release"):
        matrix = re.search(r"python: (\[.*\])", (ROOT / ".github" / "workflows" / f"{workflow}.yml").read_text())
        assert json.loads(matrix[1]) == [f"3.{minor}" for minor in declared]


def test_links_of_the_released_readme_lead_to_the_repository():
    text = "![figure](figures/a.png) [page](docs/page.md#part) [site](https://example.org) [here](#part)"
    assert RELEASE["with_absolute_links"](text, "https://host/owner/name", "v1.0.0") == (
        "![figure](https://host/owner/name/raw/v1.0.0/figures/a.png)"
        " [page](https://host/owner/name/blob/v1.0.0/docs/page.md#part) [site](https://example.org) [here](#part)"
    )


def test_address_is_written_where_it_has_to_stand(tmp_path):
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    shutil.copytree(ROOT / "examples", tmp_path / "examples")
    for repository in ("someone/else", "owner/name"):
        ADDRESS["write_address"](repository, tmp_path)
        assert f'\nRepository = "https://github.com/{repository}"\n' in (tmp_path / "pyproject.toml").read_text()
        for path in (tmp_path / "examples").glob("*.ipynb"):
            cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
            title = "".join(cells[0]["source"])
            target = f"https://colab.research.google.com/github/{repository}/blob/main/examples/{path.name}"
            assert re.findall(r"\]\((https://colab\.research\.google\.com/github/.*?)\)", title) == [target]
            before = json.loads((ROOT / "examples" / path.name).read_text(encoding="utf-8"))["cells"]
            assert cells[1:] == before[1:] and before[0]["source"][-1] == cells[0]["source"][-1]
    with pytest.raises(SystemExit, match="owner/name"):
        ADDRESS["write_address"]("https://github.com/owner/name", tmp_path)


def test_badges_lead_to_the_repository():
    address = RELEASE["repository_address"]().removeprefix("https://github.com/")
    for path in (ROOT / "examples").glob("*.ipynb"):
        badges = re.findall(r"colab\.research\.google\.com/github/(.*?)/blob/main/", path.read_text(encoding="utf-8"))
        assert badges == [address] * bool(address), path.name


def test_tags_of_other_states_are_refused(monkeypatch):
    check_tag = RELEASE["check_tag"]
    with pytest.raises(SystemExit, match=r"v0\.0\.1 is not of the package's version"):
        check_tag("v0.0.1", "owner/name")
    monkeypatch.setitem(check_tag.__globals__, "version", lambda: "9.9.9")
    with pytest.raises(SystemExit, match="changelog begins with"):
        check_tag("v9.9.9", "owner/name")


@pytest.mark.slow
def test_wheel_and_sdist_hold_the_package_and_nothing_else(tmp_path):
    pytest.importorskip("build")
    pytest.importorskip("twine")
    command = [sys.executable, ROOT / ".ci" / "release.py", "build", "--out", "made"]
    subprocess.run(command, cwd=tmp_path, check=True)
    assert sorted(path.name for path in (tmp_path / "made").iterdir()) == [
        f"sb3_hybrid_grpo-{sb3_hybrid_grpo.__version__}-py3-none-any.whl",
        f"sb3_hybrid_grpo-{sb3_hybrid_grpo.__version__}.tar.gz",
    ]
