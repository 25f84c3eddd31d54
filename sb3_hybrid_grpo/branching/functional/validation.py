"""What a functional environment must be: looked at before it is used."""

import random
from typing import Any

import numpy as np
import torch as th
from gymnasium import spaces

from sb3_hybrid_grpo.branching.functional.contract import Engine, FunctionalEnv, Functions, Rows, Stepped
from sb3_hybrid_grpo.branching.functional.trees import leaves, map_trees
from sb3_hybrid_grpo.common import FunctionalEnvError, InvalidArgumentError, InvalidOutcomeError

_METHODS = ("initial", "transition", "observation", "reward", "terminal")
_JOINT_METHODS = ("joint_start", "joint_step")
_SEED = 0
_TIME = 1


def check_spaces(env: FunctionalEnv) -> None:
    """
    Check that an object has the interface.

    :param env: the environment
    :raises FunctionalEnvError: if it has not
    """
    methods = _JOINT_METHODS if hasattr(env, "joint_step") else _METHODS
    missing = [name for name in methods if not callable(getattr(env, name, None))]
    missing += [
        name for name in ("observation_space", "action_space") if not isinstance(getattr(env, name, None), spaces.Space)
    ]
    if missing:
        raise FunctionalEnvError(
            f"{type(env).__name__} is no functional environment: it lacks {', '.join(missing)}. It must have Gymnasium's "
            f"FuncEnv "
            "interface; environments of gymnax, Brax, MuJoCo Playground, jumanji and pgx are made by ids, such as "
            "'gymnax:CartPole-v1'."
        )


def check_max_episode_steps(env: FunctionalEnv, max_episode_steps: float | None) -> float:
    """
    Find out when episodes are cut off.

    :param env: the environment
    :param max_episode_steps: what the user wants, if anything
    :return: number of steps
    :raises InvalidArgumentError: if nobody says
    """
    if max_episode_steps is None:
        max_episode_steps = getattr(env, "max_episode_steps", None)
    if max_episode_steps is None:
        raise InvalidArgumentError(
            f"{type(env).__name__} has no `max_episode_steps`: pass max_episode_steps=500, say, or math.inf if each of its "
            "episodes ends by itself."
        )
    if not max_episode_steps >= 1:
        raise InvalidArgumentError(f"max_episode_steps={max_episode_steps!r} must be at least 1.")
    return max_episode_steps


def check_functional_env(env: FunctionalEnv, functions: Functions, arrays: str, engine: Engine, n_envs: int) -> int:
    """
    Take one step twice, and look at what comes out.

    :param env: the environment
    :param functions: its functions
    :param arrays: the library that it is written in
    :param engine: its engine
    :param n_envs: number of environments E
    :return: number of masks M of a state, 0 if it tells none
    :raises FunctionalEnvError: if it is impure, or its arrays have other shapes or data types than they should
    :raises InvalidOutcomeError: if there is NaN or infinity among them
    """
    if isinstance(n_envs, bool) or not isinstance(n_envs, int) or n_envs < 1:
        raise InvalidArgumentError(f"n_envs={n_envs!r} must be a positive integer.")
    name = type(env).__name__
    keys = engine.keys([_SEED + idx for idx in range(n_envs)])
    actions = _sample(env.action_space, n_envs)
    generators = _global_generators()
    functions.watch = lambda state, next_state: _check_states(name, engine.leaves(state), engine.leaves(next_state))
    try:
        started = engine.start(keys, 0)
        before = None if arrays == "jax" else map_trees(_copy, started.rows)
        stepped = _step(engine, started, keys, actions)
        first = _traces(functions) if arrays == "jax" else _bits(stepped)
        attributes = dict(vars(env))
        second = _traces(functions) if arrays == "jax" else _bits(_step(engine, started, keys, actions))
        # Compiles what is needed when the first episodes end.
        engine.restart(stepped, keys, _TIME, np.ones(n_envs, dtype=bool))
    except (FunctionalEnvError, InvalidArgumentError):
        raise
    except Exception as error:
        raise FunctionalEnvError(
            f"{name} raised {type(error).__name__} in its first step with arrays={arrays!r}, {n_envs} environments and "
            f"actions "
            f"of {env.action_space}: {error}"
        ) from error
    finally:
        functions.watch = None
    _check_pure(env, attributes, generators, before, started.rows, first == second)
    _check_states(name, engine.leaves(started.rows.state), engine.leaves(stepped.rows.state))
    _check_arrays(env, engine, started, stepped, n_envs)
    for what, tree in (("first observations", started.observations), ("observations", stepped.observations)):
        _check_finite(name, what, engine.to_numpy(tree))
    _check_finite(name, "rewards", engine.to_numpy(stepped.rewards))
    return 0 if started.masks is None else int(np.prod(started.masks.shape[1:]))


def _traces(functions: Functions) -> list[Any]:
    from sb3_hybrid_grpo.branching.functional.compilation import traces

    return traces(functions)


def _step(engine: Engine, started: Stepped, keys: Any, actions: np.ndarray) -> Stepped:
    return engine.step(started.rows, keys, np.array([_TIME]), actions, np.ones(len(actions), dtype=bool))


def _check_pure(
    env: FunctionalEnv, attributes: dict[str, Any], generators: dict[str, Any], before: Rows | None, after: Rows, is_same: bool
) -> None:
    name = type(env).__name__
    used = [generator for generator, state in _global_generators().items() if state != generators[generator]]
    if used:
        raise FunctionalEnvError(
            f"{name} draws from {' and '.join(used)}, which the whole process shares: its steps are no functions. Draw "
            f"from the "
            "`rng` that each function is given: with jax.random, or in NumPy and PyTorch with "
            "sb3_hybrid_grpo.branching.functional.random."
        )
    now = vars(env)
    changed = [key for key in {**attributes, **now} if attributes.get(key, now) is not now.get(key, attributes)]
    if changed:
        raise FunctionalEnvError(
            f"{name} changes its attributes {', '.join(sorted(changed))} in a step: its steps are no functions. Put what "
            f"changes "
            "into the state that `transition` returns."
        )
    if before is not None and _bits(before) != _bits(after):
        raise FunctionalEnvError(
            f"{name} writes into the state that its functions are given: make new arrays in `transition`, as `position + "
            f"velocity` "
            "does and `position += velocity` does not."
        )
    if not is_same:
        raise FunctionalEnvError(
            f"{name} returned two different things for the same state, action and `rng`: its steps are no functions. What "
            f"do they "
            "depend on beside their arguments?"
        )


def _check_states(name: str, first: dict[str, Any], then: dict[str, Any]) -> None:
    """Check that states are alike: whatever has a shape."""
    if first.keys() != then.keys():
        raise FunctionalEnvError(
            f"{name}: a state has {', '.join(first)}, and `transition` returns {', '.join(then)}. All states must be alike."
        )
    for path, array in then.items():
        if hasattr(first[path], "shape") and hasattr(array, "shape"):
            expected = first[path]
            _check_array(name, f"state{path}", array, tuple(expected.shape), expected.dtype, "before `transition` it had")


def _check_arrays(env: FunctionalEnv, engine: Engine, started: Stepped, stepped: Stepped, n_envs: int) -> None:
    name = type(env).__name__
    for path, array in engine.leaves(stepped.rows.state).items():
        if tuple(array.shape[:1]) != (n_envs,):
            raise FunctionalEnvError(
                f"{name}: state{path} has shape {tuple(array.shape)} for {n_envs} environments: its first axis must be over "
                "environments."
            )
    for observations in (started.observations, stepped.observations):
        _check_observations(name, env.observation_space, observations, n_envs)
    _check_array(name, "the reward", stepped.rewards, (n_envs,), None, "")
    for what, flags in (("`terminal`", stepped.terminated), ("`truncation`", stepped.truncated)):
        _check_array(name, f"what {what} returns", flags, (n_envs,), np.dtype(bool), "an end must have")


def _check_observations(name: str, space: spaces.Space[Any], observations: Any, n_envs: int) -> None:
    if isinstance(space, spaces.Dict):
        if not isinstance(observations, dict) or observations.keys() != space.spaces.keys():
            raise FunctionalEnvError(f"{name}: the observation must be a dict of {', '.join(space.spaces)}, as its space is.")
        for key, part in space.spaces.items():
            _check_array(
                name, f"observation[{key!r}]", observations[key], (n_envs, *_shape(part)), part.dtype, "its space has"
            )
        return
    _check_array(name, "the observation", observations, (n_envs, *_shape(space)), space.dtype, "its space has")


def _check_array(name: str, what: str, array: Any, shape: tuple[int, ...], dtype: Any, expected_by: str) -> None:
    found = getattr(array, "shape", None)
    if found is None or tuple(found) != shape:
        got = f"shape {tuple(found)}" if found is not None else f"no shape, it is a {type(array).__name__}"
        raise FunctionalEnvError(
            f"{name}: {what} has {got}, and not {shape}. With NumPy and PyTorch the first axis is over environments."
        )
    if dtype is not None and _dtype_name(array.dtype) != _canonical(_dtype_name(dtype), array):
        raise FunctionalEnvError(
            f"{name}: {what} has the data type {_dtype_name(array.dtype)}, and {expected_by} {_dtype_name(dtype)}: convert it."
        )


def _check_finite(name: str, what: str, tree: Any) -> None:
    for path, array in leaves(tree):
        if np.issubdtype(array.dtype, np.floating) and not np.isfinite(array).all():
            raise InvalidOutcomeError(
                f"{name} returned NaN or infinity at once: its {what}{path} have {array[~np.isfinite(array)][0]}."
            )


def _shape(space: spaces.Space[Any]) -> tuple[int, ...]:
    return tuple(space.shape or ())


def _dtype_name(dtype: Any) -> str:
    return str(dtype).removeprefix("torch.")


def _canonical(dtype: str, array: Any) -> str:
    """Return the data type that an array of JAX has in place of one of 64 bits, which is off by default."""
    is_short = type(array).__module__.startswith("jax") and dtype in ("int64", "float64", "uint64")
    return dtype.replace("64", "32") if is_short and "64" not in str(array.dtype) else dtype


def _sample(space: spaces.Space[Any], n: int) -> np.ndarray:
    """Sample actions without touching the space's generator."""
    generator = space._np_random
    space.seed(0)
    try:
        return np.stack([space.sample() for _ in range(n)])
    finally:
        space._np_random = generator


def _copy(array: Any) -> Any:
    return array.clone() if isinstance(array, th.Tensor) else np.array(array)


def _bits(tree: Any) -> list[bytes]:
    return [_to_numpy(part).tobytes() for _, part in leaves(tree)]


def _to_numpy(array: Any) -> np.ndarray:
    return array.cpu().numpy() if isinstance(array, th.Tensor) else np.asarray(array)


def _global_generators() -> dict[str, Any]:
    _, numbers, *place = np.random.get_state()
    return {
        "np.random": (np.asarray(numbers).tobytes(), *place),
        "random": random.getstate(),
        "torch": th.get_rng_state().numpy().tobytes(),
    }
