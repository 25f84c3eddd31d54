"""Commands on the pages: they parse, and what they run has the options that they name."""

import argparse
import re
import runpy
import shlex
import shutil
import subprocess
import sys

import pytest

from tests.pages import PAGES, ROOT, read

# Modules run here although others have imported them.
pytestmark = pytest.mark.filterwarnings("ignore:.*found in sys.modules after import of package:RuntimeWarning")
TEXTS = PAGES | read([ROOT / "CONTRIBUTING.md"])
BLOCKS = [
    pytest.param(block, id=f"{page}-{i}")
    for page, text in TEXTS.items()
    for i, block in enumerate(re.findall(r"^ *```bash\n(.*?)^ *```", text, flags=re.DOTALL | re.MULTILINE))
]
INLINE = {command for text in TEXTS.values() for command in re.findall(r"`((?:pip|make|python -m) [^`\n]+)`", text)}
INSTALLED = {"pytest"}
"""Modules of others, which know their options themselves."""


class Parsed(Exception):
    """The command line has been understood."""


@pytest.fixture
def only_parse(monkeypatch):
    parse_args = argparse.ArgumentParser.parse_args

    def parse(self, args=None, namespace=None):
        parse_args(self, args, namespace)
        raise Parsed

    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", parse)


def commands(block):
    """Split a block, or a line of text, into commands without their environment variables."""
    for part in re.split(r"&&|;|\n|&(?!&)", re.sub(r"\\\n", " ", block)):
        words = shlex.split(part, comments=True)
        while words and (re.match(r"\w+=", words[0]) or words[0] in ("do", "done", "wait", "for")):
            words = [] if words[0] in ("done", "wait", "for") else words[1:]
        if words:
            yield words


def check(words, monkeypatch):
    match words:
        case ["pip", "install", *options]:
            assert {option for option in options if option.endswith(".txt")} <= {"constraints.txt"}
            project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
            for extra in re.findall(r"[\w-]+", ",".join(re.findall(r"\[(.*?)\]", " ".join(options)))):
                assert re.search(rf"^{extra} = \[", project, flags=re.MULTILINE), extra
        case ["make", target, *_]:
            assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(encoding="utf-8"), flags=re.MULTILINE), target
        case ["python", "-m", module, *_] if module in INSTALLED:
            pass
        case ["python", "-m", module, *arguments]:
            monkeypatch.setattr(sys, "argv", [module, *arguments])
            with pytest.raises(Parsed):
                runpy.run_module(module, run_name="__main__", alter_sys=True)
        case ["python", script, *_]:
            assert (ROOT / script).exists() or script == "train.py", script
        case ["ray", "start", *_]:
            pass
        case _:
            raise AssertionError(f"who knows what {words[0]!r} does?")


@pytest.mark.parametrize("block", BLOCKS)
def test_blocks(block, only_parse, monkeypatch):
    if shutil.which("bash"):
        subprocess.run(["bash", "-n"], input=block, text=True, check=True)
    # What a cluster's own scripts do is not known here.
    for words in commands(block) if "#SBATCH" not in block else ():
        run(words, monkeypatch)


@pytest.mark.parametrize("command", sorted(INLINE))
def test_commands_in_the_text(command, only_parse, monkeypatch):
    for words in commands(command):
        run(words, monkeypatch)


def run(words, monkeypatch):
    try:
        check(words, monkeypatch)
    except ModuleNotFoundError as error:
        if error.name.partition(".")[0] in ("benchmarks", "sb3_hybrid_grpo"):
            raise
        pytest.skip(f"{error.name} is not installed")


@pytest.mark.parametrize(
    ("command", "error"),
    [
        ("python -m sb3_hybrid_grpo --envs CartPole-v1", SystemExit),
        ("python -m sb3_hybrid_grpo --seeds none", SystemExit),
        ("python -m sb3_hybrid_grpo.checks CartPole-v1", ImportError),
        ("make everything", AssertionError),
        ('pip install -e ".[everything]"', AssertionError),
        ("python examples/none.py", AssertionError),
        ("sudo rm -r /", AssertionError),
    ],
)
def test_wrong_commands_are_found(command, error, only_parse, monkeypatch, capsys):
    (words,) = commands(command)
    with pytest.raises(error):
        check(words, monkeypatch)
