"""jumanji."""

import math
from operator import attrgetter
from typing import Any, NamedTuple

import jax.numpy as jnp
import jumanji
import numpy as np
from gymnasium import spaces
from jumanji import specs

from sb3_hybrid_grpo.common import InvalidArgumentError

_MASK = "action_mask"


class _State(NamedTuple):
    state: Any
    timestep: Any


class JumanjiEnv:
    """
    An environment of jumanji. Observations are arrays of numbers, or flat dicts of them (``"agent_position.row"``) without the
    mask, which is apart.

    Its episodes end by themselves.

    :param env: the environment
    :raises InvalidArgumentError: if its rewards are those of several agents
    """

    arrays = "jax"
    max_episode_steps = math.inf

    def __init__(self, env: Any) -> None:
        self.env = env
        if env.reward_spec.shape:
            raise InvalidArgumentError(
                f"{type(env).__name__} of jumanji has rewards {env.reward_spec.shape} of several agents."
            )
        self.action_space = _action_space(env.action_spec)
        spec = env.observation_spec
        if isinstance(spec, specs.Array):
            self.observation_space: spaces.Space[Any] = _box(spec)
        else:
            self.observation_space = spaces.Dict({path: _box(part) for path, part in _parts(spec).items() if path != _MASK})
        masks = getattr(spec, _MASK, None)
        if masks is not None and int(np.prod(masks.shape)) == _number_of_masks(self.action_space):
            self.action_mask = self._action_mask

    def initial(self, rng: Any) -> _State:
        """Return the state in which an episode starts."""
        return _State(*self.env.reset(rng))

    def transition(self, state: _State, action: Any, rng: Any) -> _State:
        """Return the state that an action leads to."""
        return _State(*self.env.step(state.state, action))

    def observation(self, state: _State, rng: Any) -> Any:
        """Return what the agent sees of a state."""
        seen = state.timestep.observation
        if not isinstance(self.observation_space, spaces.Dict):
            return _numbers(seen)
        return {path: _numbers(attrgetter(path)(seen)) for path in self.observation_space.spaces}

    def reward(self, state: _State, action: Any, next_state: _State, rng: Any) -> Any:
        """Return the reward of a transition."""
        return next_state.timestep.reward

    def terminal(self, state: _State, rng: Any) -> Any:
        """Return whether an episode ends in a state."""
        return state.timestep.last() & (state.timestep.discount == 0)

    def truncation(self, state: _State, rng: Any) -> Any:
        """Return whether an episode is cut off in a state."""
        return state.timestep.last() & (state.timestep.discount != 0)

    def _action_mask(self, state: _State) -> Any:
        return state.timestep.observation.action_mask.ravel()


def make(name: str) -> JumanjiEnv:
    """
    Make an environment.

    :param name: its id in jumanji
    :return: the environment
    :raises InvalidArgumentError: if there is none
    """
    if name not in jumanji.registered_environments():
        known = ", ".join(sorted(jumanji.registered_environments()))
        raise InvalidArgumentError(f"jumanji has no environment {name!r}. It has {known}.")
    return JumanjiEnv(jumanji.make(name))


def _action_space(spec: Any) -> spaces.Space[Any]:
    if isinstance(spec, specs.DiscreteArray):
        return spaces.Discrete(int(spec.num_values))
    if isinstance(spec, specs.MultiDiscreteArray):
        return spaces.MultiDiscrete(np.asarray(spec.num_values), dtype=np.int32)
    return spaces.Box(np.asarray(spec.minimum), np.asarray(spec.maximum), spec.shape, dtype=spec.dtype)


def _number_of_masks(space: spaces.Space[Any]) -> int:
    return int(space.n if isinstance(space, spaces.Discrete) else getattr(space, "nvec", np.array(0)).sum())


def _parts(spec: Any, path: str = "") -> dict[str, Any]:
    """List the arrays of a nested observation, by where they are."""
    if isinstance(spec, specs.Array):
        return {path: spec}
    inner = {name: part for name, part in vars(spec).items() if isinstance(part, specs.Spec)}
    return {
        inner_path: array
        for name, part in inner.items()
        for inner_path, array in _parts(part, f"{path}.{name}".lstrip(".")).items()
    }


def _box(spec: Any) -> spaces.Box:
    shape = spec.shape or (1,)
    low, high = (
        np.broadcast_to(np.asarray(getattr(spec, bound, default), dtype=np.float32), shape)
        for bound, default in (("minimum", -np.inf), ("maximum", np.inf))
    )
    return spaces.Box(low, high, dtype=np.float32)


def _numbers(array: Any) -> Any:
    return jnp.asarray(array, dtype=jnp.float32).reshape(jnp.shape(array) or (1,))
