"""Brax, and what has its interface: MuJoCo Playground."""

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from gymnasium import spaces

from sb3_hybrid_grpo.common import InvalidArgumentError

_REFUSED_WRAPPERS = ("AutoResetWrapper", "BraxAutoResetWrapper", "VmapWrapper", "EpisodeWrapper")


class BraxEnv:
    """
    An environment of Brax.

    :param env: the environment, without Brax's wrappers for training
    :param max_episode_steps: number of steps after which an episode is cut off
    :raises InvalidArgumentError: if it has such wrappers
    """

    arrays = "jax"

    def __init__(self, env: Any, max_episode_steps: float = 1000) -> None:
        wrapper = env
        while wrapper is not None:
            if type(wrapper).__name__ in _REFUSED_WRAPPERS:
                raise InvalidArgumentError(
                    f"The environment of Brax is in {type(wrapper).__name__}, and FunctionalVecEnv does what this wrapper "
                    f"does "
                    "itself: pass the environment without it, as brax.envs.get_environment makes it."
                )
            wrapper = vars(wrapper).get("env")
        self.env = env
        self.max_episode_steps = max_episode_steps
        self.action_space = spaces.Box(-1, 1, (env.action_size,), dtype=np.float32)
        self.observation_space = _space(jax.eval_shape(env.reset, jax.random.PRNGKey(0)).obs)

    def initial(self, rng: Any) -> Any:
        """Return the state in which an episode starts."""
        return self.env.reset(rng)

    def transition(self, state: Any, action: Any, rng: Any) -> Any:
        """Return the state that an action leads to."""
        return self.env.step(state, action)

    def observation(self, state: Any, rng: Any) -> Any:
        """Return what the agent sees of a state."""
        return state.obs

    def reward(self, state: Any, action: Any, next_state: Any, rng: Any) -> Any:
        """Return the reward of a transition."""
        return next_state.reward

    def terminal(self, state: Any, rng: Any) -> Any:
        """Return whether an episode ends in a state."""
        return state.done > 0


def make(name: str) -> BraxEnv:
    """
    Make an environment.

    :param name: its name in Brax, and with a slash the backend: ``ant``, ``ant/spring``
    :return: the environment
    :raises InvalidArgumentError: if there is none
    """
    from brax import envs

    name, _, backend = name.partition("/")
    try:
        return BraxEnv(envs.get_environment(name, **({"backend": backend} if backend else {})))
    except KeyError:
        raise InvalidArgumentError(f"Brax has no environment {name!r}. It has {', '.join(sorted(envs._envs))}.") from None


def _space(observation: Any) -> spaces.Space[Any]:
    if isinstance(observation, Mapping):
        return spaces.Dict({key: _space(part) for key, part in observation.items()})
    return spaces.Box(-np.inf, np.inf, observation.shape, dtype=observation.dtype)
