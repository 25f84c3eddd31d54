"""States of the past, from many of which branches start at once."""

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import torch as th
from gymnasium import spaces

from sb3_hybrid_grpo.branching.batched.task_simulator import States, TaskSimulator
from sb3_hybrid_grpo.common import BranchOutcome, empty_outcome


class RememberedStates(Protocol):
    """
    States of E environments that were kept. Branches start from all T of them: of n branches of an environment the first n / T
    from its first state, and so on.
    """

    @property
    def branches_at_once(self) -> int:
        """Number of branches that are to be opened together at most."""

    @property
    def pays_in_workers(self) -> bool:
        """Whether a worker, which follows branches by itself anyway, saves time by doing so late."""

    def remember(self) -> None:
        """Keep the present states."""

    def confirm(self) -> np.ndarray | None:
        """
        Tell whether the states have been kept.

        :return: for which environments that came too late, since they are others than before, [E]; ``None`` if for none
        """

    def forget(self) -> None:
        """Forget the states that were kept."""

    def open(self, actions: np.ndarray, alive: np.ndarray, horizon: int) -> BranchOutcome:
        """
        Open branches at the states that were kept, forget these, and take the first steps.

        :param actions: actions as the environments take them, [E, n, \\*action_shape]
        :param alive: which of them are branched, [E, n]
        :param horizon: number of steps that a branch may take in all
        :return: the outcomes, zero where not ``alive``
        """

    def advance(self, actions: np.ndarray, alive: np.ndarray) -> BranchOutcome:
        """
        Take a further step in the open branches.

        :param actions: actions as the environments take them, [E, n, \\*action_shape]
        :param alive: which branches go on, [E, n]
        :return: the outcomes, zero where not ``alive``
        """


class TaskStates:
    """
    Remembers states of this process's environments, see ``RememberedStates``.

    :param tasks: the environments
    :param observation_space: their observation space
    :param is_worker: whether this process is one of many, with the precision of ``SubprocVecEnv`` and a thread for each; else
        branches run in as many threads as PyTorch uses
    """

    branches_at_once = 2048
    pays_in_workers = True

    def __init__(self, tasks: Sequence[TaskSimulator], observation_space: spaces.Space[Any], is_worker: bool = False) -> None:
        self._tasks = tasks
        self._observation_space = observation_space
        self._is_worker = is_worker
        self._branches: list[tuple[np.ndarray, States]] = []

    def remember(self) -> None:
        """Keep the present states."""
        for task in self._tasks:
            task.remember()

    def confirm(self) -> None:
        """Do nothing: they are kept."""

    def forget(self) -> None:
        """Forget the states that were kept."""
        for task in self._tasks:
            task.forget()

    def open(self, actions: np.ndarray, alive: np.ndarray, horizon: int) -> BranchOutcome:
        """Open branches, see ``RememberedStates``."""
        self._branches = []
        for task, is_alive in zip(self._tasks, alive, strict=True):
            states, rows = task.recall(), np.flatnonzero(is_alive)
            self._branches.append((rows, states.select(rows // (len(is_alive) // len(states.physics)))))
        return self._step(actions, alive)

    def advance(self, actions: np.ndarray, alive: np.ndarray) -> BranchOutcome:
        """Take a further step in the open branches, see ``RememberedStates``."""
        for env_idx, (rows, states) in enumerate(self._branches):
            goes_on = alive[env_idx, rows]
            self._branches[env_idx] = rows[goes_on], states.select(goes_on)
        return self._step(actions, alive)

    def _step(self, actions: np.ndarray, alive: np.ndarray) -> BranchOutcome:
        reward_dtype, n_threads = (np.float64, 1) if self._is_worker else (np.float32, th.get_num_threads())
        outcome = empty_outcome(self._observation_space, alive.shape, reward_dtype=reward_dtype)
        assert isinstance(outcome.observations, np.ndarray)
        for env_idx, (task, (rows, states)) in enumerate(zip(self._tasks, self._branches, strict=True)):
            if len(rows) == 0:
                continue
            stepped = task.step(states, actions[env_idx, rows], n_threads)
            outcome.observations[env_idx, rows] = stepped.observations
            outcome.rewards[env_idx, rows] = stepped.rewards
            outcome.terminated[env_idx, rows] = stepped.terminated
            outcome.truncated[env_idx, rows] = stepped.truncated
            self._branches[env_idx] = rows, stepped.states
        return outcome
