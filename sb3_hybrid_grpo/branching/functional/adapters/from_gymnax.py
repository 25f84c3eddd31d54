"""gymnax, before and since version 1."""

from typing import Any, NamedTuple

import gymnax
import jax
import jax.numpy as jnp
import numpy as np
from gymnasium import spaces
from gymnax.environments import spaces as gymnax_spaces

from sb3_hybrid_grpo.common import InvalidArgumentError


class _State(NamedTuple):
    state: Any
    observation: Any
    reward: Any
    terminated: Any
    truncated: Any


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

    def initial(self, rng: Any) -> _State:
        """Return the state in which an episode starts."""
        observation, state = self.env.reset_env(rng, self.params)
        nothing = jnp.array(False)
        return _State(state, self._seen(observation), jnp.float32(0), nothing, nothing)

    def transition(self, state: _State, action: Any, rng: Any) -> _State:
        """Return the state that an action leads to."""
        observation, next_state, reward, ended, _ = self.env.step_env(rng, state.state, action, self.params)
        if self._tells_truncation:
            terminated, truncated = ended, self.env.is_truncated(next_state, self.params)
        else:
            # Before version 1 an end is an end. What is computed twice here is compiled once.
            terminated = self.env.step_env(rng, state.state, action, self._unlimited)[3]
            truncated = ended & ~terminated
        return _State(next_state, self._seen(observation), jnp.float32(reward), terminated, truncated)

    def observation(self, state: _State, rng: Any) -> Any:
        """Return what the agent sees of a state."""
        return state.observation

    def reward(self, state: _State, action: Any, next_state: _State, rng: Any) -> Any:
        """Return the reward of a transition."""
        return next_state.reward

    def terminal(self, state: _State, rng: Any) -> Any:
        """Return whether an episode ends in a state."""
        return state.terminated

    def truncation(self, state: _State, rng: Any) -> Any:
        """Return whether an episode is cut off in a state."""
        return state.truncated

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
