"""Functions that take the place of an environment's methods."""

from collections.abc import Callable
from typing import Any

import gymnasium as gym


class StandIn:
    """
    Takes the place of methods of an environment, in the instance.

    :param env: the environment
    :param methods: what takes the place of which method
    """

    def __init__(self, env: gym.Env[Any, Any], methods: dict[str, Callable[..., Any]]) -> None:
        self._env = env
        self._methods = methods
        self._before = {name: vars(env)[name] for name in methods if name in vars(env)}
        vars(env).update(methods)

    def leave(self) -> None:
        """Give the methods back, apart from those that somebody else has taken the place of since."""
        attributes = vars(self._env)
        for name, method in self._methods.items():
            if attributes.get(name) != method:
                continue
            if name in self._before:
                attributes[name] = self._before[name]
            else:
                del attributes[name]
