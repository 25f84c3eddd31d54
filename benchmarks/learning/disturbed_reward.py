"""Rewards on another scale, with heavy-tailed noise."""

import zlib
from typing import Any

import gymnasium as gym
import numpy as np


class DisturbedReward(gym.Wrapper):
    """
    Scale rewards and add noise of Student's t distribution with 2 degrees of freedom, whose variance is infinite.

    The noise comes from the environment's random numbers, so that a branch that repeats the committed action repeats its
    noise, and from the action, so that it does not cancel between the actions of a state.

    :param env: the environment
    :param scale: factor of the rewards
    :param noise: scale of the noise, after scaling the rewards
    """

    def __init__(self, env: gym.Env, scale: float = 1.0, noise: float = 0.0) -> None:
        super().__init__(env)
        self.scale = scale
        self.noise = noise

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """
        Step, and disturb the reward.

        :param action: the action
        :return: as the environment's own step
        """
        obs, reward, terminated, truncated, info = self.env.step(action)
        reward = self.scale * float(reward)
        if self.noise:
            reward += self.noise * student_t(self.np_random.random(), np.asarray(action, dtype=np.float64))
        return obs, reward, terminated, truncated, info


def student_t(uniform: float, action: np.ndarray) -> float:
    """
    Draw from Student's t distribution with 2 degrees of freedom.

    :param uniform: a uniform random number in [0, 1)
    :param action: rotates the random number
    :return: the quantile at the rotated number
    """
    rotated = (uniform + zlib.crc32(action.tobytes()) / 2**32) % 1.0
    u = min(max(rotated, 1e-9), 1 - 1e-9)
    return (2 * u - 1) / (2 * u * (1 - u)) ** 0.5
