"""Checks of arguments and outcomes, with messages that say what is allowed."""

import math
from collections.abc import Iterable
from typing import Any

import numpy as np

from sb3_hybrid_grpo.common.errors import InvalidArgumentError, InvalidOutcomeError
from sb3_hybrid_grpo.common.notices import warn


def check_positive_integer(name: str, value: int) -> None:
    """
    Check a number of samples or steps.

    :param name: name of the argument
    :param value: what the user passed
    :raises InvalidArgumentError: if it is no positive integer
    """
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < 1:
        raise InvalidArgumentError(f"`{name}` must be an integer of at least 1, not {value!r}.")


def check_number(
    name: str, value: float, above: float = -math.inf, at_least: float = -math.inf, at_most: float = math.inf
) -> None:
    """
    Check a real number.

    :param name: name of the argument
    :param value: what the user passed
    :param above: what it must exceed
    :param at_least: what it must reach
    :param at_most: what it must not exceed
    :raises InvalidArgumentError: if it is not finite or outside the bounds
    """
    is_number = isinstance(value, int | float | np.number) and not isinstance(value, bool) and math.isfinite(value)
    if not (is_number and above < value and at_least <= value <= at_most):
        limits = {"above": above, "at least": at_least, "at most": at_most}
        bounds = " and ".join(f"{word} {limit:g}" for word, limit in limits.items() if math.isfinite(limit))
        raise InvalidArgumentError(f"`{name}` must be a finite number{' ' + bounds if bounds else ''}, not {value!r}.")


def check_name(name: str, value: str, valid: Iterable[str]) -> None:
    """
    Check a choice.

    :param name: name of the argument
    :param value: what the user passed
    :param valid: the valid names
    :raises InvalidArgumentError: if it is none of them
    """
    if value not in valid:
        raise InvalidArgumentError(f"Unknown {name} {value!r}: choose one of {', '.join(map(repr, valid))}.")


def check_batches(n_steps: int, n_envs: int | None, batch_size: int, normalize_advantage: bool) -> None:
    """
    Check, as PPO does, that minibatches of a rollout can be normalised, and warn of a truncated one.

    :param n_steps: number of steps of a rollout in each environment
    :param n_envs: number of environments; ``None`` if they are not known yet
    :param batch_size: number of states in a minibatch
    :param normalize_advantage: whether advantages are normalised in each minibatch
    """
    if normalize_advantage:
        assert batch_size > 1, "`batch_size` must be greater than 1 to normalize advantages"
    if n_envs is None:
        return
    n_states = n_steps * n_envs
    if normalize_advantage:
        assert n_states > 1, f"`n_steps * n_envs` must be greater than 1. Currently {n_steps=} and {n_envs=}"
    if n_states % batch_size > 0:
        warn(
            f"A rollout of n_steps * n_envs = {n_steps} * {n_envs} = {n_states} states is no multiple of the mini-batch size "
            f"{batch_size}: at the end of every epoch there will be a truncated mini-batch of size {n_states % batch_size}."
        )


def check_outcome(observations: Any, rewards: np.ndarray) -> None:
    """
    Check that an environment returned numbers.

    :param observations: observations, [E, ...] or a dict of such arrays
    :param rewards: rewards, [E, ...]
    :raises InvalidOutcomeError: if there is NaN or infinity; the message names the environment
    """
    for name, values in {**_parts(observations), "reward": rewards}.items():
        if not _is_finite(values):
            env_idx = np.argwhere(~np.isfinite(values))[0][0]
            raise _no_number(env_idx, name, "in a branch" if rewards.ndim > 1 else "in a committed step")


def check_last_observation(observation: Any, env_idx: int) -> None:
    """
    Check the observation with which an episode was cut off.

    :param observation: observation, or a dict of them
    :param env_idx: number of the environment
    :raises InvalidOutcomeError: if there is NaN or infinity
    """
    for name, values in _parts(observation).items():
        if not _is_finite(np.asarray(values)):
            raise _no_number(env_idx, name, "at the end of an episode that was cut off")


def _parts(observations: Any) -> dict[str, Any]:
    return observations if isinstance(observations, dict) else {"observation": observations}


def _is_finite(values: np.ndarray) -> bool:
    return values.dtype.kind != "f" or bool(np.isfinite(values).all())


def _no_number(env_idx: int, name: str, when: str) -> InvalidOutcomeError:
    return InvalidOutcomeError(
        f"Environment {env_idx} returned NaN or infinity as {name} {when}. The policy was not updated with it. Check the "
        "environment's dynamics for this action, or wrap it in VecCheckNan to see where it starts."
    )
