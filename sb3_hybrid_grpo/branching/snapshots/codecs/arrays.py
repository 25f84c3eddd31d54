"""Codecs of arrays and of memory."""

import ctypes
import mmap
from collections.abc import Iterable
from typing import Any
from weakref import WeakValueDictionary

import numpy as np

from sb3_hybrid_grpo.branching.snapshots.codecs.generic import AttributesCodec, CompositeCodec, register_content
from sb3_hybrid_grpo.branching.snapshots.registry import Codec, LeafCodec, ReferencesCodec, register_builtin, register_fallback

LARGE = 1 << 16
"""Number of bytes from which on an array is compared with its last copy, and copied only if it differs."""


class _Copy:
    """
    A copy of a large array, shared by all snapshots between which the array does not change.

    :param obj: the array
    """

    __slots__ = ("__weakref__", "array", "memory")

    def __init__(self, obj: np.ndarray) -> None:
        self.memory = bytearray(_bytes(obj))
        order: Any = "C" if obj.flags.c_contiguous else "F"
        self.array = np.ndarray(obj.shape, obj.dtype, self.memory, order=order)

    def is_same(self, obj: np.ndarray) -> bool:
        """Compare all bytes, which takes half as long as to copy them."""
        has_same_layout = _has_layout_of(obj, self.array) and obj.strides == self.array.strides
        return has_same_layout and bytearray.__eq__(self.memory, _bytes(obj)) is True


def _bytes(obj: np.ndarray) -> np.ndarray:
    return np.ndarray.view(obj, np.ndarray).ravel(order="K").view(np.uint8)


def _has_layout_of(obj: np.ndarray, saved: np.ndarray) -> bool:
    return obj.shape == saved.shape and (obj.dtype is saved.dtype or obj.dtype == saved.dtype)


class _ArrayCodec:
    """
    Codec of arrays.

    Read-only ones have nothing to save if they are views, such as of a file, or large: then nobody may make them writeable.
    """

    def __init__(self) -> None:
        # By identity and not by weak references, with which arrays cannot be resized in place. A copy is compared anyway.
        self._copies: WeakValueDictionary[int, _Copy] = WeakValueDictionary()

    def save(self, obj: np.ndarray) -> Any:
        flags = obj.flags
        is_writeable = flags.writeable
        if obj.nbytes < LARGE or obj.dtype.hasobject:
            return (np.array(obj), is_writeable) if is_writeable or flags.owndata else _base(obj)
        if not is_writeable:
            return _base(obj)
        if not flags.forc:
            return np.array(obj), is_writeable
        copy = self._copies.get(id(obj))
        if copy is None or not copy.is_same(obj):
            copy = self._copies[id(obj)] = _Copy(obj)
        return copy, is_writeable

    def restore(self, obj: np.ndarray, state: Any) -> None:
        if type(state) is not tuple:
            if obj.flags.writeable:
                raise ValueError("a branch made a large read-only array writeable, of which there is no copy")
            return
        saved, is_writeable = state
        is_copy = type(saved) is _Copy
        if is_copy and obj.flags.writeable and obj.flags.forc and saved.is_same(obj):
            return
        values = saved.array if is_copy else saved
        if not obj.flags.writeable:
            obj.flags.writeable = True
        if obj.shape != values.shape or obj.dtype is not values.dtype:
            _rearrange(obj, values)
        np.ndarray.__setitem__(obj, ..., values)
        if not is_writeable:
            obj.flags.writeable = False

    def children(self, state: Any) -> Iterable[Any]:
        if type(state) is not tuple:
            return () if state is None else (state,)
        saved = state[0]
        return _objects_in(saved) if isinstance(saved, np.ndarray) and saved.dtype.hasobject else ()


def _objects_in(saved: Any) -> Iterable[Any]:
    """Return the objects that an array or a record refers to."""
    if saved.dtype.names is None:
        return [*saved.flat]
    fields = [saved[name] for name in saved.dtype.names if saved.dtype[name].hasobject]
    return [obj for field in fields for obj in (_objects_in(field) if isinstance(field, np.ndarray | np.void) else (field,))]


class _RecordCodec:
    """Codec of a record: an element of a structured array, whose fields may be written."""

    def save(self, obj: np.void) -> np.void | None:
        return obj.copy() if obj.dtype.names else None

    def restore(self, obj: np.void, state: np.void | None) -> None:
        if state is not None and obj.flags.writeable:
            for name in state.dtype.names or ():
                obj[name] = state[name]

    def children(self, state: np.void | None) -> Iterable[Any]:
        return () if state is None or not state.dtype.hasobject else _objects_in(state)


def _base(obj: np.ndarray) -> np.ndarray | None:
    """Return the array that a read-only view shows, which may be writeable."""
    base = obj.base
    return base if isinstance(base, np.ndarray) else None


def _rearrange(obj: np.ndarray, saved: np.ndarray) -> None:
    """Undo that a branch has given an array, in place, another size, shape or type of data."""
    if obj.dtype != saved.dtype:
        obj.dtype = saved.dtype  # type: ignore[misc]
    if obj.size != saved.size:
        obj.resize(saved.shape, refcheck=False)
    elif obj.shape != saved.shape:
        obj.shape = saved.shape


class _MemoryMapCodec:
    """Codec of memory-mapped files, as far as they may be written to."""

    def save(self, obj: mmap.mmap) -> bytes | None:
        with memoryview(obj) as view:
            return None if view.readonly else bytes(view)

    def restore(self, obj: mmap.mmap, state: bytes | None) -> None:
        if state is not None:
            obj[:] = state

    def children(self, state: bytes | None) -> Iterable[Any]:
        return ()


def _viewed(obj: memoryview) -> tuple[Any, ...]:
    try:
        return () if obj.obj is None else (obj.obj,)
    except ValueError:
        return ()


_C_TYPES: tuple[Any, ...] = (ctypes.Structure, ctypes.Union, ctypes.Array, ctypes._SimpleCData)
_POINTERS = "zZPO"


def _ctypes_codec(cls: type) -> Codec | None:
    """Serve C's structures, unions, arrays and numbers, unless they point to further memory."""
    if not issubclass(cls, _C_TYPES) or _has_pointers(cls):
        return None
    memory = LeafCodec[Any, bytes](
        lambda obj: ctypes.string_at(ctypes.addressof(obj), ctypes.sizeof(obj)),
        lambda obj, state: _write(ctypes.addressof(obj), state),
    )
    return CompositeCodec([memory, AttributesCodec()]) if cls.__dictoffset__ else memory


def _write(address: int, content: bytes) -> None:
    ctypes.memmove(address, content, len(content))


def _has_pointers(cls: Any) -> bool:
    if issubclass(cls, ctypes._SimpleCData):
        return cls._type_ in _POINTERS
    if issubclass(cls, ctypes.Array):
        return _has_pointers(cls._type_)
    if issubclass(cls, ctypes.Structure | ctypes.Union):
        fields = [field for base in cls.__mro__ for field in vars(base).get("_fields_", ())]
        return any(_has_pointers(field[1]) for field in fields)
    return True


_array_codec = _ArrayCodec()
register_content(np.ndarray, _array_codec)
register_content(np.void, _RecordCodec())
register_builtin(np.memmap, CompositeCodec([_array_codec, AttributesCodec(constant=("_mmap",))]))
register_builtin(mmap.mmap, _MemoryMapCodec())
register_builtin(memoryview, ReferencesCodec(_viewed))
register_fallback(_ctypes_codec)
