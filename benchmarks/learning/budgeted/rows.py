"""Rows of CSV files that a process which is killed leaves whole."""

import csv
import io
import json
import os
import platform
import subprocess
from collections.abc import Mapping
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypeVar, get_type_hints

Row = TypeVar("Row", bound="tuple[Any, ...]")

_PACKAGES = ("torch", "stable-baselines3", "sb3-contrib", "gymnasium", "numpy", "mujoco")


def append_row(path: Path, row: Any) -> None:
    """
    Write a row at once: whoever reads or ends this process, it is there entirely or not at all.

    :param path: a CSV file, made if there is none
    :param row: a named tuple; what is no text is written as JSON
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    text = io.StringIO(newline="")
    writer = csv.writer(text)
    if not path.exists():
        writer.writerow(row._fields)
    writer.writerow([value if isinstance(value, str) else json.dumps(value) for value in row])
    with path.open("ab") as file:
        os.write(file.fileno(), text.getvalue().encode())
        os.fsync(file.fileno())


def read_rows(path: Path, row_class: type[Row]) -> list[Row]:
    """
    Read rows.

    :param path: a CSV file, which may be missing
    :param row_class: class of its rows, a named tuple
    :return: the rows
    """
    if not path.exists():
        return []
    types = get_type_hints(row_class)
    with path.open(newline="", encoding="utf-8") as file:
        return [
            row_class(**{name: text if types[name] is str else json.loads(text) for name, text in columns.items()})
            for columns in csv.DictReader(file)
        ]


@cache
def provenance() -> Mapping[str, str]:
    """
    Describe code and machine.

    :return: commit and versions
    """
    describe = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty"]
    commit = subprocess.run(describe, capture_output=True, text=True, check=False).stdout.strip()
    versions = {name: version(name) for name in _PACKAGES}
    return {"commit": commit, "python": platform.python_version(), **versions, "machine": platform.machine()}
