"""gymnax, before and since version 1."""

from typing import Any

import gymnax
import jax
import numpy as np
from gymnasium import spaces
from gymnax.environments import spaces as gymnax_spaces

from sb3_hybrid_grpo.common import InvalidArgumentError


class GymnaxEnv:
    """
    An environment of gymnax.

    :param env: the environment
    :param params: its parameters; by default its own
    """

    arrays = "jax"

    def __init__(self, env: Any, params: Any = None) -> None:
        self.env = env
        self.params = env.default_params if params is None else params
        self.max_episode_steps = int(self.params.max_steps_in_episode)
        self.observation_space = _gymnasium_space(env.observation_space(self.params))
        self.action_space = _gymnasium_space(env.action_space(self.params))
        self._tells_truncation = hasattr(env, "is_truncated")
        self._unlimited = self.params.replace(max_steps_in_episode=np.iinfo(np.int32).max)

    def joint_start(self, rng: Any) -> tuple[Any, Any]:
        """Return the state in which an episode starts, and what the agent sees of it."""
        observation, state = self.env.reset_env(rng, self.params)
        return state, self._seen(observation)

    def joint_step(self, state: Any, action: Any, rng: Any) -> tuple[Any, Any, Any, Any, Any]:
        """Return the next state, what the agent sees of it, the reward, and whether the episode ends or is cut off there."""
        observation, next_state, reward, ended, _ = self.env.step_env(rng, state, action, self.params)
        if self._tells_truncation:
            terminated, truncated = ended, self.env.is_truncated(next_state, self.params)
        else:
            # Before version 1 an end is an end. What is computed twice here is compiled once.
            terminated = self.env.step_env(rng, state, action, self._unlimited)[3]
            truncated = ended & ~terminated
        return next_state, self._seen(observation), reward, terminated, truncated

    def _seen(self, observation: Any) -> Any:
        space = self.observation_space
        wanted = {key: part.dtype for key, part in space.spaces.items()} if isinstance(space, spaces.Dict) else space.dtype
        return jax.tree.map(lambda part, dtype: part.astype(dtype), observation, wanted)


def make(name: str) -> GymnaxEnv:
    """
    Make an environment.

    :param name: its name in gymnax
    :return: the environment
    :raises InvalidArgumentError: if there is none
    """
    if name not in gymnax.registered_envs:
        raise InvalidArgumentError(f"gymnax has no environment {name!r}. It has {', '.join(sorted(gymnax.registered_envs))}.")
    return GymnaxEnv(*gymnax.make(name))


def _gymnasium_space(space: Any) -> spaces.Space[Any]:
    if isinstance(space, gymnax_spaces.Discrete):
        return spaces.Discrete(int(space.n))
    if isinstance(space, gymnax_spaces.Dict):
        return spaces.Dict({key: _gymnasium_space(part) for key, part in space.spaces.items()})
    if isinstance(space, gymnax_spaces.Box):
        dtype = np.dtype(space.dtype)
        low, high = (np.broadcast_to(np.asarray(bound, dtype=dtype), space.shape) for bound in (space.low, space.high))
        return spaces.Box(low, high, dtype=dtype.type)
    raise InvalidArgumentError(f"What {type(space).__name__} of gymnax is in Gymnasium is unknown.")
