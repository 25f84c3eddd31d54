"""
Codecs of sets, lists and iterators that look into their memory.

The order of a set is a matter of its whole history: where its entries lie in the table, how large the table is, and which
places are marked as left. An iterator of C code tells neither where it is nor can it go back. Whether a long list has the same
items as before is told a hundred times as fast by its pointers. All this is laid out the same in all versions of CPython so
far; whether that holds is tried before anything is served in this way.
"""

import ctypes
import gc
import itertools
import sys
from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator
from operator import methodcaller
from typing import Any, NamedTuple
from weakref import WeakValueDictionary

from sb3_hybrid_grpo.branching.snapshots.codecs.generic import register_content
from sb3_hybrid_grpo.branching.snapshots.registry import is_immutable, register_builtin

_HEADER = object.__basicsize__
_WORD = ctypes.sizeof(ctypes.c_ssize_t)
_FILL, _USED, _MASK, _TABLE, _FINGER = (_HEADER + _WORD * word for word in (0, 1, 2, 3, 5))
_ENTRY = 2 * _WORD
_ITEMS = _HEADER + _WORD
_LONG = 200
_LEAST_TABLE = 8

_acquire: Callable[[Any], None] = ctypes.pythonapi.Py_IncRef
_release: Callable[[Any], None] = ctypes.pythonapi.Py_DecRef
for _count in (_acquire, _release):
    _count.argtypes, _count.restype = [ctypes.py_object], None  # type: ignore[attr-defined]


def _at(address: int, n_bytes: int) -> "ctypes.Array[ctypes.c_char]":
    return (ctypes.c_char * n_bytes).from_address(address)


def _overwrite(memory: "ctypes.Array[ctypes.c_char]", content: bytes, owned: Iterable[Any], new_owned: Iterable[Any]) -> None:
    """Write to memory that counts as the owner of objects. Whoever calls keeps all of them alive."""
    for obj in new_owned:
        _acquire(obj)
    memory.raw = content
    for obj in owned:
        _release(obj)


class _SetState(NamedTuple):
    """
    What a set consists of.

    :param counts: number of places in use or left, number in use, and mask of the table
    :param finger: where ``pop`` goes on
    :param table: the table
    :param items: the items, kept alive
    """

    counts: bytes
    finger: bytes
    table: bytes
    items: tuple[Any, ...]


class _SetCodec:
    """Codec of sets that brings back the table, so that the order of iteration is the same, now and later."""

    def save(self, obj: set[Any]) -> _SetState:
        address = id(obj)
        return _SetState(
            ctypes.string_at(address + _FILL, 3 * _WORD),
            ctypes.string_at(address + _FINGER, _WORD),
            bytes(_table(obj)),
            tuple(set.__iter__(obj)),
        )

    def restore(self, obj: set[Any], state: _SetState) -> None:
        address = id(obj)
        counts, finger = _at(address + _FILL, 3 * _WORD), _at(address + _FINGER, _WORD)
        finger.raw = state.finger
        if counts.raw == state.counts and bytes(_table(obj)) == state.table:
            return
        if len(_table(obj)) != len(state.table):
            _resize(obj, len(state.table) // _ENTRY)
        present = tuple(set.__iter__(obj))
        _overwrite(_table(obj), state.table, present, state.items)
        counts.raw = state.counts
        finger.raw = state.finger

    def children(self, state: _SetState) -> Iterable[Any]:
        return state.items


class _ReinsertedSetCodec:
    """Codec of sets where their memory is not known: the order of iteration is compared, and refused if it is another."""

    def save(self, obj: set[Any]) -> tuple[Any, ...]:
        return tuple(set.__iter__(obj))

    def restore(self, obj: set[Any], state: tuple[Any, ...]) -> None:
        if _is_identical(obj, state):
            return
        set.clear(obj)
        for item in state:
            set.add(obj, item)
        if not _is_identical(obj, state):
            raise ValueError("the order of iteration of a set that a branch changed cannot be restored on this Python")

    def children(self, state: tuple[Any, ...]) -> Iterable[Any]:
        return state


def _is_identical(obj: set[Any], items: tuple[Any, ...]) -> bool:
    return len(items) == set.__len__(obj) and all(map(lambda a, b: a is b, set.__iter__(obj), items))


def _word(address: int) -> int:
    return ctypes.c_ssize_t.from_address(address).value


def _table(obj: set[Any]) -> "ctypes.Array[ctypes.c_char]":
    return _at(_word(id(obj) + _TABLE), _ENTRY * (_word(id(obj) + _MASK) + 1))


def _resize(obj: set[Any], n_places: int) -> None:
    """Give a set a table of some size, with whatever in it."""
    set.clear(obj)
    if n_places > _LEAST_TABLE:
        # A set that is empty makes room for twice as many as it takes from another, in a power of two.
        set.update(obj, set(range(max(n_places // 4, 5))))
    if len(_table(obj)) != _ENTRY * n_places:
        raise ValueError(f"a set of {n_places} places cannot be made on this Python")


def _sets_are_known() -> bool:
    """Try a set that grows, shrinks and grows again, and compare it with another of the same history."""
    if set.__basicsize__ != _HEADER + 6 * _WORD + _LEAST_TABLE * _ENTRY + _WORD:
        return False
    codec = _SetCodec()
    for n_items in (3, 30, 300):
        tried, expected = set[Any](), set[Any]()
        for obj in (tried, expected):
            obj.update(str(number) for number in range(n_items))
            for number in range(0, n_items, 2):
                obj.discard(str(number))
        if _word(id(tried) + _USED) != len(tried) or len(_table(tried)) < _ENTRY * len(tried):
            return False
        state = codec.save(tried)
        for change in (set.pop, set.clear, methodcaller("update", range(4 * n_items))):
            change(tried)
            codec.restore(tried, state)
        for obj in (tried, expected):
            obj.update(range(n_items, 2 * n_items))
            obj.pop()
        if list(tried) != list(expected):
            return False
    return True


class _LongList:
    """
    The items of a long list.

    :param items: the items, kept alive
    :param pointers: where each of them is
    :param places: the places of those that may change
    """

    __slots__ = ("__weakref__", "children", "items", "places", "pointers")

    def __init__(self, items: list[Any], pointers: bytes, places: list[int]) -> None:
        self.items = items
        self.pointers = pointers
        self.places = places
        self.children = [items[place] for place in places]


class _ListCodec:
    """Codec of lists. Of long ones it looks only at the items that follow the first one that is another than before."""

    def __init__(self, long: int) -> None:
        self._long = long
        self._last: WeakValueDictionary[int, _LongList] = WeakValueDictionary()

    def save(self, obj: list[Any]) -> Any:
        if list.__len__(obj) < self._long:
            return list.copy(obj)
        pointers, last = _pointers(obj), self._last.get(id(obj))
        if last is not None and pointers == last.pointers:
            return last
        items = list.copy(obj)
        n_known = 0 if last is None else _common(pointers, last.pointers) // _WORD
        places = [] if last is None else last.places[: bisect_left(last.places, n_known)]
        places += [place for place in range(n_known, len(items)) if not is_immutable(items[place])]
        state = self._last[id(obj)] = _LongList(items, pointers, places)
        return state

    def restore(self, obj: list[Any], state: Any) -> None:
        if type(state) is list:
            list.__setitem__(obj, slice(None), state)
            return
        pointers = _pointers(obj)
        if pointers.startswith(state.pointers):
            list.__delitem__(obj, slice(len(state.items), None))
        else:
            list.__setitem__(obj, slice(None), state.items)

    def children(self, state: Any) -> Iterable[Any]:
        return state if type(state) is list else state.children


def _common(first: bytes, second: bytes) -> int:
    """Return the number of bytes at the beginning that are the same."""
    low, high = 0, min(len(first), len(second))
    while low < high:
        middle = (low + high + 1) // 2
        if first[low:middle] == second[low:middle]:
            low = middle
        else:
            high = middle - 1
    return low


def _pointers(obj: list[Any]) -> bytes:
    return ctypes.string_at(_word(id(obj) + _ITEMS), _WORD * list.__len__(obj)) if obj else b""


def _lists_are_known() -> bool:
    items = [object() for _ in range(5)]
    if list.__basicsize__ != _HEADER + 3 * _WORD or _word(id(items) + _HEADER) != len(items):
        return False
    items.append(None)
    return _pointers(items) == b"".join(id(item).to_bytes(_WORD, sys.byteorder) for item in items)


class _Memory(NamedTuple):
    """
    What an iterator consists of.

    :param body: its memory behind the header of an object
    :param owned: the objects that it refers to, kept alive
    """

    body: bytes
    owned: list[Any]


class _IteratorCodec:
    """Codec of iterators that consist of numbers and of references that they own, and of no further memory."""

    def save(self, obj: Any) -> _Memory:
        return _Memory(_body(obj).raw, gc.get_referents(obj))

    def restore(self, obj: Any, state: _Memory) -> None:
        body = _body(obj)
        if body.raw != state.body:
            _overwrite(body, state.body, gc.get_referents(obj), state.owned)

    def children(self, state: _Memory) -> Iterable[Any]:
        return state.owned


def _body(obj: Any) -> "ctypes.Array[ctypes.c_char]":
    return _at(id(obj) + _HEADER, type(obj).__basicsize__ - _HEADER)


_ITERATORS: tuple[Callable[[], Iterator[Any]], ...] = (
    lambda: iter([1000, 2000, 3000]),
    lambda: iter((1000, 2000, 3000)),
    lambda: iter("äbc"),
    lambda: iter("abc"),
    lambda: iter(b"abc"),
    lambda: iter(range(3)),
    lambda: reversed([1000, 2000, 3000]),
    lambda: reversed((1000, 2000, 3000)),
    lambda: enumerate([1000, 2000, 3000]),
    lambda: zip([1000, 2000], (3000, 4000), strict=False),
    lambda: map(abs, [1000, 2000]),
    lambda: filter(None, [1000, 2000]),
    itertools.count,
    lambda: itertools.count(2**70),
    lambda: itertools.cycle([1000, 2000, 3000]),
    lambda: itertools.repeat(1000, 3),
    lambda: itertools.chain([1000], [2000, 3000]),
    lambda: itertools.islice([1000, 2000, 3000], 1, 3),
    lambda: itertools.accumulate([1000, 2000, 3000]),
    lambda: itertools.starmap(abs, [(1000,), (2000,)]),
    lambda: itertools.pairwise([1000, 2000, 3000]),
    lambda: itertools.compress([1000, 2000], [1, 1]),
    lambda: itertools.takewhile(bool, [1000, 2000]),
    lambda: itertools.dropwhile(bool, [0, 1000, 2000]),
)
"""Examples of every kind. Not among them: ``product`` and its relatives, ``tee``, ``groupby``, and iterators over dictionaries
and sets, which hold further memory or depend on that of others; those over huge ranges do not tell what they own."""


def _parts(iterator: Any) -> list[Any]:
    """Return an iterator and those within it."""
    found, pending = [], [iterator]
    while pending:
        obj = pending.pop()
        found.append(obj)
        pending += [part for part in gc.get_referents(obj) if isinstance(part, Iterator | tuple)]
    return [part for part in found if isinstance(part, Iterator)]


def _is_restored(make: Callable[[], Iterator[Any]]) -> bool:
    """Try whether an iterator starts again, also after its end."""
    codec, tried = _IteratorCodec(), make()
    expected = list(itertools.islice(make(), 5))
    if len(_body(tried)) > 16 * _WORD:
        return False
    for n_steps in (0, 1, 2, 5):
        parts = [(part, codec.save(part)) for part in _parts(tried)]
        lists = [(part, list(part)) for _, state in parts for part in state.owned if isinstance(part, list)]
        list(itertools.islice(tried, n_steps))
        for part, state in parts:
            codec.restore(part, state)
        for content, saved in lists:
            content[:] = saved
    return list(itertools.islice(tried, 5)) == expected


register_content(set, _SetCodec() if _sets_are_known() else _ReinsertedSetCodec())
register_content(list, _ListCodec(_LONG if _lists_are_known() else sys.maxsize))
for _make in _ITERATORS:
    if _is_restored(_make):
        register_builtin(type(_make()), _IteratorCodec())
