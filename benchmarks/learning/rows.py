"""Rows of finished runs, in CSV files that several runners may append to."""

import csv
import io
import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks import HERE
from benchmarks.learning.experiments import Run, Settings, agree, settings_of

RESULTS = HERE / "results" / "learning"


class Row(NamedTuple):
    """
    A finished run.

    :param settings: what was trained
    :param seed: its seed
    :param curve: its points as tuples of committed steps, simulator steps, processor seconds and mean return
    :param columns: all columns as text
    """

    settings: Settings
    seed: int
    curve: list[tuple[int, int, float, float]]
    columns: Mapping[str, str]


def read_rows(folder: Path) -> list[Row]:
    """
    Read the finished runs of all suites: a run that belongs to several is made once.

    :param folder: folder of the CSV files
    :return: their rows
    """
    rows = []
    for path in sorted(folder.glob("*.csv")):
        with path.open(newline="", encoding="utf-8") as file:
            for columns in csv.DictReader(file):
                curve = [tuple(point) for point in json.loads(columns["curve"])]
                rows.append(Row(json.loads(columns["settings"]), int(columns["seed"]), curve, columns))
    return rows


def find_row(run: Run, rows: Iterable[Row]) -> Row | None:
    """
    Look a run up, under whichever name it was made.

    :param run: the run
    :param rows: finished runs
    :return: the latest row with its settings and seed, if any
    """
    wanted, found = settings_of(run.config, run.environment), None
    for row in rows:
        if row.seed == run.seed and agree(row.settings, wanted):
            found = row
    return found


def append_row(path: Path, columns: Mapping[str, Any]) -> None:
    """
    Write a row at once: whoever reads or ends this process, it is there entirely or not at all.

    :param path: a CSV file, made if there is none
    :param columns: the row
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    text = io.StringIO(newline="")
    with path.open("ab") as file:
        header = _header(path)
        writer = csv.DictWriter(text, header or list(columns))
        if header is None:
            writer.writeheader()
        writer.writerow(columns)
        os.write(file.fileno(), text.getvalue().encode())
        os.fsync(file.fileno())


def _header(path: Path) -> list[str] | None:
    with path.open(newline="", encoding="utf-8") as file:
        return next(csv.reader(file), None)
