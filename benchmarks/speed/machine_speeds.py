"""How fast the machines were that rows come from, so that seconds of several can be compared."""

from collections.abc import Mapping, Sequence

import numpy as np

from benchmarks.learning.rows import Row


def session_of(row: Row) -> str:
    """
    Tell which rows were made on one machine, at one time.

    :param row: a finished run
    :return: its commit, whether or not rows of the same session had already changed the files since
    """
    return row.columns["commit"].removesuffix("-dirty")


def machine_speeds(rows: Sequence[Row]) -> dict[str, float]:
    """
    Fit log(PPO's processor seconds per committed step) = a number of the environment, its wrappers included, + a number of the
    session, by least squares over all runs of PPO, which does the same in every session, whatever its ``gae_lambda``.

    :param rows: finished runs
    :return: seconds of each session per second of the average one, of those sessions that can be compared through
        environments they share, directly or through others
    """
    runs = [row for row in rows if row.settings["algorithm"] == "ppo" and row.settings["target_kl"] is None]
    sessions = _connected([(row.columns["environment"], session_of(row)) for row in runs])
    if not sessions:
        return {}
    runs = [row for row in runs if session_of(row) in sessions]
    columns = {name: i for i, name in enumerate([*sessions, *{row.columns["environment"] for row in runs}])}
    table = np.zeros((len(runs), len(columns)))
    for line, row in zip(table, runs, strict=True):
        line[[columns[session_of(row)], columns[row.columns["environment"]]]] = 1
    rates = [row.curve[-1][2] / row.curve[-1][0] for row in runs]
    solution, *_ = np.linalg.lstsq(table, np.log(rates), rcond=None)
    logarithms = solution[: len(sessions)]
    return dict(zip(sessions, np.exp(logarithms - logarithms.mean()).tolist(), strict=True))


def on_one_machine(row: Row, speeds: Mapping[str, float]) -> Row:
    """
    Convert the seconds of a run.

    :param row: a finished run
    :param speeds: what ``machine_speeds`` has found
    :return: the row with the seconds that it would have taken in the average session
    """
    speed = speeds[session_of(row)]
    return row._replace(curve=[(steps, simulator, seconds / speed, score) for steps, simulator, seconds, score in row.curve])


def _connected(pairs: Sequence[tuple[str, str]]) -> list[str]:
    """Return the largest group of sessions that are connected by environments."""
    groups: list[set[str]] = []
    for environment in dict.fromkeys(environment for environment, _ in pairs):
        own = {session for other, session in pairs if other == environment}
        linked = [group for group in groups if group & own]
        groups = [group for group in groups if group not in linked] + [own.union(*linked)]
    return sorted(max(groups, key=len, default=set()))
