"""Codecs of pure-Python environments: instance dictionaries, containers, arrays and random generators."""

import enum
import functools
import logging
import pathlib
import random
import re
import types
import weakref
from collections import deque
from collections.abc import Iterable
from datetime import date, time, timedelta
from decimal import Decimal
from fractions import Fraction
from typing import Any

import numpy as np
from gymnasium import spaces
from gymnasium.envs.registration import EnvSpec

from sb3_hybrid_grpo.branching.snapshot import CONSTANT, Codec, LeafCodec, register_builtin, register_fallback


class AttributesCodec:
    """
    Codec of Python objects by their instance dictionary.

    :param constant: names of attributes whose objects never change, such as large transition tables: they are not
        looked into, which saves time
    """

    def __init__(self, constant: Iterable[str] = ()) -> None:
        self.constant = frozenset(constant)

    def save(self, obj: Any) -> dict[str, Any]:
        """Copy the instance dictionary."""
        return dict(obj.__dict__)

    def restore(self, obj: Any, state: dict[str, Any]) -> None:
        """Write the instance dictionary back."""
        attributes = obj.__dict__
        attributes.clear()
        attributes.update(state)

    def children(self, state: dict[str, Any]) -> Iterable[Any]:
        """Return the values of the attributes that may change."""
        if not self.constant:
            return state.values()
        return [value for name, value in state.items() if name not in self.constant]


class _SlotsCodec:
    def __init__(self, names: Iterable[str]) -> None:
        self.names = tuple(names)

    def save(self, obj: Any) -> dict[str, Any]:
        return {name: getattr(obj, name) for name in self.names if hasattr(obj, name)}

    def restore(self, obj: Any, state: dict[str, Any]) -> None:
        for name in self.names:
            if name in state:
                object.__setattr__(obj, name, state[name])
            elif hasattr(obj, name):
                object.__delattr__(obj, name)

    def children(self, state: dict[str, Any]) -> Iterable[Any]:
        return state.values()


class _CompositeCodec:
    """Codec of objects whose state lies in several places, such as a subclass of ``dict`` with attributes."""

    def __init__(self, parts: Iterable[Codec]) -> None:
        self.parts = tuple(parts)

    def save(self, obj: Any) -> tuple[Any, ...]:
        return tuple(part.save(obj) for part in self.parts)

    def restore(self, obj: Any, state: tuple[Any, ...]) -> None:
        for part, part_state in zip(self.parts, state, strict=True):
            part.restore(obj, part_state)

    def children(self, state: tuple[Any, ...]) -> Iterable[Any]:
        return [child for part, part_state in zip(self.parts, state, strict=True) for child in part.children(part_state)]


class _DictCodec:
    def save(self, obj: dict[Any, Any]) -> dict[Any, Any]:
        return dict.copy(obj)

    def restore(self, obj: dict[Any, Any], state: dict[Any, Any]) -> None:
        dict.clear(obj)
        dict.update(obj, state)

    def children(self, state: dict[Any, Any]) -> Iterable[Any]:
        return state.values()


class _ListCodec:
    def save(self, obj: list[Any]) -> list[Any]:
        return list.copy(obj)

    def restore(self, obj: list[Any], state: list[Any]) -> None:
        list.__setitem__(obj, slice(None), state)

    def children(self, state: list[Any]) -> Iterable[Any]:
        return state


class _DequeCodec:
    def save(self, obj: deque[Any]) -> tuple[Any, ...]:
        return tuple(obj)

    def restore(self, obj: deque[Any], state: tuple[Any, ...]) -> None:
        deque.clear(obj)
        deque.extend(obj, state)

    def children(self, state: tuple[Any, ...]) -> Iterable[Any]:
        return state


class _SetCodec:
    def save(self, obj: set[Any]) -> set[Any]:
        return set.copy(obj)

    def restore(self, obj: set[Any], state: set[Any]) -> None:
        set.clear(obj)
        set.update(obj, state)

    def children(self, state: set[Any]) -> Iterable[Any]:
        return state


class _ReferencesCodec:
    """
    Codec of objects that cannot change themselves but refer to others that may.

    :param names: attributes with those objects; without, the object is iterated over
    """

    def __init__(self, *names: str) -> None:
        self.names = names

    def save(self, obj: Any) -> Any:
        return tuple(getattr(obj, name) for name in self.names) if self.names else tuple(obj)

    def restore(self, obj: Any, state: tuple[Any, ...]) -> None:
        pass

    def children(self, state: tuple[Any, ...]) -> Iterable[Any]:
        return state


class _ArrayCodec:
    def save(self, obj: np.ndarray) -> np.ndarray:
        return obj.copy()

    def restore(self, obj: np.ndarray, state: np.ndarray) -> None:
        if obj.flags.writeable:
            np.copyto(obj, state)

    def children(self, state: np.ndarray) -> Iterable[Any]:
        return state.flat if state.dtype.hasobject else ()


class _SpaceCodec:
    """Codec of Gymnasium spaces, which change only by the random generator that samples from them."""

    def save(self, obj: spaces.Space[Any]) -> list[Any]:
        parts = [part for part in vars(obj).values() if isinstance(part, spaces.Space | dict | tuple)]
        return [obj._np_random, *parts]

    def restore(self, obj: spaces.Space[Any], state: list[Any]) -> None:
        obj._np_random = state[0]

    def children(self, state: list[Any]) -> Iterable[Any]:
        return state


def _restore_bit_generator(obj: Any, state: Any) -> None:
    obj.state = state


def _restore_generator(obj: np.random.Generator, state: Any) -> None:
    obj.bit_generator.state = state


def _has_hidden_state(cls: type, slots: list[str]) -> bool:
    """Tell whether instances hold more than Python attributes, such as the C struct of an extension type."""

    class Plain:
        pass

    return cls.__basicsize__ - np.dtype(np.intp).itemsize * len(slots) > Plain.__basicsize__


def _structural_codec(cls: type) -> Codec | None:
    """Build the codec of a type from what its instances are made of: a container's content, attributes, slots."""
    slots = [
        f"_{base.__name__.lstrip('_')}{name}" if name.startswith("__") and not name.endswith("__") else name
        for base in cls.__mro__
        for name in _as_tuple(vars(base).get("__slots__", ()))
        if name not in ("__dict__", "__weakref__")
    ]
    parts: list[Codec] = [codec for container, codec in _CONTAINERS.items() if issubclass(cls, container)]
    if not parts and _has_hidden_state(cls, slots):
        return None
    if cls.__dictoffset__:
        parts.append(AttributesCodec())
    if slots:
        parts.append(_SlotsCodec(slots))
    if not parts:
        return None
    return parts[0] if len(parts) == 1 else _CompositeCodec(parts)


def _as_tuple(slots: str | Iterable[str]) -> tuple[str, ...]:
    return (slots,) if isinstance(slots, str) else tuple(slots)


_CONTAINERS: dict[type, Codec] = {
    dict: _DictCodec(),
    list: _ListCodec(),
    bytearray: LeafCodec(bytes, lambda obj, state: obj.__setitem__(slice(None), state)),
    deque: _DequeCodec(),
    set: _SetCodec(),
    tuple: _ReferencesCodec(),
    frozenset: _ReferencesCodec(),
}

_CONSTANTS: tuple[type | str, ...] = (
    type(None),
    bool,
    int,
    float,
    complex,
    str,
    bytes,
    range,
    slice,
    type,
    types.EllipsisType,
    types.FunctionType,
    types.BuiltinFunctionType,
    types.MethodWrapperType,
    types.ModuleType,
    types.CodeType,
    property,
    staticmethod,
    classmethod,
    type(functools.lru_cache(lambda: None)),
    enum.Enum,
    np.generic,
    np.dtype,
    np.ufunc,
    np.random.SeedSequence,
    EnvSpec,
    BaseException,
    logging.Logger,
    pathlib.PurePath,
    re.Pattern,
    date,
    time,
    timedelta,
    Decimal,
    Fraction,
    weakref.ref,
    "torch.dtype",
    "torch.device",
    "torch.Size",
    "jaxlib.*",
    "pygame.*",
    "gymnasium.envs.mujoco.mujoco_rendering.MujocoRenderer",
)

for _constant in _CONSTANTS:
    register_builtin(_constant, CONSTANT)

register_builtin(np.ndarray, _ArrayCodec())
register_builtin(np.random.Generator, LeafCodec(lambda obj: obj.bit_generator.state, _restore_generator))
register_builtin(np.random.BitGenerator, LeafCodec(lambda obj: obj.state, _restore_bit_generator))
register_builtin(np.random.RandomState, LeafCodec(lambda obj: obj.get_state(), lambda obj, state: obj.set_state(state)))
register_builtin(random.Random, LeafCodec(lambda obj: obj.getstate(), lambda obj, state: obj.setstate(state)))
register_builtin(spaces.Space, _SpaceCodec())
register_builtin(functools.partial, _ReferencesCodec("func", "args", "keywords"))
register_builtin(types.MethodType, _ReferencesCodec("__self__"))
register_builtin("torch.Tensor", LeafCodec(lambda obj: obj.detach().clone(), lambda obj, state: obj.data.copy_(state)))
register_builtin("torch._C.Generator", LeafCodec(lambda obj: obj.get_state(), lambda obj, state: obj.set_state(state)))

for _toy in ("frozen_lake.FrozenLakeEnv", "taxi.TaxiEnv", "cliffwalking.CliffWalkingEnv"):
    register_builtin(f"gymnasium.envs.toy_text.{_toy}", AttributesCodec(constant=("P",)))

register_fallback(_structural_codec)
