"""Finished runs of a suite as scores, normalised with random actions and with PPO."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from benchmarks.learning.experiments import Environment, Run, Suite
from benchmarks.learning.rows import Row, find_row
from benchmarks.speed.machine_speeds import machine_speeds, on_one_machine, session_of

REFERENCE = "ppo"
AXES = ("committed steps", "simulator steps", "processor seconds")


class Scale(NamedTuple):
    """
    What scores and budgets of an environment are measured by.

    :param random: mean return of random actions
    :param reference: mean final return of PPO, trained on undisturbed rewards
    :param budgets: what PPO spends on each of the ``AXES``, mean over seeds
    """

    random: float
    reference: float
    budgets: tuple[float, ...]

    def normalize(self, returns: np.ndarray) -> np.ndarray:
        """
        Measure returns: 0 is random and 1 is PPO.

        :param returns: returns
        :return: normalised scores
        """
        return (returns - self.random) / (self.reference - self.random)


class SuiteRows(NamedTuple):
    """
    Finished runs of a suite.

    :param suite: the suite
    :param configs: configurations with runs, PPO's among them
    :param rows: the rows of each configuration and environment, by seed
    :param scales: the scales of environments where PPO was trained and is better than random
    :param has_one_machine: whether the rows' seconds are those of one machine, converted if they were not
    """

    suite: Suite
    configs: tuple[str, ...]
    rows: Mapping[tuple[str, Environment], Sequence[Row]]
    scales: Mapping[Environment, Scale]
    has_one_machine: bool

    def compared(self) -> list[str]:
        """Return PPO and those configurations that have runs of as many seeds as any other, in all environments alike."""
        seeds = {config: min(len(self.rows[config, environment]) for environment in self.scales) for config in self.configs}
        most = max((n for config, n in seeds.items() if config != REFERENCE), default=0)
        return [config for config in self.configs if config == REFERENCE or seeds[config] == most]

    def comparable(self) -> list[Environment]:
        """Return the environments that have a scale and runs of every configuration that is compared."""
        if not self.scales:
            return []
        compared = self.compared()
        return [environment for environment in self.scales if all(self.rows.get((config, environment)) for config in compared)]

    def scores(self, axis: int, shares: Sequence[float]) -> dict[str, np.ndarray]:
        """
        Measure all configurations with the same budgets.

        :param axis: index in ``AXES``
        :param shares: budgets, as shares of PPO's
        :return: normalised scores by configuration, [seeds, environments, shares]: of as many seeds as all have
        """
        environments, configs = self.comparable(), self.compared()
        n_seeds = min(len(self.rows[config, environment]) for config in configs for environment in environments)
        return {
            config: np.array(
                [
                    [self._score(self.rows[config, environment][i], environment, axis, shares) for environment in environments]
                    for i in range(n_seeds)
                ]
            )
            for config in configs
        }

    def _score(self, row: Row, environment: Environment, axis: int, shares: Sequence[float]) -> np.ndarray:
        scale = self.scales[environment]
        points = np.array(row.curve)
        return scale.normalize(np.interp(np.multiply(shares, scale.budgets[axis]), points[:, axis], points[:, -1]))


def final_return(row: Row) -> float:
    """
    Return what a run has learned.

    :param row: a finished run
    :return: mean return of its last evaluation
    """
    return row.curve[-1][-1]


def steps_to_reach(row: Row, target: float) -> float:
    """
    Count how long a run takes to be as good as another.

    :param row: a finished run
    :param target: the return to reach
    :return: committed steps at its first evaluation that reaches it, infinity if none does
    """
    return next((float(point[0]) for point in row.curve if point[-1] >= target), np.inf)


def gather(suite: Suite, rows: Sequence[Row], random: Mapping[str, float]) -> SuiteRows:
    """
    Pick the rows of a suite.

    :param suite: the suite
    :param rows: finished runs of all suites
    :param random: mean returns of random actions by environment id
    :return: its rows
    """
    seeds = sorted({row.seed for row in rows})
    speeds = machine_speeds(rows)

    def found(config: str, environment: Environment) -> list[Row]:
        candidates = (find_row(Run(config, environment, seed), rows) for seed in seeds)
        return [row for row in candidates if row is not None]

    named = dict.fromkeys((REFERENCE, *suite.configs))
    pairs = [(config, environment) for config in named for environment in suite.environments]
    pairs += [(REFERENCE, environment.undisturbed()) for environment in suite.environments]
    by_pair = {pair: found(*pair) for pair in pairs}
    sessions = {session_of(row) for own in by_pair.values() for row in own}
    if sessions <= speeds.keys():
        by_pair = {pair: [on_one_machine(row, speeds) for row in own] for pair, own in by_pair.items()}
    scales = {}
    for environment in suite.environments:
        reference = by_pair[REFERENCE, environment.undisturbed()]
        if not reference or environment.id not in random:
            continue
        scale = Scale(
            random=random[environment.id],
            reference=float(np.mean([final_return(row) for row in reference])),
            budgets=tuple(float(np.mean([row.curve[-1][axis] for row in reference])) for axis in range(len(AXES))),
        )
        if scale.reference > scale.random:
            scales[environment] = scale
    configs = tuple(config for config in named if any(by_pair[config, environment] for environment in suite.environments))
    return SuiteRows(suite, configs, by_pair, scales, len(sessions) == 1 or sessions <= speeds.keys())
