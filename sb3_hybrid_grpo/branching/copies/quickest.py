"""Branching in the quicker of two ways, state by state."""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeAlias

import gymnasium as gym
import numpy as np

from sb3_hybrid_grpo.branching.copies.episodes import WrongEpisodeError
from sb3_hybrid_grpo.branching.copies.fork import ForkBrancher, milliseconds_per_fork
from sb3_hybrid_grpo.branching.copies.replay import ReplayBrancher
from sb3_hybrid_grpo.branching.simulator import InProcessBrancher
from sb3_hybrid_grpo.common import BranchOutcome, UnbranchableEnvError, copy_environments, warn

_Step: TypeAlias = Callable[[InProcessBrancher, np.ndarray], BranchOutcome]


class _Cost:
    """
    What something took so far.

    :param seconds: a first guess
    """

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self.count = 1

    @property
    def mean(self) -> float:
        """Seconds for each."""
        return self.seconds / self.count

    @contextmanager
    def measured(self) -> Iterator[None]:
        """Add the time that is spent inside."""
        start = time.perf_counter()
        yield
        self.seconds += time.perf_counter() - start


class QuickestBrancher(InProcessBrancher):
    """
    Branches by replaying episodes as long as they are short, and by forking where that is quicker by what both took so far.

    If a replay comes to another state than the environment, a warning says so, and from then on all branches are forked.

    :param envs: the environments, as a vectorised environment holds them
    :param as_returned: keep the precision in which environments return observations and rewards, see ``InProcessBrancher``
    :param timeout: seconds that all branches of an environment may take for one step
    :raises UnbranchableEnvError: if an environment cannot be branched exactly in both ways
    :raises BranchError: if an environment raises when a few steps are tried
    """

    def __init__(self, envs: Sequence[gym.Env[Any, Any]], as_returned: bool = False, timeout: float | None = None) -> None:
        super().__init__(envs, as_returned, timeout)
        self._forks = ForkBrancher(envs, as_returned, timeout)
        self._replays = ReplayBrancher(envs, as_returned, timeout)
        self._replays_are_exact = True
        self._is_forked = np.ones(len(envs), dtype=bool)
        self._fork_cost = _Cost(milliseconds_per_fork() / 1000)
        self._step_cost = _Cost(1e-6)

    def open(self, actions: np.ndarray, alive: np.ndarray, horizon: int) -> BranchOutcome:
        """Open branches in the quicker way at each present state, see ``InProcessBrancher``."""
        self.close()
        if self._replays_are_exact:
            self._choose(alive, horizon)

        def step(brancher: InProcessBrancher, alive: np.ndarray) -> BranchOutcome:
            return brancher.open(actions, alive, horizon)

        try:
            return self._step_both(step, alive)
        except (WrongEpisodeError, UnbranchableEnvError) as error:
            self.close()
            self._replays_are_exact = False
            self._is_forked[:] = True
            warn(f"{error}\nFrom now on all branches are forked, as with brancher='fork'.")
            return self._step_both(step, alive)

    def close(self) -> None:
        """Forget the open branches."""
        self._replays.close()
        self._forks.close()

    @property
    def side_effects(self) -> list[str]:
        """What steps were noticed to do outside the process."""
        return self._forks.side_effects

    def include_masks(self) -> None:
        """Have outcomes include masks of invalid actions, which the environments offer, from now on."""
        self._replays.include_masks()
        self._forks.include_masks()

    def _choose(self, alive: np.ndarray, horizon: int) -> None:
        """Decide in which environments branches are forked."""
        steps = self._replays.lengths + horizon
        self._is_forked = steps * self._step_cost.mean > self._fork_cost.mean
        n_branches = alive.sum(axis=1)
        self._fork_cost.count += int(n_branches[self._is_forked].sum())
        self._step_cost.count += int(steps[~self._is_forked] @ n_branches[~self._is_forked])

    def _step(self, actions: np.ndarray, alive: np.ndarray) -> BranchOutcome:
        return self._step_both(lambda brancher, alive: brancher.advance(actions, alive), alive)

    def _step_both(self, step: _Step, alive: np.ndarray) -> BranchOutcome:
        forked = alive & self._is_forked[:, None]
        if not forked.any():
            with self._step_cost.measured():
                return step(self._replays, alive)
        with self._fork_cost.measured():
            outcome = step(self._forks, forked)
        replayed = alive & ~forked
        if replayed.any():
            with self._step_cost.measured():
                copy_environments(step(self._replays, replayed), outcome, ~self._is_forked)
        return outcome
