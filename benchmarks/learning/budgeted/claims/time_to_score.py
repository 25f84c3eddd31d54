"""How long runs take to a score, where some never get there: those are censored, not dropped."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

Curve = Sequence[Sequence[float]]

AXES = ("processor seconds", "committed steps", "simulator steps")


class Times(NamedTuple):
    """
    When runs of one method got to a score. All functions of times work along the last axis, so that they take many resamplings
    at once.

    :param at: when each run got there, or ended without, [..., R]
    :param reached: which of them got there, [..., R]
    :param end: how long each was followed, [..., R]
    """

    at: np.ndarray
    reached: np.ndarray
    end: np.ndarray

    def take(self, runs: np.ndarray) -> "Times":
        """
        Pick runs.

        :param runs: their indices, [..., R]
        :return: their times
        """
        return Times(self.at[runs], self.reached[runs], self.end[runs])


def times_to(curves: Sequence[Curve], target: float, axis: int) -> Times:
    """
    Measure the runs of one method.

    :param curves: points of each run: processor seconds, committed steps, simulator steps, score
    :param target: the score to reach
    :param axis: index in ``AXES``
    :return: where on the axis each run's first evaluation is that reaches it, or its last one
    """
    at, reached = [], []
    for curve in curves:
        first = next((point for point in curve if point[3] >= target), None)
        at.append((first or curve[-1])[axis])
        reached.append(first is not None)
    ends = [curve[-1][axis] for curve in curves]
    return Times(np.array(at, dtype=float), np.array(reached), np.array(ends, dtype=float))


def kaplan_meier(times: Times) -> tuple[np.ndarray, np.ndarray]:
    """
    Estimate the share of runs that are not there yet.

    S(t) = Π_{tᵢ ≤ t} (1 - dᵢ / nᵢ)

    with dᵢ runs that get there at tᵢ, and nᵢ that were neither there nor at their end before.

    Source: Kaplan and Meier, Nonparametric Estimation from Incomplete Observations, 1958.

    :param times: times of runs
    :return: the times in order, and S from each on, after those that are equal to it; both [..., R]
    """
    # Of equal times arrivals come first: who ends at that moment was still on the way.
    order = np.lexsort((~times.reached, times.at), axis=-1)
    arrives = np.take_along_axis(times.reached, order, axis=-1)
    at_risk = np.arange(times.at.shape[-1], 0, -1)
    return np.take_along_axis(times.at, order, axis=-1), np.cumprod(1 - arrives / at_risk, axis=-1)


def restricted_mean(times: Times, limit: float | np.ndarray) -> np.ndarray:
    """
    Estimate the mean time, counting at most so much.

    E[min(t, τ)] = ∫₀^τ S(t) dt

    :param times: times of runs
    :param limit: τ, [...]
    :return: the mean, [...]
    """
    moments, shares = kaplan_meier(times)
    limits = np.broadcast_to(np.asarray(limit, dtype=float)[..., None], (*moments.shape[:-1], 1))
    edges = np.concatenate((np.zeros_like(limits), np.minimum(moments, limits), limits), axis=-1)
    shares = np.concatenate((np.ones_like(limits), shares), axis=-1)
    return np.asarray((np.diff(edges, axis=-1) * shares).sum(axis=-1))


def common_limit(*groups: Times) -> np.ndarray:
    """
    Return how far means of several methods can be compared.

    :param groups: times of the runs of each method
    :return: as far as all methods were followed that have runs which did not get there; if there are none, the last arrival;
        [...]
    """
    followed = [np.where(times.reached.all(axis=-1), np.inf, times.end.max(axis=-1)) for times in groups]
    shortest = np.min(followed, axis=0)
    return np.where(np.isfinite(shortest), shortest, np.max([times.at.max(axis=-1) for times in groups], axis=0))


def ratio(ours: Times, theirs: Times) -> np.ndarray:
    """
    Compare two methods.

    :param ours: times of the runs of one
    :param theirs: times of the runs of the other
    :return: the restricted mean of the first over that of the second; NaN if no run of either got there, or those of the
        second were there from the beginning; [...]
    """
    limit = common_limit(ours, theirs)
    first, second = restricted_mean(ours, limit), restricted_mean(theirs, limit)
    says_something = (ours.reached.any(axis=-1) | theirs.reached.any(axis=-1)) & (second > 0)
    return np.divide(first, second, out=np.full_like(first, np.nan), where=says_something)


class Interval(NamedTuple):
    """
    An estimate with its 95 % interval.

    :param estimate: the estimate
    :param low: lower end
    :param high: upper end
    """

    estimate: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.estimate:.2f} [{self.low:.2f}, {self.high:.2f}]"


def bootstrap(
    statistic: Callable[[Sequence[Times]], np.ndarray], groups: Sequence[Times], repetitions: int = 2000, seed: int = 0
) -> Interval:
    """
    Estimate a statistic of several groups of runs, each of which is resampled by itself.

    :param statistic: the statistic, [...] for times [..., R]
    :param groups: times of the runs of each group, [R]
    :param repetitions: number of resamplings
    :param seed: seed of the resampling
    :return: the statistic, and the percentiles of its resamplings
    """
    rng = np.random.default_rng(seed)
    resampled = [times.take(rng.integers(len(times.at), size=(repetitions, len(times.at)))) for times in groups]
    estimates = statistic(resampled)
    known = estimates[np.isfinite(estimates)]
    ends = np.percentile(known, [2.5, 97.5]) if len(known) else (np.nan, np.nan)
    return Interval(float(statistic(groups)), *map(float, ends))


def median_ratio(pairs: Sequence[tuple[Times, Times]], repetitions: int = 2000) -> Interval:
    """
    Compare two methods over tasks.

    :param pairs: for each task, times of the runs of the one and of the other
    :param repetitions: number of resamplings
    :return: the median over tasks of ``ratio``; tasks where no run of either got there say nothing
    """

    def median(groups: Sequence[Times]) -> np.ndarray:
        ratios = [ratio(ours, theirs) for ours, theirs in zip(groups[::2], groups[1::2], strict=True)]
        return np.ma.filled(np.ma.median(np.ma.masked_invalid(ratios), axis=0).astype(float), np.nan)

    return bootstrap(median, [times for pair in pairs for times in pair], repetitions)


class Scale(NamedTuple):
    """
    What scores on a task are measured by.

    :param base: mean score of random actions
    :param best: the best final score of any method, mean over its runs
    """

    base: float
    best: float

    def target(self, share: float) -> float:
        """
        Return the score that is a share of the best.

        :param share: the share of the way from base to best
        :return: the score
        """
        return self.base + share * (self.best - self.base)

    def normalize(self, scores: np.ndarray) -> np.ndarray:
        """
        Measure scores.

        :param scores: scores
        :return: 0 at the base, 1 at the best
        """
        return (scores - self.base) / (self.best - self.base)


def scale_of(base: float, curves_by_method: Sequence[Sequence[Curve]]) -> Scale:
    """
    Find the scale of a task.

    :param base: mean score of random actions
    :param curves_by_method: points of the runs of each method
    :return: its scale
    """
    finals = [np.mean([curve[-1][3] for curve in curves]) for curves in curves_by_method]
    return Scale(base, float(max(finals)))


def scores_at(curves: Sequence[Curve], budgets: Sequence[float], axis: int) -> np.ndarray:
    """
    Read curves at budgets; a run that has ended keeps its last score.

    :param curves: points of each run
    :param budgets: places on the axis
    :param axis: index in ``AXES``
    :return: scores, linear between evaluations, [runs, budgets]
    """
    return np.array([np.interp(budgets, *np.array(curve, dtype=float)[:, [axis, 3]].T) for curve in curves])
