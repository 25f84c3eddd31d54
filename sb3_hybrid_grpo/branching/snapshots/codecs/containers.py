"""Codecs of containers."""

import array
from collections import OrderedDict, defaultdict, deque
from collections.abc import Iterable
from typing import Any
from xml.etree import ElementTree

from sb3_hybrid_grpo.branching.snapshots.codecs.generic import register_content
from sb3_hybrid_grpo.branching.snapshots.registry import LeafCodec, ReferencesCodec


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


class _DefaultDictCodec(_DictCodec):
    """Codec of a dictionary with a factory, which may count what it makes."""

    def save(self, obj: Any) -> Any:
        return obj.default_factory, dict.copy(obj)

    def restore(self, obj: Any, state: Any) -> None:
        obj.default_factory, content = state
        super().restore(obj, content)

    def children(self, state: Any) -> Iterable[Any]:
        factory, content = state
        return [factory, *super().children(content)]


class _DequeCodec:
    def save(self, obj: deque[Any]) -> tuple[Any, ...]:
        return tuple(deque.__iter__(obj))

    def restore(self, obj: deque[Any], state: tuple[Any, ...]) -> None:
        deque.clear(obj)
        deque.extend(obj, state)

    def children(self, state: tuple[Any, ...]) -> Iterable[Any]:
        return state


class _ElementCodec:
    """Codec of an element of an XML document."""

    def save(self, obj: ElementTree.Element) -> tuple[Any, ...]:
        return obj.tag, obj.text, obj.tail, obj.attrib, list(obj)

    def restore(self, obj: ElementTree.Element, state: tuple[Any, ...]) -> None:
        obj.tag, obj.text, obj.tail, obj.attrib, obj[:] = state

    def children(self, state: tuple[Any, ...]) -> Iterable[Any]:
        *_, attributes, elements = state
        return [attributes, *elements]


def _restore_items(obj: Any, state: Any) -> None:
    type_of_content = array.array if isinstance(obj, array.array) else bytearray
    type_of_content.__setitem__(obj, slice(None), state)


register_content(OrderedDict, _OrderedDictCodec())
register_content(defaultdict, _DefaultDictCodec())
register_content(dict, _DictCodec())
register_content(deque, _DequeCodec())
register_content(tuple, ReferencesCodec(lambda obj: tuple.__getitem__(obj, slice(None))))
register_content(frozenset, ReferencesCodec(lambda obj: tuple(frozenset.__iter__(obj))))
register_content(bytearray, LeafCodec[bytearray, bytes](bytes, _restore_items))
register_content(array.array, LeafCodec[Any, Any](lambda obj: array.array.__getitem__(obj, slice(None)), _restore_items))
register_content(ElementTree.Element, _ElementCodec())
