"""Tasks that need a memory, since velocities are not observed, under ids of Gymnasium."""

from collections.abc import Sequence
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces


class Masked(gym.ObservationWrapper[np.ndarray, Any, np.ndarray]):
    """
    Leave some of the observed quantities out.

    :param env: an environment with vectors as observations
    :param seen: indices of those that remain
    """

    def __init__(self, env: gym.Env[np.ndarray, Any], seen: Sequence[int]) -> None:
        super().__init__(env)
        space = env.observation_space
        assert isinstance(space, spaces.Box)
        self._seen = list(seen)
        self.observation_space = spaces.Box(space.low[self._seen], space.high[self._seen], dtype=space.dtype.type)

    def observation(self, observation: np.ndarray) -> np.ndarray:
        """
        Pick what is seen.

        :param observation: the whole observation
        :return: the rest
        """
        return observation[self._seen]


def make(env_id: str, seen: Sequence[int], **kwargs: Any) -> Masked:
    """
    Make a task.

    :param env_id: the environment with all its observations
    :param seen: indices of those that remain
    :param kwargs: the environment's arguments
    :return: the environment
    """
    return Masked(gym.make(env_id, **kwargs).unwrapped, seen)


gym.register("CartPoleNoVelocity-v0", make, max_episode_steps=500, kwargs={"env_id": "CartPole-v1", "seen": (0, 2)})
gym.register("PendulumNoVelocity-v0", make, max_episode_steps=200, kwargs={"env_id": "Pendulum-v1", "seen": (0, 1)})
