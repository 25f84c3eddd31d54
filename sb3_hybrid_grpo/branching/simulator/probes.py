"""Environments that are tried before they are branched: how they are reset, and what is said where they raise."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import gymnasium as gym

from sb3_hybrid_grpo.common import BranchError


def failed_probe(env: gym.Env[Any, Any], error: Exception, where: str = "", more: str = "") -> BranchError:
    """
    Describe what an environment raised while it was tried.

    :param env: the environment
    :param error: what it raised
    :param where: where that was, if not in its place
    :param more: what else is to be said
    :return: the error to raise
    """
    return BranchError(
        f"{env} raised {type(error).__name__} when a few steps with actions sampled from its action space were tried{where}: "
        f"{error}{more}"
    )


class ResetError(BranchError):
    """An environment raised when it was reset to be probed."""


_reset_options: dict[int, dict[str, Any]] = {}


@contextmanager
def reset_options(envs: Sequence[gym.Env[Any, Any]], options: Sequence[dict[str, Any]]) -> Iterator[None]:
    """
    Have ``Simulator.reset`` give options to environments.

    :param envs: the environments
    :param options: their options, if there are any
    """
    _reset_options.update({id(env): of_env for env, of_env in zip(envs, options, strict=False)})
    try:
        yield
    finally:
        _reset_options.clear()


def reset_to_probe(env: gym.Env[Any, Any], root: gym.Env[Any, Any]) -> None:
    """
    Reset an environment with its options.

    :param env: the environment
    :param root: the same without the wrappers that only watch it
    :raises ResetError: if it raises
    """
    options = _reset_options.get(id(env))
    keywords: dict[str, Any] = {"options": options} if options else {}
    try:
        root.reset(**keywords)
    except Exception as error:
        given = f"options={options!r}" if options else "no options"
        raise ResetError(
            f"{env} raised {type(error).__name__} when it was reset with {given} to try a few steps: {error}\n"
            "The state before was restored. If its first reset needs options, give them to the vectorised environment by "
            "set_options() before the model is made, or reset it once before."
        ) from error
