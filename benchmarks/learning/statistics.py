"""Aggregates of normalised scores with stratified bootstrap intervals by rliable."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from rliable import library, metrics
from scipy import stats

Scores = Mapping[str, np.ndarray]

# Bootstrap repetitions of what is slow to compute.
_FEW_REPETITIONS = 400


class Estimates(NamedTuple):
    """
    Estimates with 95 % intervals.

    :param points: the estimates by name
    :param intervals: lower and upper ends by name, [2, ...]
    """

    points: dict[str, Any]
    intervals: dict[str, np.ndarray]

    def text(self, name: str, index: int = 0) -> str:
        """
        Write a number and its interval.

        :param name: name of the estimate
        :param index: which of its numbers
        :return: cell of a table, empty if there is no estimate of that name
        """
        if name not in self.points:
            return ""
        low, high = self.intervals[name].reshape(2, -1)[:, index]
        return f"{np.ravel(self.points[name])[index]:.2f} [{low:.2f}, {high:.2f}]"


def interquartile_means(scores: Scores, repetitions: int = _FEW_REPETITIONS) -> Estimates:
    """
    Average the middle half of all runs, at each of several budgets.

    :param scores: normalised scores by configuration, [seeds, environments, budgets]
    :param repetitions: bootstrap repetitions
    :return: IQM by configuration, [budgets]
    """
    return _estimate(dict(scores), _iqm, repetitions)


def ratios(scores: Scores, baseline: str, repetitions: int) -> Estimates:
    """
    Compare interquartile means.

    :param scores: normalised scores by configuration, [seeds, environments, budgets]
    :param baseline: the configuration to divide by
    :param repetitions: bootstrap repetitions
    :return: IQM over the baseline's by configuration, without the baseline, [budgets]
    """
    return _estimate(_pairs(scores, baseline), lambda x, y: _iqm(x) / _iqm(y), repetitions)


def improvements(scores: Scores, baseline: str) -> Estimates:
    """
    Compare runs of the same environment.

    :param scores: normalised scores by configuration, [seeds, environments]
    :param baseline: the configuration to compare with
    :return: probability that a run is better than one of the baseline, by configuration, without the baseline
    """
    return _estimate(_pairs(scores, baseline), metrics.probability_of_improvement, _FEW_REPETITIONS)


def profiles(scores: Scores, thresholds: Sequence[float]) -> Estimates:
    """
    Count runs above thresholds.

    :param scores: normalised scores by configuration, [seeds, environments]
    :param thresholds: normalised scores
    :return: share of runs above each threshold by configuration, [thresholds]
    """
    _seed()
    return Estimates(*library.create_performance_profile(dict(scores), np.asarray(thresholds), reps=_FEW_REPETITIONS))


def _iqm(scores: np.ndarray) -> np.ndarray:
    # rliable's own takes one budget at a time.
    return stats.trim_mean(scores.reshape(-1, scores.shape[-1]), proportiontocut=0.25)


def _pairs(scores: Scores, baseline: str) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    return {name: (scores[name], scores[baseline]) for name in scores if name != baseline}


def _estimate(scores: dict[str, Any], function: Callable[..., Any], repetitions: int) -> Estimates:
    _seed()
    return Estimates(*library.get_interval_estimates(scores, function, reps=repetitions))


def _seed() -> None:
    """Make the same rows give the same report: rliable draws from NumPy's global generator."""
    np.random.seed(0)
