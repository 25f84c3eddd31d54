"""Masks of invalid actions, as environments offer them to sb3-contrib."""

import copy
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from sb3_contrib.common.maskable.utils import EXPECTED_METHOD_NAME, get_action_masks, is_masking_supported


def masks_of(env: gym.Env[Any, Any]) -> np.ndarray | None:
    """
    Ask which actions are valid in the present state.

    :param env: an environment
    :return: masks, [M]; ``None`` if it has no method that tells them
    """
    if not is_masking_supported(env) or not callable(env.get_wrapper_attr(EXPECTED_METHOD_NAME)):
        return None
    return np.ravel(get_action_masks(env))


def number_of_masks(space: spaces.Space[Any]) -> int:
    """
    Count the masks of a state.

    :param space: a discrete action space of any kind
    :return: M, as sb3-contrib counts them
    """
    if isinstance(space, spaces.MultiBinary):
        return 2 * int(np.prod(space.n))
    return int(space.n if isinstance(space, spaces.Discrete) else space.nvec.sum())  # type: ignore[attr-defined]


def copy_of_space(space: spaces.Space[Any]) -> spaces.Space[Any]:
    """
    Copy a space: if it refers to something that cannot be copied, such as its environment, its generators alone.

    :param space: a space
    :return: a space that draws by itself what this one would draw
    """
    try:
        return copy.deepcopy(space)
    except Exception:
        twin = copy.copy(space)
    twin._np_random = copy.deepcopy(space._np_random)
    if isinstance(space, spaces.Dict):
        twin.spaces = {key: copy_of_space(part) for key, part in space.spaces.items()}  # type: ignore[attr-defined]
    elif isinstance(space, spaces.Tuple):
        twin.spaces = tuple(map(copy_of_space, space.spaces))  # type: ignore[attr-defined]
    return twin


def sample(space: spaces.Space[Any], masks: np.ndarray | None) -> Any:
    """
    Choose a valid action at random.

    :param space: action space
    :param masks: which actions are valid, [M]; all if ``None``, or if the space is of a kind that no masks are for
    :return: an action
    """
    if masks is None or not isinstance(space, spaces.Discrete | spaces.MultiDiscrete | spaces.MultiBinary):
        return space.sample()
    masks = masks.astype(np.int8)
    if isinstance(space, spaces.MultiBinary):
        may_be_zero, may_be_one = masks.reshape(-1, 2).T
        return space.sample(may_be_one + (may_be_zero & may_be_one))
    if isinstance(space, spaces.MultiDiscrete):
        return space.sample(tuple(np.split(masks, np.cumsum(space.nvec)[:-1])))
    return space.sample(masks)
