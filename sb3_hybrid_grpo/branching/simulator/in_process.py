"""What all ways of branching environments of this process have in common."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import gymnasium as gym
import numpy as np

from sb3_hybrid_grpo.branching.simulator.simulator import Simulator
from sb3_hybrid_grpo.branching.snapshots import Cost
from sb3_hybrid_grpo.branching.surroundings import announce
from sb3_hybrid_grpo.common import BranchOutcome, empty_outcome


class InProcessBrancher(ABC):
    """
    Branches environments of this process, which are as they were whenever a method returns or raises.

    :param envs: the environments, as a vectorised environment holds them
    :param as_returned: keep the precision in which environments return observations and rewards, as ``SubprocVecEnv``
        does; otherwise observations have that of their space and rewards are float32, as in ``DummyVecEnv``
    :param timeout: seconds that all branches of an environment may take for one step
    """

    cost: Cost | None = None
    """What snapshots cost, where that is much."""

    def __init__(self, envs: Sequence[gym.Env[Any, Any]], as_returned: bool = False, timeout: float | None = None) -> None:
        self._simulators = [Simulator(env) for env in envs]
        self._observation_space = envs[0].observation_space
        self._as_returned = as_returned
        self._example: Any = None
        self._timeout = timeout
        self._steps_left = 0

    def open(self, actions: np.ndarray, alive: np.ndarray, horizon: int) -> BranchOutcome:
        """
        Open branches in the present states and take their first steps.

        :param actions: actions as the environments take them, [E, n, \\*action_shape]
        :param alive: which of them are branched, [E, n]
        :param horizon: number of steps that a branch may take in all
        :return: the outcomes, zero where not ``alive``
        :raises BranchError: if an environment raises
        """
        self.close()
        self._steps_left = horizon
        return self._step(actions, alive)

    def advance(self, actions: np.ndarray, alive: np.ndarray) -> BranchOutcome:
        """
        Take a further step in the open branches.

        :param actions: actions as the environments take them, [E, n, \\*action_shape]
        :param alive: which branches go on, [E, n]
        :return: the outcomes, zero where not ``alive``
        :raises BranchError: if an environment raises
        """
        return self._step(actions, alive)

    @property
    def side_effects(self) -> list[str]:
        """What steps were noticed to do outside the process."""
        return list(dict.fromkeys(effect for simulator in self._simulators for effect in simulator.notice.effects))

    @property
    def announcement(self) -> str | None:
        """What the user should know of side effects; ``None`` if there are none."""
        return announce(self._simulators[0].env, self.side_effects)

    @abstractmethod
    def close(self) -> None:
        """Forget the open branches."""

    def include_masks(self) -> None:
        """Have outcomes include masks of invalid actions, which the environments offer, from now on."""
        for simulator in self._simulators:
            simulator.include_masks()

    @abstractmethod
    def _step(self, actions: np.ndarray, alive: np.ndarray) -> BranchOutcome:
        """Take a step in branches, of which some may not be open yet."""

    def _note(self, example: Any) -> None:
        """Take an observation as an example of what an environment returns."""
        if self._as_returned:
            self._example = example

    def _empty_outcome(self, shape: tuple[int, ...], is_filled: bool = False) -> BranchOutcome:
        dtype = np.float64 if self._as_returned else np.float32
        return empty_outcome(self._observation_space, shape, self._example, dtype, is_filled, self._simulators[0].n_masks)
