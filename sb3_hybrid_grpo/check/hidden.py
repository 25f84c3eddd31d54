"""Finds the state of an environment that no snapshot reaches."""

import pickle
import random
import sys
import types
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, TypeAlias

import gymnasium as gym
import numpy as np

from sb3_hybrid_grpo.branching.masks import masks_of, sample
from sb3_hybrid_grpo.branching.simulator import Simulator
from sb3_hybrid_grpo.branching.snapshot import Snapshot, find

_N_STEPS = 20
_LIBRARIES = {*sys.stdlib_module_names, "gymnasium", "numpy", "stable_baselines3", "sb3_hybrid_grpo", "torch"}
_Place: TypeAlias = tuple[str, Callable[[], Any]]

_NO_STATE = (type, types.ModuleType, types.BuiltinFunctionType, property)


def hidden_state(env: gym.Env[Any, Any]) -> list[str]:
    """
    Step an environment, restore it, and look for what has changed all the same.

    :param env: an environment whose snapshots are not exact; what is hidden stays changed
    :return: a description of every variable that did, and what to do about it
    """
    simulator = Simulator(env)
    places = dict(_places(simulator))
    before = {place: _fingerprint(value()) for place, value in places.items()}
    action_space = env.action_space
    with simulator.unwatched():
        snapshot = Snapshot(*simulator.roots)
        try:
            for _ in range(_N_STEPS):
                _, _, terminated, truncated, _ = simulator.root.step(sample(action_space, masks_of(env)))
                if terminated or truncated:
                    break
        finally:
            snapshot.restore()
    return [_describe(place, value()) for place, value in places.items() if _fingerprint(value()) != before[place]]


def _places(simulator: Simulator) -> Iterator[_Place]:
    """Yield the variables of an environment's code that its instances do not lead to."""
    objects: list[Any] = []

    def note(obj: Any) -> bool:
        objects.append(obj)
        return False

    with simulator.unwatched():
        find(simulator.roots, note)
    for obj in objects:
        for name, value in getattr(obj, "__dict__", {}).items():
            if isinstance(value, types.FunctionType) and not _is_library(value):
                yield from _variables_of_function(value, f"{type(obj).__name__}.{name}")
    classes = {base for obj in objects for base in type(obj).__mro__ if not _is_library(base)}
    for cls in classes:
        yield from _variables_of_class(cls)
    for module in {cls.__module__ for cls in classes if cls.__module__ in sys.modules}:
        for name, value in vars(sys.modules[module]).items():
            if _may_hold_state(name, value):
                yield f"the global variable {name} of module {module}", partial(vars(sys.modules[module]).get, name)


def _variables_of_class(cls: type) -> Iterator[_Place]:
    for name, value in vars(cls).items():
        function = getattr(value, "fget", None) or getattr(value, "__func__", value)
        if isinstance(function, types.FunctionType):
            yield from _variables_of_function(function, f"{cls.__name__}.{name}")
        elif _may_hold_state(name, value):
            yield f"the class attribute {cls.__name__}.{name}", partial(vars(cls).get, name)


def _variables_of_function(function: types.FunctionType, path: str) -> Iterator[_Place]:
    for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
        if name != "__class__":
            yield f"the closure variable {name} of {path}", partial(_content, cell)
    for default in (*(function.__defaults__ or ()), *(function.__kwdefaults__ or {}).values()):
        if _may_hold_state("", default):
            yield f"a default argument of {path}", partial(_identity, default)


def _content(cell: types.CellType) -> Any:
    try:
        return cell.cell_contents
    except ValueError:
        return None


def _identity(value: Any) -> Any:
    return value


def _is_library(code: Any) -> bool:
    return (getattr(code, "__module__", None) or "builtins").split(".")[0] in _LIBRARIES


def _may_hold_state(name: str, value: Any) -> bool:
    return not (name.startswith("__") or isinstance(value, _NO_STATE) or callable(value))


def _fingerprint(value: Any) -> Any:
    try:
        return pickle.dumps(value)
    except Exception:
        return repr(value)


def _describe(place: str, value: Any) -> str:
    if isinstance(value, np.random.Generator | np.random.RandomState | random.Random):
        return f"{place} is a random generator that steps draw from. Draw from self.np_random instead."
    return (
        f"{place} (now {_shortened(value)}) changes with steps. Only what an attribute of the environment leads to is saved: "
        "keep it in one, as self.name."
    )


def _shortened(value: Any, length: int = 40) -> str:
    text = repr(value)
    return text if len(text) <= length else f"{text[:length]}…"
