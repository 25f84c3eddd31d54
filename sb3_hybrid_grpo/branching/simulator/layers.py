"""The wrappers around an environment, and whether they are still the ones that they were."""

from collections.abc import Sequence
from typing import Any, TypeAlias

import gymnasium as gym

_Layer: TypeAlias = tuple[Any, Any, Any]


def layers_of(env: gym.Env[Any, Any]) -> list[Any]:
    """
    Take an environment apart.

    :param env: the environment
    :return: its wrappers and what is inside them, outermost first. The last one is a ``gym.Env`` of its own, which
        ``unwrapped`` need not be: some packages hide a simulator of another kind behind it
    """
    layers: list[Any] = [env]
    while isinstance(layers[-1], gym.Wrapper):
        layers.append(layers[-1].env)
    return layers


def core_of(env: gym.Env[Any, Any]) -> Any:
    """
    Return what is inside all wrappers.

    :param env: the environment
    :return: its innermost layer
    """
    return layers_of(env)[-1]


class Composition:
    """
    The objects that some environments are made of: to notice, fast enough for every step, when one has taken another's place.

    A wrapper whose ``step`` was replaced on the instance counts as another one.

    :param envs: the environments
    """

    def __init__(self, envs: Sequence[gym.Env[Any, Any]]) -> None:
        self._envs = [_parts_of(env) for env in envs]

    def changed(self, envs: Sequence[gym.Env[Any, Any]]) -> list[int]:
        """
        Compare.

        :param envs: the environments as they are now
        :return: indices of those that are made of other objects
        """
        known = self._envs
        if len(envs) != len(known):
            return list(range(len(envs)))
        return [idx for idx, env in enumerate(envs) if not _is_made_of(env, known[idx])]


def _parts_of(env: gym.Env[Any, Any]) -> list[_Layer]:
    layers = layers_of(env)
    return [(layer, inner, vars(layer).get("step")) for layer, inner in zip(layers, (*layers[1:], None), strict=True)]


def _is_made_of(env: Any, parts: list[_Layer]) -> bool:
    for layer, inner, step in parts:
        if layer is not env or layer.__dict__.get("step") is not step:
            return False
        if inner is not None:
            env = layer.env
    return True
