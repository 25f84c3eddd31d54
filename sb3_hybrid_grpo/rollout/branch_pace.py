"""How many states are branched, so that steps take no longer than they may."""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
from stable_baselines3.common.vec_env import VecEnv
from stable_baselines3.common.vec_env.base_vec_env import VecEnvStepReturn

from sb3_hybrid_grpo.common import InvalidArgumentError, Observations, check_number
from sb3_hybrid_grpo.rollout.rollout_branches import RolloutBranches

FIRST_SHARE = 0.25
"""Share of states that are branched before anything was measured."""
_LEAST_SHARE = 0.01


def check_pace(branch_fraction: float | str, branch_time_limit: float) -> None:
    """
    Check how many states are to be branched.

    :param branch_fraction: share of states, or ``"auto"``
    :param branch_time_limit: how many times as long as without branches a step may take
    :raises InvalidArgumentError: if one of them cannot work
    """
    if isinstance(branch_fraction, str):
        if branch_fraction != "auto":
            raise InvalidArgumentError(f"`branch_fraction` must be a number or 'auto', not {branch_fraction!r}.")
    else:
        check_number("branch_fraction", branch_fraction, above=0, at_most=1)
    check_number("branch_time_limit", branch_time_limit, above=1)


class BranchPace:
    """
    Chooses the share of states that are branched, once for each rollout, from what branches and all else took in the last one.

    Within a rollout the share does not change: whether a state is branched is then independent of it, and all branched states
    count alike, as do all others, so that the gradient stays what it is in expectation.

    :param limit: how many times as long as without branches a step may take
    :param clock: tells the time in seconds
    """

    def __init__(self, limit: float, clock: Callable[[], float] = time.perf_counter) -> None:
        self._limit = limit
        self._clock = clock
        self._start: float | None = None
        self._branching = 0.0
        self._elsewhere = 0.0
        self._n_branched = 0

    def begin(self, share: float) -> float:
        """
        Begin a rollout.

        :param share: share of states that were branched in the one before
        :return: the share in this one
        """
        now = self._clock()
        if self._start is not None and self._n_branched > 0:
            rest = now - self._start - self._branching - self._elsewhere
            # Of c seconds for a branched state and r for the rest of a step, the share s makes r + s c.
            affordable = (self._limit - 1) * rest * share / max(self._branching, 1e-9)
            share = min(max(affordable, _LEAST_SHARE), 1.0)
        self.forget()
        self._start = now
        return share

    def forget(self) -> None:
        """Forget what was measured: the rollout does not go on to the next one's begin."""
        self._start = None
        self._branching = self._elsewhere = 0.0
        self._n_branched = 0

    @contextmanager
    def branching(self, n_states: int = 0) -> Iterator[None]:
        """
        Count time as that of branches.

        :param n_states: number of states that are branched
        """
        start = self._clock()
        self._n_branched += n_states
        try:
            yield
        finally:
            self._branching += self._clock() - start

    @contextmanager
    def elsewhere(self) -> Iterator[None]:
        """Do not count time at all, such as that of evaluations."""
        start = self._clock()
        try:
            yield
        finally:
            self._elsewhere += self._clock() - start


class TimedBranches:
    """
    Branches whose time is counted, see ``RolloutBranches``.

    :param branches: the branches
    :param pace: counts it
    """

    def __init__(self, branches: RolloutBranches, pace: BranchPace) -> None:
        self._branches = branches
        self._pace = pace

    def begin(self, actions: np.ndarray, alive: np.ndarray, obs: Observations, noise: list[np.ndarray]) -> None:
        """Begin a macro-step, and count the states that are branched."""
        with self._pace.branching(int(alive.any(axis=1).sum())):
            self._branches.begin(actions, alive, obs, noise)

    def step_env(self, env: VecEnv, actions: np.ndarray) -> VecEnvStepReturn:
        """Take the committed step, which is no branch."""
        return self._branches.step_env(env, actions)

    def finish(self, new_obs: Observations, infos: Sequence[dict[str, Any]], terminated: np.ndarray) -> int:
        """Complete the macro-step, or put that off."""
        with self._pace.branching():
            return self._branches.finish(new_obs, infos, terminated)

    def finish_all(self) -> int:
        """Complete all macro-steps."""
        with self._pace.branching():
            return self._branches.finish_all()
