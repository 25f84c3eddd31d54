"""Codecs of pure-Python environments: instance dictionaries, containers, arrays and random generators."""

import array
import ctypes
import enum
import functools
import gc
import logging
import mmap
import operator
import pathlib
import random
import re
import types
import weakref
from collections import OrderedDict, deque
from collections.abc import Iterable
from datetime import date, time, timedelta
from decimal import Decimal
from fractions import Fraction
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from gymnasium.envs.registration import EnvSpec

from sb3_hybrid_grpo.branching.snapshot import (
    CONSTANT,
    Codec,
    LeafCodec,
    Mark,
    ReferencesCodec,
    register_builtin,
    register_fallback,
)


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
        return [value for name, value in state.items() if name not in self.constant] if self.constant else state.values()


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
        return [*state, *state.values()]


class _OrderedDictCodec(_DictCodec):
    """Codec of a dictionary that keeps its order apart from its content."""

    def save(self, obj: Any) -> dict[Any, Any]:
        return dict(OrderedDict.items(obj))

    def restore(self, obj: Any, state: dict[Any, Any]) -> None:
        OrderedDict.clear(obj)
        for key, value in state.items():
            OrderedDict.__setitem__(obj, key, value)


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
    """Codec of sets. The order in which a set is iterated over is no part of its state once a branch has changed it."""

    def save(self, obj: set[Any]) -> set[Any]:
        return set.copy(obj)

    def restore(self, obj: set[Any], state: set[Any]) -> None:
        if not set.__eq__(obj, state):
            set.clear(obj)
            set.update(obj, state)

    def children(self, state: set[Any]) -> Iterable[Any]:
        return state


class _ArrayCodec:
    """Codec of arrays. Read-only views, such as of a file, have nothing to save."""

    def save(self, obj: np.ndarray) -> np.ndarray | None:
        flags = obj.flags
        if not (flags.writeable or flags.owndata):
            return None
        state = np.array(obj)
        if not flags.writeable:
            state.flags.writeable = False
        return state

    def restore(self, obj: np.ndarray, state: np.ndarray | None) -> None:
        if state is None:
            return
        if not obj.flags.writeable:
            obj.flags.writeable = True
        np.ndarray.__setitem__(obj, ..., state)
        if not state.flags.writeable:
            obj.flags.writeable = False

    def children(self, state: np.ndarray | None) -> Iterable[Any]:
        return state.flat if state is not None and state.dtype.hasobject else ()


class _SpaceCodec:
    """Codec of Gymnasium spaces, which change only by the random generator that samples from them."""

    def save(self, obj: spaces.Space[Any]) -> list[Any]:
        return [obj._np_random]

    def restore(self, obj: spaces.Space[Any], state: list[Any]) -> None:
        generator = state[0]
        if generator is None and obj._np_random is not None:
            # Made from the system's entropy when a branch sampled: whoever samples next must get the same numbers.
            bit_generator: Any = obj._np_random.bit_generator
            generator = np.random.Generator(type(bit_generator)(bit_generator.seed_seq))
        obj._np_random = generator

    def children(self, state: list[Any]) -> Iterable[Any]:
        return state


class _CompositeSpaceCodec(_SpaceCodec):
    def save(self, obj: spaces.Space[Any]) -> list[Any]:
        return [obj._np_random, *(part for part in vars(obj).values() if isinstance(part, spaces.Space | dict | tuple))]


_PCG64_STATE_BYTES = 48


def save_bit_generator(obj: np.random.BitGenerator) -> Any:
    """
    Save a random generator of NumPy.

    :param obj: the generator
    :return: its state
    """
    if type(obj) is _fast_bit_generator:
        return ctypes.string_at(obj.ctypes.state_address, _PCG64_STATE_BYTES)
    return obj.state


def restore_bit_generator(obj: np.random.BitGenerator, state: Any) -> None:
    """
    Bring a random generator of NumPy back to a state.

    :param obj: the generator
    :param state: what ``save_bit_generator`` returned
    """
    if type(state) is bytes:
        ctypes.memmove(obj.ctypes.state_address, state, _PCG64_STATE_BYTES)
    else:
        obj.state = state


def _find_fast_bit_generator() -> type[np.random.BitGenerator] | None:
    """Return Gymnasium's kind of generator if its state is found in memory, where it is copied ten times as fast."""
    generator = np.random.default_rng(0)
    address = generator.bit_generator.ctypes.state_address
    saved, expected = ctypes.string_at(address, _PCG64_STATE_BYTES), generator.bit_generator.state
    generator.integers(9, dtype=np.uint32)
    ctypes.memmove(address, saved, _PCG64_STATE_BYTES)
    is_exact = generator.bit_generator.state == expected
    return np.random.PCG64 if is_exact and type(generator.bit_generator) is np.random.PCG64 else None


_fast_bit_generator = _find_fast_bit_generator()


def _has_hidden_state(cls: type, slots: list[str]) -> bool:
    """Tell whether instances hold more than Python attributes, such as the C struct of an extension type."""
    n_pointers = len(slots) + (cls.__dictoffset__ > 0) + (cls.__weakrefoffset__ > 0)
    return cls.__basicsize__ - np.dtype(np.intp).itemsize * n_pointers > object.__basicsize__


def _structural_codec(cls: type) -> Codec | Mark | None:
    """Build the codec of a type from what its instances are made of: a built-in content, attributes, slots."""
    slots = [
        f"_{base.__name__.lstrip('_')}{name}" if name.startswith("__") and not name.endswith("__") else name
        for base in cls.__mro__
        for name in _as_tuple(vars(base).get("__slots__", ()))
        if name not in ("__dict__", "__weakref__")
    ]
    parts: list[Codec] = [codec for content, codec in _CONTENTS.items() if issubclass(cls, content)][:1]
    if not parts and _has_hidden_state(cls, slots):
        return None
    if cls.__dictoffset__:
        parts.append(AttributesCodec(constant=_DESCRIPTIONS if issubclass(cls, gym.Env) else ()))
    if slots:
        parts.append(_SlotsCodec(slots))
    if not parts:
        return CONSTANT if cls.__basicsize__ == object.__basicsize__ else None
    return parts[0] if len(parts) == 1 else _CompositeCodec(parts)


def _as_tuple(slots: str | Iterable[str]) -> tuple[str, ...]:
    return (slots,) if isinstance(slots, str) else tuple(slots)


_DESCRIPTIONS = ("metadata", "_metadata", "observation_structure", "_saved_kwargs", "_ezpickle_args", "_ezpickle_kwargs")
"""Attributes in which Gymnasium's environments and wrappers keep how they were made: no part of the state."""

_CONTENTS: dict[type, Codec] = {
    OrderedDict: _OrderedDictCodec(),
    dict: _DictCodec(),
    list: _ListCodec(),
    deque: _DequeCodec(),
    set: _SetCodec(),
    tuple: ReferencesCodec(tuple),
    frozenset: ReferencesCodec(tuple),
    bytearray: LeafCodec(bytes, lambda obj, state: obj.__setitem__(slice(None), state)),
    array.array: LeafCodec(lambda obj: obj[:], lambda obj, state: obj.__setitem__(slice(None), state)),
    np.ndarray: _ArrayCodec(),
    np.random.Generator: LeafCodec(
        lambda obj: save_bit_generator(obj.bit_generator),
        lambda obj, state: restore_bit_generator(obj.bit_generator, state),
    ),
    np.random.BitGenerator: LeafCodec(save_bit_generator, restore_bit_generator),
    np.random.RandomState: LeafCodec(lambda obj: obj.get_state(legacy=False), lambda obj, state: obj.set_state(state)),
    random.Random: LeafCodec(lambda obj: obj.getstate(), lambda obj, state: obj.setstate(state)),
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
    types.MethodDescriptorType,
    types.WrapperDescriptorType,
    type(np.random.Generator.normal),
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
    random.SystemRandom,
    mmap.mmap,
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
    "pygame.surface.Surface",
    "pygame.Surface",
    "pygame.time.Clock",
    "pygame.font.Font",
    "pygame.mixer.Sound",
    "gymnasium.envs.mujoco.mujoco_rendering.MujocoRenderer",
)

for _constant in _CONSTANTS:
    register_builtin(_constant, CONSTANT)

for _reference in (
    functools.partial,
    types.MethodType,
    types.BuiltinMethodType,
    types.MethodWrapperType,
    types.MappingProxyType,
    operator.itemgetter,
    operator.attrgetter,
):
    register_builtin(_reference, ReferencesCodec(gc.get_referents))
for _view in (dict[Any, Any]().keys(), dict[Any, Any]().values(), dict[Any, Any]().items()):
    register_builtin(type(_view), ReferencesCodec(gc.get_referents))

register_builtin(spaces.Space, _CompositeSpaceCodec())
for _simple_space in (spaces.Box, spaces.Discrete, spaces.MultiBinary, spaces.MultiDiscrete, spaces.Text):
    register_builtin(_simple_space, _SpaceCodec())
register_builtin("torch.Tensor", LeafCodec(lambda obj: obj.detach().clone(), lambda obj, state: obj.data.copy_(state)))
register_builtin("torch._C.Generator", LeafCodec(lambda obj: obj.get_state(), lambda obj, state: obj.set_state(state)))

_updatable = LeafCodec[Any, Any](tuple, lambda obj, state: obj.update(state))
for _name in ("rect.Rect", "Rect", "rect.FRect", "math.Vector2", "math.Vector3"):
    register_builtin(f"pygame.{_name}", _updatable)

for _toy in ("frozen_lake.FrozenLakeEnv", "taxi.TaxiEnv", "cliffwalking.CliffWalkingEnv"):
    register_builtin(f"gymnasium.envs.toy_text.{_toy}", AttributesCodec(constant=("P", *_DESCRIPTIONS)))

register_fallback(_structural_codec)
