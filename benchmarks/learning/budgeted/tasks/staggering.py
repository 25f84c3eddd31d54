"""Environments whose episodes end one after the other."""

from typing import Any, SupportsFloat

import gymnasium as gym
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv


class CutOnce(gym.Wrapper[Any, Any, Any, Any]):
    """
    Truncates an episode early, once.

    :param env: the environment
    :param n_steps: after how many steps of the environment
    """

    def __init__(self, env: gym.Env[Any, Any], n_steps: int) -> None:
        super().__init__(env)
        self._steps_left = n_steps

    def step(self, action: Any) -> tuple[Any, SupportsFloat, bool, bool, dict[str, Any]]:
        """
        Take a step.

        :param action: the action
        :return: what the environment returns, truncated if it is the step to cut after
        """
        obs, reward, terminated, truncated, info = self.env.step(action)
        self._steps_left -= 1
        return obs, reward, terminated, truncated or self._steps_left == 0, info


def stagger(env: VecEnv) -> VecEnv:
    """
    Cut an episode of each environment at a time of its own, within the first time limit, so that episodes that reach the limit
    end one after the other. A short rollout of environments that were reset together sees one phase of their episodes only.

    :param env: environments; those without a time limit are not cut
    :return: the same
    """
    assert isinstance(env, DummyVecEnv)
    for i, each in enumerate(env.envs):
        limit = each.spec.max_episode_steps if each.spec else None
        if limit:
            env.envs[i] = CutOnce(each, max(limit * (i + 1) // env.num_envs, 1))
    return env
