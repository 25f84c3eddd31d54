"""Rows of measurements in CSV files, which are whole at any time, whoever reads them or ends the process that writes them."""

import csv
import io
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

Row = dict[str, str]


def read_rows(path: Path) -> list[Row]:
    """
    Read a file.

    :param path: a CSV file with a header
    :return: its rows, none if there is no file
    """
    if not path.exists():
        return []
    with path.open(newline="", encoding="utf-8") as file:
        # Processes that begin a file at the same moment write a header each.
        return [row for row in csv.DictReader(file) if any(value != name for name, value in row.items())]


def write_rows(path: Path, columns: Sequence[str], rows: Iterable[Mapping[str, Any]]) -> None:
    """
    Write a file, in place of the one that was there.

    :param path: a CSV file
    :param columns: names of its columns
    :param rows: its rows, with no other columns
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".part")
    with partial.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns)
        writer.writeheader()
        writer.writerows(rows)
    os.replace(partial, path)


def append_row(path: Path, row: Mapping[str, Any]) -> None:
    """
    Add a row; several processes may do so at a time.

    :param path: a CSV file, made if there is none
    :param row: the row, with no column that the file has not
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    text = io.StringIO(newline="")
    with path.open("ab") as file:
        columns = _columns(path)
        writer = csv.DictWriter(text, columns or list(row))
        if not columns:
            writer.writeheader()
        writer.writerow(row)
        os.write(file.fileno(), text.getvalue().encode())
        os.fsync(file.fileno())


def _columns(path: Path) -> list[str]:
    with path.open(newline="", encoding="utf-8") as file:
        return next(csv.reader(file), [])
