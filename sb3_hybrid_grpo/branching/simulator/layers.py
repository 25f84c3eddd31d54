"""The wrappers around an environment, and whether they are still the ones that they were."""

from collections.abc import Sequence
from operator import is_
from typing import Any

import gymnasium as gym


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
        self._layers = [layers_of(env) for env in envs]
        self._roots = [layers[0] for layers in self._layers]
        self._steps = [[vars(layer).get("step") for layer in layers] for layers in self._layers]
        # One loop over what all instances hold, without a call for each environment.
        self._held = [
            (vars(layer).get, name, vars(layer).get(name))
            for layers in self._layers
            for layer in layers
            for name in (("env", "step") if layer is not layers[-1] else ("step",))
        ]
        self._is_held = all(vars(layer).get("env") is layer.env for layers in self._layers for layer in layers[:-1])

    def changed(self, envs: Sequence[gym.Env[Any, Any]]) -> list[int]:
        """
        Compare.

        :param envs: the environments as they are now
        :return: indices of those that are made of other objects
        """
        if len(envs) != len(self._roots):
            return list(range(len(envs)))
        if self._is_held and all(map(is_, envs, self._roots)):
            for held_by_layer, name, value in self._held:
                if held_by_layer(name) is not value:
                    break
            else:
                return []
        return [idx for idx, env in enumerate(envs) if self._is_other(idx, layers_of(env))]

    def _is_other(self, idx: int, layers: list[Any]) -> bool:
        known, steps = self._layers[idx], self._steps[idx]
        return len(layers) != len(known) or not (
            all(map(is_, layers, known)) and all(map(is_, (vars(layer).get("step") for layer in layers), steps))
        )
