"""Outcomes as arrays, whatever the observation space."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from gymnasium import spaces

from sb3_hybrid_grpo.common.type_aliases import BranchOutcome, BranchStep, Observations

_SPACES_WITH_PARTS = (spaces.Dict, spaces.Tuple)


def empty_outcome(
    space: spaces.Space[Any],
    shape: tuple[int, ...],
    example: Any = None,
    reward_dtype: type[np.floating[Any]] = np.float64,
    is_filled: bool = False,
    n_masks: int = 0,
) -> BranchOutcome:
    """
    Allocate an outcome of zeros.

    :param space: observation space
    :param shape: (E, n)
    :param example: an observation whose data type the outcome must hold as well
    :param reward_dtype: data type of the rewards
    :param is_filled: whether all observations will be stored: then they need not be zero before
    :param n_masks: number of masks M of each state; 0 if there are none
    :return: the outcome
    """
    terminated, truncated = np.zeros((2, *shape), dtype=bool)
    masks = np.zeros((*shape, n_masks), dtype=bool) if n_masks else None
    observations = _empty_observations(space, shape, example, np.empty if is_filled else np.zeros)
    return BranchOutcome(observations, np.zeros(shape, dtype=reward_dtype), terminated, truncated, masks)


def _empty_observations(
    space: spaces.Space[Any], shape: tuple[int, ...], example: Any, allocate: Callable[..., np.ndarray]
) -> Observations:
    """Allocate observations in the data type of their space, or in one that holds those of an example as well."""
    if isinstance(space, _SPACES_WITH_PARTS):
        keys = _keys(space.spaces)
        examples = dict.fromkeys(keys) if example is None else example
        parts: Any = {key: _empty_observations(space[key], shape, examples[key], allocate) for key in keys}
        return parts if isinstance(space, spaces.Dict) else tuple(parts.values())
    dtype = space.dtype if example is None else np.result_type(space.dtype, np.asarray(example).dtype)
    return allocate((*shape, *(space.shape or ())), dtype=dtype)


def store_observation(observations: Observations, index: tuple[int, int], obs: Any) -> None:
    """
    Put an observation into its place.

    :param observations: observations, [E, n, ...]
    :param index: where it goes
    :param obs: the observation as the environment returns it
    """
    if isinstance(observations, np.ndarray):
        observations[index] = obs
    else:
        for key in _keys(observations):
            observations[key][index] = obs[key]


def identical(first: Observations, second: Observations) -> bool:
    """
    Compare bit for bit.

    :param first: observations or another array
    :param second: the same of another time
    :return: whether they are equal
    """
    if isinstance(first, np.ndarray) and isinstance(second, np.ndarray):
        return first.tobytes() == second.tobytes()
    return all(identical(first[key], second[key]) for key in _keys(first))


def difference(first: BranchOutcome, second: BranchOutcome) -> str | None:
    """
    Compare outcomes bit for bit, apart from masks.

    :param first: an outcome
    :param second: the same of another time
    :return: what is not the same, for a message; ``None`` if all is
    """
    for name in ("observations", "rewards", "terminated", "truncated"):
        if not identical(getattr(first, name), getattr(second, name)):
            return name
    return None


def copy_environments(source: BranchOutcome, target: BranchOutcome, which: np.ndarray) -> None:
    """
    Copy what the branches of some environments led to.

    :param source: outcomes of all environments
    :param target: where they go
    :param which: the environments that are meant, [E]
    """
    for source_part, target_part in zip(source, target, strict=True):
        if source_part is not None:
            _copy_rows(source_part, target_part, which)


def _copy_rows(source: Any, target: Any, which: np.ndarray) -> None:
    if isinstance(source, np.ndarray):
        target[which] = source[which]
    else:
        for key in _keys(source):
            _copy_rows(source[key], target[key], which)


def join(outcomes: Sequence[BranchOutcome]) -> BranchOutcome:
    """
    Put the outcomes of several environments together.

    :param outcomes: outcomes, each of one environment
    :return: the outcome of all of them
    """
    return _merge(np.concatenate, [*outcomes])  # type: ignore[no-any-return]


def stack_steps(steps: Sequence[BranchStep]) -> BranchStep:
    """
    Put the steps of branches together in few arrays, which travel faster than many.

    :param steps: the steps
    :return: all of them, [K, E, n, ...]
    """
    return _merge(np.stack, [*steps])  # type: ignore[no-any-return]


def join_steps(stacked: Sequence[BranchStep]) -> list[BranchStep]:
    """
    Put branches of several environments together, of which some may have ended earlier than others.

    :param stacked: what ``stack_steps`` returned for environments
    :return: the steps of all of them, zero where branches have ended
    """
    outcome, alive = _concatenate_padded(stacked, axis=1)
    return [BranchStep(BranchOutcome(*(_at(k, part) for part in outcome)), alive[k]) for k in range(len(alive))]


def join_macro_steps(stacked: Sequence[Sequence[BranchStep]]) -> list[BranchStep]:
    """
    Put branches of several environments and of T macro-steps together.

    :param stacked: for each macro-step, what ``stack_steps`` returned for environments; nothing if nothing was branched, which
        must not be so in all of them
    :return: the steps of all of them, [E, T · n, ...], zero where branches have ended or there are none
    """
    example = next(filter(None, stacked))
    nothing = [_merge(_one_zero_step, [steps]) for steps in example]
    of_workers = zip(*(steps or nothing for steps in stacked), strict=True)
    return join_steps([_concatenate_padded(steps, axis=2) for steps in of_workers])


def _one_zero_step(arrays: Sequence[np.ndarray]) -> np.ndarray:
    return np.zeros_like(arrays[0][:1])


def _concatenate_padded(stacked: Sequence[BranchStep], axis: int) -> BranchStep:
    n_steps = max(len(steps.alive) for steps in stacked)

    def concatenate(arrays: Sequence[np.ndarray]) -> np.ndarray:
        padded = [
            array
            if len(array) == n_steps
            else np.concatenate((array, np.zeros((n_steps - len(array), *array.shape[1:]), array.dtype)))
            for array in arrays
        ]
        return np.concatenate(padded, axis=axis)

    return _merge(concatenate, [*stacked])  # type: ignore[no-any-return]


def _merge(merge: Callable[[Sequence[np.ndarray]], np.ndarray], structures: Sequence[Any]) -> Any:
    """Merge structures of equal shape, array by array."""
    first = structures[0]
    if first is None or isinstance(first, np.ndarray):
        return None if first is None else merge(structures)
    if isinstance(first, dict):
        return {key: _merge(merge, [each[key] for each in structures]) for key in first}
    parts = (_merge(merge, part) for part in zip(*structures, strict=True))
    return type(first)(*parts) if hasattr(first, "_fields") else tuple(parts)


def _at(k: int, arrays: Any) -> Any:
    if arrays is None or isinstance(arrays, np.ndarray):
        return None if arrays is None else arrays[k]
    return {key: part[k] for key, part in arrays.items()} if isinstance(arrays, dict) else tuple(part[k] for part in arrays)


def _keys(observations: Any) -> Any:
    return observations if isinstance(observations, dict) else range(len(observations))
