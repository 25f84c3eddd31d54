"""How many states are branched, so that steps take no longer than they may."""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
from stable_baselines3.common.vec_env import VecEnv
from stable_baselines3.common.vec_env.base_vec_env import VecEnvStepReturn

from sb3_hybrid_grpo.common import InvalidArgumentError, Observations, check_number
from sb3_hybrid_grpo.rollout.rollout_branches import RolloutBranches

FIRST_SHARE = 0.25
"""Share of states that are branched before anything was measured."""
_LEAST_SHARE = 0.01
_MEMORY = 0.8
"""What a rollout counts beside the one after it."""


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


class Spent(NamedTuple):
    """
    What rollouts took, the earlier ones counting less and less.

    :param rest: seconds of all but branches
    :param branching: seconds of branches
    :param share: shares of states that were branched, added up
    """

    rest: float = 0.0
    branching: float = 0.0
    share: float = 0.0

    def and_then(self, last: "Spent") -> "Spent":
        """
        Add a rollout.

        :param last: what it took
        :return: what all of them took
        """
        return Spent(*(_MEMORY * before + now for before, now in zip(self, last, strict=True)))


class BranchPace:
    """
    Chooses the share of states that are branched, once for each rollout, from what branches and all else took in those before.

    Within a rollout the share does not change: whether a state is branched is then independent of it, and all branched states
    count alike, as do all others. What a state leads to has a part in neither, but for the weight that ``relative_precision``
    estimates from all of them. What a rollout takes beyond the limit, later ones save, but for the first one, before which
    nothing is known.

    :param limit: how many times as long as without branches a step may take
    :param clock: tells the time in seconds
    """

    def __init__(self, limit: float, clock: Callable[[], float] = time.perf_counter) -> None:
        self._limit = limit
        self._clock = clock
        self._past = Spent()
        self._debt = 0.0
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
            affordable = (self._limit - 1) * rest
            if self._past.share > 0:  # Else the share was a guess.
                self._debt = max(self._debt + self._branching - affordable, 0.0)
            self._past = self._past.and_then(Spent(rest, self._branching, share))
            # Of c seconds for a branched state and r for the rest of a step, the share s makes r + s c.
            per_share = max(self._past.branching / self._past.share, 1e-9)
            share = min(max((affordable - self._debt) / per_share, _LEAST_SHARE), 1.0)
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
