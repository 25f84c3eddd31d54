"""
Build what is released and look at it; try it as users get it: no clone, nothing installed before.

``python .ci/release.py build [--out dist]`` makes the wheel and the sdist (extra ``release``).
``python .ci/release.py try WHEEL PYTHON...`` installs the wheel for each of these interpreters and runs the quickstart.
``python .ci/release.py tag v1.2.3 OWNER/NAME`` says whether the checkout is what that tag of that repository should be.
"""

import argparse
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = "sb3_hybrid_grpo"
WHEEL_LIMIT = 400_000
BESIDES = {"CHANGELOG.md", "CITATION.cff", "LICENSE", "MANIFEST.in", "README.md", "pyproject.toml", "setup.cfg"}
"""What the sdist holds besides the package."""

_MADE_BY_SETUPTOOLS = re.compile(rf"PKG-INFO|{PACKAGE}\.egg-info(/.*)?")
_MEANT = re.compile(r".*\.py|.*/py\.typed|.*/version\.txt|.*/hyperparams/[^/]*\.yml")
_WARNING = re.compile(r".*(warning|deprecat).*", re.IGNORECASE)


def build(out: Path) -> None:
    """
    Make the wheel and the sdist.

    :param out: folder for both
    :raises SystemExit: if that warns, or one of them holds too little or too much
    """
    # What is run here runs in the root.
    out = out.resolve()
    with tempfile.TemporaryDirectory() as folder:
        copy_sources(Path(folder))
        printed = _run("-m", "build", "--outdir", out, folder)
    # Names of files that are copied are no warnings.
    warned = [line for line in printed.splitlines() if _WARNING.fullmatch(line) and not re.match("(copying|adding) ", line)]
    _expect(not warned, "\n".join(warned))
    wheel, sdist = max(out.glob("*.whl")), max(out.glob("*.tar.gz"))
    _run("-m", "twine", "check", "--strict", wheel, sdist)
    look_at_wheel(wheel)
    look_at_sdist(sdist)


def copy_sources(folder: Path) -> None:
    """
    Copy what is released; the README's links lead to the repository, since its pages are not there where it is shown.

    :param folder: where to
    """
    for path in package_files() | BESIDES:
        target = folder / path
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / path, target)
    address = repository_address()
    if address:
        readme = folder / "README.md"
        readme.write_text(with_absolute_links(readme.read_text(encoding="utf-8"), address, f"v{version()}"), encoding="utf-8")


def version() -> str:
    """
    Read the version.

    :return: the package's version
    """
    return (ROOT / PACKAGE / "version.txt").read_text(encoding="utf-8").strip()


def repository_address() -> str:
    """
    Read where the repository is.

    :return: its address, empty as long as nobody has told (``.ci/address.py``)
    """
    found = re.search(r'^Repository = "(.*)"$', (ROOT / "pyproject.toml").read_text(encoding="utf-8"), re.MULTILINE)
    return found[1] if found else ""


def check_tag(tag: str, repository: str) -> None:
    """
    Compare the checkout with what a tag promises.

    :param tag: the tag
    :param repository: owner and name
    :raises SystemExit: if version, changelog or address are others
    """
    _expect(tag == f"v{version()}", f"the tag {tag} is not of the package's version, {version()}")
    headings = re.findall(r"^## (.+)$", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.MULTILINE)
    _expect(headings[0].startswith(version()), f"the changelog begins with {headings[0]!r}, and not with {version()}")
    expected = f"https://github.com/{repository}"
    _expect(repository_address() == expected, f"run `python .ci/address.py {repository}`, and commit what it writes")


def with_absolute_links(text: str, repository: str, tag: str) -> str:
    """
    Let the links of a page in the repository's root lead to the repository.

    :param text: the page
    :param repository: address of the repository
    :param tag: the released tag
    :return: the page for other places
    """
    text = re.sub(r"(!\[[^\]]*\]\()(?!https?:)([^)\s]+)\)", rf"\g<1>{repository}/raw/{tag}/\2)", text)
    return re.sub(r"(?<!!)(\[[^\]]*\]\()(?!https?:|#)([^)\s]+)\)", rf"\g<1>{repository}/blob/{tag}/\2)", text)


def look_at_wheel(path: Path) -> None:
    """
    Compare what a wheel holds with the package.

    :param path: the wheel
    :raises SystemExit: if they differ, or the wheel is too large
    """
    with zipfile.ZipFile(path) as wheel:
        names = {name for name in wheel.namelist() if not re.match(rf"{PACKAGE}-[^/]*\.dist-info/", name)}
    _expect_same(path, names, package_files())
    size = path.stat().st_size
    _expect(size <= WHEEL_LIMIT, f"{path.name} has {size:,} bytes and may have {WHEEL_LIMIT:,}")


def look_at_sdist(path: Path) -> None:
    """
    Compare what a sdist holds with the package and what belongs to it.

    :param path: the sdist
    :raises SystemExit: if they differ
    """
    with tarfile.open(path) as sdist:
        names = {member.name.partition("/")[2] for member in sdist.getmembers() if member.isfile()}
    _expect_same(path, {name for name in names if not _MADE_BY_SETUPTOOLS.fullmatch(name)}, package_files() | BESIDES)


def package_files() -> set[str]:
    """
    List what the package consists of.

    :return: paths from the root of the repository
    """
    paths = (path.relative_to(ROOT).as_posix() for path in (ROOT / PACKAGE).rglob("*") if path.is_file())
    return {path for path in paths if _MEANT.fullmatch(path)}


def try_wheel(wheel: Path, python: str) -> None:
    """
    Install a wheel into an empty environment and run what the quickstart says, in a folder without a clone.

    :param wheel: the wheel
    :param python: an interpreter
    """
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    ten_lines = re.search(r"<!-- ten lines -->\n```python\n(.*?)```", readme, re.DOTALL)
    assert ten_lines is not None
    with tempfile.TemporaryDirectory() as folder:
        environment = Path(folder, "venv")
        _run("-m", "venv", environment, python=python)
        own = str(environment / ("Scripts/python.exe" if os.name == "nt" else "bin/python"))
        version = _run("-c", "import platform; print(platform.python_version())", python=own).strip()
        _run("-m", "pip", "install", "-q", "-c", ROOT / "constraints.txt", wheel.resolve(), python=own)
        printed = _run("-W", "error", "-c", ten_lines[1], python=own, cwd=folder)
        checked = _run("-m", f"{PACKAGE}.check", "CartPole-v1", python=own, cwd=folder)
        _expect("exact by snapshots" in checked, checked)
        missing = _run("-m", PACKAGE, python=own, cwd=folder, expected=1)
        _expect(f'pip install "{PACKAGE.replace("_", "-")}[main]"' in missing, missing)
        print(f"Python {version}: {printed.strip()}", flush=True)
        _run("-m", "pip", "install", "-q", "-c", ROOT / "constraints.txt", f"{wheel.resolve()}[main]", python=own)
        arguments = ("--timesteps", "1024", "--seeds", "1", "--eval-episodes", "1")
        print(_run("-m", PACKAGE, *arguments, python=own, cwd=folder), flush=True)


def main(argv: Sequence[str] | None = None) -> None:
    """
    Do what the command line says.

    :param argv: its arguments, those of the process by default
    """
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("build").add_argument("--out", type=Path, default=ROOT / "dist")
    trial = commands.add_parser("try")
    trial.add_argument("wheel", type=Path)
    trial.add_argument("pythons", nargs="*", default=[sys.executable], metavar="PYTHON")
    tag = commands.add_parser("tag")
    tag.add_argument("name")
    tag.add_argument("repository")
    arguments = parser.parse_args(argv)
    if arguments.command == "build":
        build(arguments.out)
    elif arguments.command == "tag":
        check_tag(arguments.name, arguments.repository)
    else:
        for python in arguments.pythons:
            try_wheel(arguments.wheel, python)


def _run(*arguments: object, python: str = sys.executable, cwd: str | Path = ROOT, expected: int = 0) -> str:
    # The environment of whoever runs this must not reach what is tried.
    environ = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    done = subprocess.run(
        [python, *map(str, arguments)], cwd=cwd, env=environ, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    _expect(done.returncode == expected, f"{' '.join(map(str, done.args))} ended with {done.returncode}:\n{done.stdout}")
    return done.stdout


def _expect_same(path: Path, found: set[str], expected: set[str]) -> None:
    _expect(found == expected, f"{path.name} lacks {sorted(expected - found)}, and should not have {sorted(found - expected)}")


def _expect(condition: bool, message: str) -> None:
    if not condition:
        raise SystemExit(message)


if __name__ == "__main__":
    main()
