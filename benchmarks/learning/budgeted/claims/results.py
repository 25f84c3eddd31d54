"""Finished runs on claim tasks, and what they say."""

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from benchmarks.learning.budgeted.claims.time_to_score import (
    Curve,
    Interval,
    Scale,
    Times,
    bootstrap,
    common_limit,
    median_ratio,
    ratio,
    restricted_mean,
    scale_of,
    scores_at,
    times_to,
)

SHARES = (0.5, 0.75, 0.9)


class ClaimRow(NamedTuple):
    """
    A finished run.

    :param family: name of the family of tasks
    :param task: environment id
    :param method: name of the method
    :param seed: its seed
    :param seconds: its budget of processor seconds
    :param curve: its points: processor seconds, committed steps, simulator steps, mean return
    :param error: what ended it early, if anything
    :param settings: number of environments, whether they are normalised, and arguments of the constructor
    :param wall_seconds: seconds on the clock, with evaluations
    :param provenance: code and machine
    """

    family: str
    task: str
    method: str
    seed: int
    seconds: float
    curve: Sequence[Sequence[float]]
    error: str
    settings: Mapping[str, object]
    wall_seconds: float
    provenance: Mapping[str, str]


class Claims:
    """
    Runs of one budget, by task and method.

    :param rows: finished runs
    :param seconds: the budget
    :param baselines: names of the methods whose best one on each task ours is compared with
    :param random: mean returns of random actions by task
    """

    def __init__(
        self, rows: Iterable[ClaimRow], seconds: float, baselines: Sequence[str], random: Mapping[str, float]
    ) -> None:
        self.seconds = seconds
        self.baselines = baselines
        self.curves: dict[str, dict[str, list[Curve]]] = {}
        self.paces: dict[str, list[float]] = {}
        for row in rows:
            if row.seconds == seconds:
                self.curves.setdefault(row.task, {}).setdefault(row.method, []).append(_whole(row, random))
                self.paces.setdefault(row.method, []).append(float(row.provenance.get("work_seconds", "nan")))
        self.scales: Mapping[str, Scale] = {
            task: scale_of(random[task], list(by_method.values())) for task, by_method in self.curves.items()
        }

    def times(self, task: str, method: str, share: float, axis: int) -> Times:
        """
        Measure the runs of a method.

        :param task: environment id
        :param method: name of the method
        :param share: share of the best final score
        :param axis: index in ``AXES``
        :return: when they got there
        """
        return times_to(self.curves[task][method], self.scales[task].target(share), axis)

    def is_hard(self, task: str, share: float) -> bool:
        """
        Tell whether a score takes any learning.

        :param task: environment id
        :param share: share of the best final score
        :return: whether untrained policies have less, in the mean of all runs
        """
        untrained = [curve[0][3] for curves in self.curves[task].values() for curve in curves]
        return float(np.mean(untrained)) < self.scales[task].target(share)

    def restricted_means(self, task: str, share: float, axis: int) -> dict[str, Interval]:
        """
        Measure all methods on a task, each as far as it was followed: on the axis of seconds, that is equally far.

        :param task: environment id
        :param share: share of the best final score
        :param axis: index in ``AXES``
        :return: restricted mean times by method
        """
        times = {method: self.times(task, method, share, axis) for method in self.curves[task]}
        return {method: _mean_of(own) for method, own in times.items()}

    def best_baseline(self, task: str, share: float, axis: int) -> str:
        """
        Pick the strongest opponent on a task.

        :param task: environment id
        :param share: share of the best final score
        :param axis: index in ``AXES``
        :return: the baseline with the least restricted mean time
        """
        times = {method: self.times(task, method, share, axis) for method in self.baselines if method in self.curves[task]}
        limit = common_limit(*times.values())
        return min(times, key=lambda method: float(restricted_mean(times[method], limit)))

    def ratios(self, method: str, share: float, axis: int) -> tuple[dict[str, float], Interval]:
        """
        Compare a method with the best baseline of each task.

        :param method: name of the method
        :param share: share of the best final score
        :param axis: index in ``AXES``
        :return: the ratio of their restricted mean times on each task where that takes learning, and its median over tasks
        """
        pairs = {
            task: (
                self.times(task, method, share, axis),
                self.times(task, self.best_baseline(task, share, axis), share, axis),
            )
            for task, by_method in self.curves.items()
            if method in by_method and any(baseline in by_method for baseline in self.baselines) and self.is_hard(task, share)
        }
        median = median_ratio(list(pairs.values())) if pairs else Interval(np.nan, np.nan, np.nan)
        return {task: float(ratio(*pair)) for task, pair in pairs.items()}, median

    def normalized_scores(
        self, methods: Sequence[str], axis: int, shares: Sequence[float], spenders: Sequence[str] | None = None
    ) -> dict[str, np.ndarray]:
        """
        Read all curves at the same budgets.

        :param methods: names of methods, on those tasks that all of them were trained on
        :param axis: index in ``AXES``
        :param shares: budgets, as shares of the least that one of the spenders spends on the task
        :param spenders: names of methods, the first one by default
        :return: normalised scores by method, of as many seeds as all have, [seeds, tasks, shares]
        """
        tasks = [task for task, by_method in self.curves.items() if all(method in by_method for method in methods)]
        n_seeds = min(len(self.curves[task][method]) for task in tasks for method in methods)
        scores = {method: [] for method in methods}  # type: dict[str, list[np.ndarray]]
        for task in tasks:
            spent = min(self._spent(task, spender, axis) for spender in spenders or methods[:1])
            for method in methods:
                of_runs = scores_at(self.curves[task][method][:n_seeds], np.multiply(shares, spent).tolist(), axis)
                scores[method].append(self.scales[task].normalize(of_runs))
        return {method: np.stack(of_tasks, axis=1) for method, of_tasks in scores.items()}

    def followed(self, method: str, other: str, axis: int) -> float:
        """
        Tell how far curves of a method go, beside those of another.

        :param method: name of the method
        :param other: name of the other
        :param axis: index in ``AXES``
        :return: the least of what it spends on a task that both were trained on, as a share of what the other spends there
        """
        shared = [task for task, by_method in self.curves.items() if method in by_method and other in by_method]
        return min(self._spent(task, method, axis) / self._spent(task, other, axis) for task in shared)

    def _spent(self, task: str, method: str, axis: int) -> float:
        return float(np.mean([curve[-1][axis] for curve in self.curves[task][method]]))


def _whole(row: ClaimRow, random: Mapping[str, float]) -> Curve:
    """Follow a run that diverged to the end of its budget, with the score of random actions: it never gets there."""
    if not row.error:
        return row.curve
    _, steps, simulator_steps, _ = row.curve[-1]
    return [*row.curve, [row.seconds, steps, simulator_steps, random[row.task]]]


def _mean_of(times: Times) -> Interval:
    return bootstrap(lambda groups: restricted_mean(groups[0], times.end.max()), [times])
