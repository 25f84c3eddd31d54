"""Rows of named tuples in CSV files: what is no text is JSON there."""

import json
from collections.abc import Mapping
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypeVar, get_type_hints

from benchmarks.provenance import provenance as provenance_of_all
from sb3_hybrid_grpo.compare import csv_files

Row = TypeVar("Row", bound="tuple[Any, ...]")


def append_row(path: Path, row: Any) -> None:
    """
    Write a row at once, see ``csv_files.append_row``.

    :param path: a CSV file, made if there is none
    :param row: a named tuple
    """
    values = row._asdict().items()
    csv_files.append_row(path, {name: value if isinstance(value, str) else json.dumps(value) for name, value in values})


def read_rows(path: Path, row_class: type[Row]) -> list[Row]:
    """
    Read rows.

    :param path: a CSV file, which may be missing
    :param row_class: class of its rows, a named tuple
    :return: the rows
    """
    types = get_type_hints(row_class)
    return [
        row_class(**{name: text if types[name] is str else json.loads(text) for name, text in columns.items()})
        for columns in csv_files.read_rows(path)
    ]


def provenance(work_seconds: float) -> Mapping[str, str]:
    """
    Describe code and machine, and the package that opponents come from.

    :param work_seconds: how fast the machine was, see ``pace.work_seconds``
    :return: commit, versions and the machine's pace
    """
    return {**_provenance(), "sb3-contrib": version("sb3-contrib"), "work_seconds": f"{work_seconds:.4f}"}


_provenance = cache(provenance_of_all)
