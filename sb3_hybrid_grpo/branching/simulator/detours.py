"""Ways around the wrappers that only watch an environment."""

import types
from typing import Any, TypeAlias

import gymnasium as gym
from gymnasium import wrappers
from stable_baselines3.common.monitor import Monitor

from sb3_hybrid_grpo.branching.surroundings import branch_hooks

_AnyWrapper: TypeAlias = gym.Wrapper[Any, Any, Any, Any]

_MISSING = object()
_EPISODE = "episode"
# They tell what is outside of them how an episode went, where it ends.
_STATISTICIANS = (Monitor, wrappers.RecordEpisodeStatistics)

_transparent_wrappers: set[type[_AnyWrapper]] = {
    Monitor,
    wrappers.OrderEnforcing,
    wrappers.PassiveEnvChecker,
    wrappers.RecordEpisodeStatistics,
    wrappers.RecordVideo,
    wrappers.RenderCollection,
    wrappers.HumanRendering,
}


def register_transparent_wrapper(wrapper_class: type[_AnyWrapper]) -> None:
    """
    Declare that a wrapper hands actions, observations, rewards and ends of episodes through unchanged.

    Branches go around such wrappers, so that what they record or draw never includes a branch.

    :param wrapper_class: the wrapper's class; its subclasses are not meant
    """
    _transparent_wrappers.add(wrapper_class)


def transparent_wrappers() -> set[type[_AnyWrapper]]:
    """
    Return what branches go around in this process, for the worker processes of a vectorised environment.

    :return: classes of wrappers
    """
    return set(_transparent_wrappers)


class Detours:
    """
    Leads around recorders and renderers as long as it is entered, but through statistics of episodes that a wrapper asks for.

    :param root: the outermost wrapper that branches go through
    """

    def __init__(self, root: gym.Env[Any, Any]) -> None:
        self._detours: list[tuple[dict[str, Any], str, Any]] = []
        self._originals: list[Any] = []
        self.layers = [root]
        asked: tuple[type, ...] = ()
        while isinstance(layer := self.layers[-1], gym.Wrapper):
            if not asked and _asks_for_statistics(type(layer)):
                asked = _STATISTICIANS
            inner = skip_transparent(layer.env, asked)
            if inner is not layer.env:
                self._detours.append((vars(layer), "env", inner))
            if type(inner) is Monitor:
                self._detours.append((vars(inner), "results_writer", None))
            self.layers.append(inner)
        if self.layers[-1].render_mode == "human":
            self._detours.append((vars(self.layers[-1]), "render_mode", None))

    def __enter__(self) -> None:
        self._originals = [attributes.get(name, _MISSING) for attributes, name, _ in self._detours]
        for attributes, name, value in self._detours:
            attributes[name] = value

    def __exit__(self, *exception: object) -> None:
        for (attributes, name, _), original in zip(self._detours, self._originals, strict=True):
            if original is _MISSING:
                del attributes[name]
            else:
                attributes[name] = original


class _AnnouncedDetours(Detours):
    """Calls the environment's hooks before and after as well."""

    def __init__(self, root: gym.Env[Any, Any]) -> None:
        super().__init__(root)
        self._starts, self._ends = branch_hooks(self.layers)

    def __enter__(self) -> None:
        super().__enter__()
        try:
            for start in self._starts:
                start()
        except BaseException:
            self.__exit__()
            raise

    def __exit__(self, *exception: object) -> None:
        try:
            for end in self._ends:
                end()
        finally:
            super().__exit__()


def detours_of(root: gym.Env[Any, Any]) -> Detours:
    """
    Find the detours of an environment, which call its hooks if it has some.

    :param root: the outermost wrapper that branches go through
    :return: the detours
    """
    detours = Detours(root)
    return _AnnouncedDetours(root) if any(branch_hooks(detours.layers)) else detours


def _asks_for_statistics(cls: type) -> bool:
    """Tell whether the code of a wrapper names ``info["episode"]``."""
    functions = (function for base in cls.__mro__ for function in vars(base).values())
    return any(isinstance(function, types.FunctionType) and _names_episode(function.__code__) for function in functions)


def _names_episode(constant: Any) -> bool:
    """Look for the name among the constants of a function, and of those in it."""
    if isinstance(constant, types.CodeType):
        constant = constant.co_consts
    return constant == _EPISODE or (isinstance(constant, tuple | frozenset) and any(map(_names_episode, constant)))


def skip_transparent(env: gym.Env[Any, Any], kept: tuple[type, ...] = ()) -> gym.Env[Any, Any]:
    """
    Go around the wrappers that only watch.

    :param env: an environment, or a wrapper of it
    :param kept: classes of such wrappers that are not gone around
    :return: the outermost layer that takes part in its steps
    """
    while type(env) in _transparent_wrappers and type(env) not in kept and "step" not in vars(env):
        env = env.env  # type: ignore[attr-defined]
    return env
