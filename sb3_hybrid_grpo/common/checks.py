"""Checks of arguments, with messages that say what is allowed."""

import math
from collections.abc import Iterable

import numpy as np

from sb3_hybrid_grpo.common.type_aliases import InvalidArgumentError


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
    if not (math.isfinite(value) and above < value and at_least <= value <= at_most):
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
