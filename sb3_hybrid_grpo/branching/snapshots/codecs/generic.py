"""Codecs of objects by what they are made of: a built-in content, an instance dictionary, slots; and types without state."""

import enum
import functools
import gc
import logging
import operator
import pathlib
import random
import re
import types
from collections.abc import Iterable, Mapping
from datetime import date, time, timedelta, tzinfo
from decimal import Decimal
from fractions import Fraction
from typing import Any, ClassVar

import gymnasium as gym
import numpy as np
from gymnasium.envs.registration import EnvSpec

from sb3_hybrid_grpo.branching.snapshots.registry import (
    CONSTANT,
    Codec,
    LeafCodec,
    Mark,
    ReferencesCodec,
    register_builtin,
    register_fallback,
)
from sb3_hybrid_grpo.common import UnbranchableEnvError


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


class _FewAttributesCodec(AttributesCodec):
    """Codec of values with an instance dictionary, which is empty as a rule."""

    _NONE: ClassVar[Mapping[str, Any]] = types.MappingProxyType({})

    def save(self, obj: Any) -> Any:
        attributes = obj.__dict__
        return dict(attributes) if attributes else self._NONE

    def restore(self, obj: Any, state: Any) -> None:
        if state or obj.__dict__:
            super().restore(obj, state)


_UNSET = object()


def _slot_of(obj: Any, name: str) -> Any:
    """Look into a slot itself: where it is empty, ``getattr`` may ask a ``__getattr__``, which answers for another object."""
    try:
        return object.__getattribute__(obj, name)
    except AttributeError:
        return _UNSET


class SlotsCodec:
    """
    Codec of objects by attributes that lie in slots.

    :param names: their names
    """

    def __init__(self, names: Iterable[str]) -> None:
        self.names = tuple(names)

    def save(self, obj: Any) -> dict[str, Any]:
        """Look up those that are set."""
        values = ((name, _slot_of(obj, name)) for name in self.names)
        return {name: value for name, value in values if value is not _UNSET}

    def restore(self, obj: Any, state: dict[str, Any]) -> None:
        """Set or unset each."""
        for name in self.names:
            if name in state:
                object.__setattr__(obj, name, state[name])
            elif _slot_of(obj, name) is not _UNSET:
                object.__delattr__(obj, name)

    def children(self, state: dict[str, Any]) -> Iterable[Any]:
        """Return the values of those that are set."""
        return state.values()


class CompositeCodec:
    """
    Codec of objects whose state lies in several places, such as a subclass of ``dict`` with attributes.

    :param parts: the codecs of these places
    """

    def __init__(self, parts: Iterable[Codec]) -> None:
        self.parts = tuple(parts)

    def save(self, obj: Any) -> tuple[Any, ...]:
        """Save every part."""
        return tuple(part.save(obj) for part in self.parts)

    def restore(self, obj: Any, state: tuple[Any, ...]) -> None:
        """Write every part back."""
        for part, part_state in zip(self.parts, state, strict=True):
            part.restore(obj, part_state)

    def children(self, state: tuple[Any, ...]) -> Iterable[Any]:
        """Return what the parts refer to."""
        return [child for part, part_state in zip(self.parts, state, strict=True) for child in part.children(part_state)]


class RefusingCodec:
    """
    Codec of objects that cannot be saved, which tells why.

    :param reason: a sentence
    """

    def __init__(self, reason: str) -> None:
        self.reason = reason

    def save(self, obj: Any) -> Any:
        """
        Refuse.

        :raises UnbranchableEnvError: always
        """
        raise UnbranchableEnvError(self.reason)

    def restore(self, obj: Any, state: Any) -> None:
        """Do nothing: nothing was saved."""

    def children(self, state: Any) -> Iterable[Any]:
        """Return nothing: nothing was saved."""
        return ()


_contents: dict[type, Codec | Mark] = {}


def register_content(cls: type, codec: Codec | Mark) -> None:
    """
    Register the codec of a built-in type's own content. Subclasses may have attributes besides, which are saved as well.

    :param cls: the type
    :param codec: its codec, or ``CONSTANT``
    """
    _contents[cls] = codec


def _has_hidden_state(cls: type, slots: list[str]) -> bool:
    """Tell whether instances hold more than Python attributes, such as the C struct of an extension type."""
    n_pointers = len(slots) + (cls.__dictoffset__ > 0) + (cls.__weakrefoffset__ > 0)
    return cls.__basicsize__ - np.dtype(np.intp).itemsize * n_pointers > object.__basicsize__


def _structural_codec(cls: type) -> Codec | Mark | None:
    """Build the codec of a type from what its instances are made of: a built-in content, attributes, slots."""
    built_in = next((base for base in cls.__mro__ if base in _contents), object)
    slots = [
        f"_{base.__name__.lstrip('_')}{name}" if name.startswith("__") and not name.endswith("__") else name
        for base in cls.__mro__[: cls.__mro__.index(built_in)]
        for name in _as_tuple(vars(base).get("__slots__", ()))
        if name not in ("__dict__", "__weakref__")
    ]
    content = _contents.get(built_in)
    if content is None and _has_hidden_state(cls, slots):
        return CONSTANT if _is_pybind11_enum(cls) else None
    is_finalized = isinstance(getattr(cls, "__del__", None), types.FunctionType)
    if is_finalized and content is not CONSTANT and not issubclass(cls, gym.Env):
        return RefusingCodec(_FINALIZED)
    parts: list[Codec] = [] if content is None or isinstance(content, Mark) else [content]
    if cls.__dictoffset__:
        parts.append(_FewAttributesCodec() if content is CONSTANT else AttributesCodec(constant=_descriptions_of(cls)))
    if slots:
        parts.append(SlotsCodec(slots))
    if not parts:
        return CONSTANT if content is CONSTANT or cls.__basicsize__ == object.__basicsize__ else None
    return parts[0] if len(parts) == 1 else CompositeCodec(parts)


def _is_pybind11_enum(cls: type) -> bool:
    return type(cls).__name__ == "pybind11_type" and "__members__" in dir(cls) and "__entries" in dir(cls)


_FINALIZED = (
    "it has a __del__ method, which would not be called when a branch drops the object, as a snapshot keeps it alive. "
    "Call what has to be done in steps explicitly instead, or register the type as CONSTANT if steps never drop it."
)


def _as_tuple(slots: str | Iterable[str]) -> tuple[str, ...]:
    return (slots,) if isinstance(slots, str) else tuple(slots)


DESCRIPTIONS = ("metadata", "_metadata", "observation_structure", "_saved_kwargs", "_ezpickle_args", "_ezpickle_kwargs")
"""Attributes in which Gymnasium's environments and wrappers keep how they were made: no part of the state."""


def _descriptions_of(cls: type) -> Iterable[str]:
    """Return the names of an environment's attributes that its code will not change."""
    if not issubclass(cls, gym.Env):
        return ()
    own = [base for base in cls.__mro__ if base.__module__.split(".")[0] not in ("gymnasium", "builtins", "typing")]
    names = {f"{base.__module__}.{base.__name__}" for base in cls.__mro__}
    tables = () if names.isdisjoint(_WITH_TRANSITION_TABLE) or any(map(_names_table, own)) else ("P",)
    return (*tables, *(DESCRIPTIONS[2:] if own else DESCRIPTIONS))


def _names_table(cls: type) -> bool:
    return any(isinstance(value, types.FunctionType) and "P" in value.__code__.co_names for value in vars(cls).values())


_WITH_TRANSITION_TABLE = {
    f"gymnasium.envs.toy_text.{name}" for name in ("frozen_lake.FrozenLakeEnv", "taxi.TaxiEnv", "cliffwalking.CliffWalkingEnv")
}


_VALUES: tuple[type, ...] = (
    *(bool, int, float, complex, str, bytes, np.generic),
    *(date, time, timedelta, tzinfo, Decimal, Fraction, pathlib.PurePath),
)
"""What cannot change, and whose subclasses may have attributes that can."""

for _value in _VALUES:
    register_content(_value, CONSTANT)

_CONSTANTS: tuple[type | str, ...] = (
    type(None),
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
    enum.Enum,
    np.dtype,
    np.ufunc,
    EnvSpec,
    BaseException,
    random.SystemRandom,
    logging.Logger,
    re.Pattern,
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

_updatable = LeafCodec[Any, Any](tuple, lambda obj, state: obj.update(state))
for _name in ("rect.Rect", "Rect", "rect.FRect", "math.Vector2", "math.Vector3"):
    register_builtin(f"pygame.{_name}", _updatable)

register_fallback(_structural_codec)
