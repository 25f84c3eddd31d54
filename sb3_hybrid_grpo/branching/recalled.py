"""Branches of many macro-steps at once, from states that were remembered."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from gymnasium import spaces

from sb3_hybrid_grpo.branching.outcomes import empty_outcome
from sb3_hybrid_grpo.branching.task_simulator import States, TaskSimulator
from sb3_hybrid_grpo.branching.vec_wrappers import VecWrapperView
from sb3_hybrid_grpo.common.type_aliases import BranchOutcome, Committed, Observations


class RecalledBranches:
    """
    A ``Brancher`` whose branches start from T remembered states of each environment: of n branches, the first n / T start from
    the first of them, and so on. The environments themselves are not touched.

    :param tasks: the environments
    :param views: what vectorised wrappers do to the outcomes
    :param observation_space: observation space of the environments
    """

    uses_simulator = True

    def __init__(
        self, tasks: Sequence[TaskSimulator], views: Sequence[VecWrapperView], observation_space: spaces.Space[Any]
    ) -> None:
        self._tasks = tasks
        self._views = views
        self._observation_space = observation_space
        self._starts = [task.recall() for task in tasks]
        self._branches: list[tuple[np.ndarray, States]] = []

    def open(self, actions: np.ndarray, alive: np.ndarray, horizon: int, obs: Observations | None = None) -> BranchOutcome:
        """
        Open branches at the remembered states and take their first steps.

        :param actions: actions as the environments take them, [E, n, \\*action_shape]
        :param alive: which of them are branched, [E, n]
        :param horizon: not needed
        :param obs: not needed
        :return: their outcomes as the simulators return them, zero where not ``alive``
        """
        self._branches = []
        for start, is_alive in zip(self._starts, alive, strict=True):
            rows = np.flatnonzero(is_alive)
            self._branches.append((rows, start.select(rows // (alive.shape[1] // len(start.physics)))))
        return self._step(actions, alive)

    def advance(self, actions: np.ndarray, alive: np.ndarray) -> BranchOutcome:
        """
        Take a further step in the open branches.

        :param actions: actions as the environments take them, [E, n, \\*action_shape]
        :param alive: which branches go on, [E, n]
        :return: the outcomes as the simulators return them, zero where not ``alive``
        """
        for env_idx, (rows, states) in enumerate(self._branches):
            goes_on = alive[env_idx, rows]
            self._branches[env_idx] = rows[goes_on], states.select(goes_on)
        return self._step(actions, alive)

    def close(self) -> None:
        """Forget the open branches."""
        self._branches = []

    def observed(
        self, outcome: BranchOutcome, earlier: Sequence[BranchOutcome] = (), committed: Committed | None = None
    ) -> BranchOutcome:
        """
        Send simulator outcomes through the vectorised wrappers, each with the statistics after its own macro-step.

        :param outcome: what ``open`` or ``advance`` returned
        :param earlier: not needed
        :param committed: not needed
        :return: what the wrappers would return for it
        """
        for view in self._views:
            (outcome,) = view([outcome])
        return outcome

    def _step(self, actions: np.ndarray, alive: np.ndarray) -> BranchOutcome:
        outcome = empty_outcome(self._observation_space, alive.shape, reward_dtype=np.float32)
        assert isinstance(outcome.observations, np.ndarray)
        for env_idx, (task, (rows, states)) in enumerate(zip(self._tasks, self._branches, strict=True)):
            if len(rows) == 0:
                continue
            stepped = task.step(states, actions[env_idx, rows])
            outcome.observations[env_idx, rows] = stepped.observations
            outcome.rewards[env_idx, rows] = stepped.rewards
            outcome.terminated[env_idx, rows] = stepped.terminated
            outcome.truncated[env_idx, rows] = stepped.truncated
            self._branches[env_idx] = rows, stepped.states
        return outcome
