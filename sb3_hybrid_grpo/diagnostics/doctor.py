"""
Reads the logs of a run and says in plain words what is wrong and which argument to change.

    python -m sb3_hybrid_grpo.doctor LOGDIR

LOGDIR is what was passed to ``stable_baselines3.common.logger.configure`` or as ``tensorboard_log``: the newest progress.csv
or TensorBoard file below it is read. A figure of all metrics with their thresholds is written to LOGDIR/doctor.png.
"""

from __future__ import annotations

import argparse
import importlib.util
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from sb3_hybrid_grpo.diagnostics.symptoms import SYMPTOMS, Symptom

if TYPE_CHECKING:
    import pandas as pd

STEPS = "time/total_timesteps"
MIN_UPDATES = min(symptom.patience for symptom in SYMPTOMS)


class Finding(NamedTuple):
    """
    A symptom that a run shows.

    :param symptom: the symptom
    :param first: committed steps when it began
    :param last: committed steps when it was seen last
    :param value: its metric then
    :param lasts: whether it lasts until the end of the log
    """

    symptom: Symptom
    first: int
    last: int
    value: float
    lasts: bool

    def __str__(self) -> str:
        """Return a sentence for people."""
        until = "until the end" if self.lasts else f"to step {self.last:,}, then it passed"
        return f"From step {self.first:,} {until}: {self.symptom.describe(self.value)}"


class UnreadableLogError(Exception):
    """There is no log, or nothing in it."""


def read_log(folder: Path) -> pd.DataFrame:
    """
    Read the newest log in or below a folder.

    :param folder: folder of a logger, or a ``progress.csv`` itself
    :return: logged values, a column per metric and a row per dump
    :raises UnreadableLogError: if there is no log of an on-policy algorithm
    """
    import pandas as pd

    files = [folder] if folder.is_file() else [*folder.rglob("progress.csv"), *folder.rglob("events.out.tfevents.*")]
    if not files:
        raise UnreadableLogError(
            f"{folder} has no progress.csv and no TensorBoard file: log with "
            'model.set_logger(configure("LOGDIR", ["csv"])), or tensorboard_log="LOGDIR".'
        )
    newest = max(files, key=lambda path: path.stat().st_mtime)
    try:
        log = pd.read_csv(newest) if newest.suffix == ".csv" else _read_tensorboard(newest)
    except pd.errors.EmptyDataError:
        raise UnreadableLogError(f"{newest} is empty.") from None
    if STEPS not in log or not {symptom.metric for symptom in SYMPTOMS} & set(log):
        raise UnreadableLogError(f"{newest} has none of the metrics of HybridGRPO.")
    return log


def _read_tensorboard(path: Path) -> pd.DataFrame:
    try:
        from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    except ModuleNotFoundError:
        raise UnreadableLogError(f"{path} is a TensorBoard file: pip install tensorboard") from None
    import pandas as pd

    events = EventAccumulator(str(path))
    events.Reload()
    columns = {
        name: pd.Series({event.step: event.value for event in events.Scalars(name)}) for name in events.Tags()["scalars"]
    }
    log = pd.DataFrame(columns)
    return log.assign(**{STEPS: log.index})


def diagnose(log: pd.DataFrame) -> list[Finding]:
    """
    Look for all symptoms.

    :param log: logged values
    :return: what was found
    """
    return [finding for symptom in SYMPTOMS if symptom.metric in log for finding in _findings(symptom, log)]


def _findings(symptom: Symptom, log: pd.DataFrame) -> Iterator[Finding]:
    """Return the longest time in which each dump shows a symptom, if it is long enough."""
    known = log[[STEPS, symptom.metric]].dropna()
    steps, values = known[STEPS].to_numpy(dtype=int), known[symptom.metric].to_numpy(dtype=float)
    present = np.array([symptom.is_beyond(value, symptom.threshold) for value in values], dtype=bool)
    edges = np.flatnonzero(np.diff(np.concatenate(([False], present, [False]))))
    streaks = edges.reshape(-1, 2)
    if len(streaks) == 0:
        return
    start, end = max(streaks, key=lambda streak: (streak[1] - streak[0], streak[1]))
    if end - start >= symptom.patience:
        yield Finding(symptom, int(steps[start]), int(steps[end - 1]), float(values[end - 1]), bool(end == len(values)))


def draw(log: pd.DataFrame, path: Path) -> None:
    """
    Draw all metrics with their thresholds.

    :param log: logged values
    :param path: file to write
    """
    from matplotlib.figure import Figure

    shown = [symptom for symptom in SYMPTOMS if symptom.metric in log]
    figure = Figure(figsize=(6, 1.8 * len(shown)), layout="constrained")
    for axes, symptom in zip(np.atleast_1d(figure.subplots(len(shown), sharex=True)), shown, strict=True):
        axes.plot(log[STEPS], log[symptom.metric], marker=".")
        axes.axhline(symptom.threshold, color="tab:red", linestyle="--")
        axes.set_title(f"{symptom.name}: {symptom.metric}", fontsize="small")
    figure.supxlabel("committed steps")
    figure.savefig(path)


def main(argv: Sequence[str] | None = None) -> int:
    """
    Examine a run.

    :param argv: arguments of the command line, ``sys.argv`` by default
    :return: exit code: 0 healthy, 1 something is wrong, 2 there is too little to tell
    """
    parser = argparse.ArgumentParser(
        prog="python -m sb3_hybrid_grpo.doctor", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("logdir", type=Path, metavar="LOGDIR", help="folder of the logs, or a progress.csv")
    folder: Path = parser.parse_args(argv).logdir
    for package in ("matplotlib", "pandas"):
        if importlib.util.find_spec(package) is None:
            parser.exit(2, f'{package} is missing: pip install "sb3-hybrid-grpo[doctor]" installs what the doctor needs\n')
    try:
        log = read_log(folder)
    except UnreadableLogError as error:
        print(error)
        return 2
    findings = diagnose(log)
    for finding in findings:
        print(finding)
    if not findings and len(log) <= MIN_UPDATES:
        print(f"Too early to tell: {len(log)} updates were logged, and {MIN_UPDATES + 1} are needed.")
        return 2
    if not findings:
        print(f"Healthy: nothing unusual in {len(log)} logged updates.")
    figure = (folder.parent if folder.is_file() else folder) / "doctor.png"
    try:
        draw(log, figure)
        print(f"The metrics are drawn in {figure}")
    except OSError as error:
        print(f"The metrics cannot be drawn: {error}")
    return 1 if findings else 0
