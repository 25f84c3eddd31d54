"""Rows of finished runs."""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

from benchmarks import HERE
from benchmarks.learning.experiments import Run, Settings, agree, settings_of
from sb3_hybrid_grpo.compare import csv_files

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
        for columns in csv_files.read_rows(path):
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
