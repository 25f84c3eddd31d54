"""Which codec saves and restores objects of which type."""

from collections.abc import Callable, Iterable
from enum import Enum
from typing import Any, Generic, Protocol, TypeAlias, TypeVar

T = TypeVar("T")
S = TypeVar("S")


class Codec(Protocol):
    """How objects of one type are saved and restored in place."""

    def save(self, obj: Any) -> Any:
        """
        Copy the object's own state. Objects that it refers to are left to their own codecs.

        :param obj: the live object
        :return: its state, independent of later changes
        """

    def restore(self, obj: Any, state: Any) -> None:
        """
        Write a saved state back. Called any number of times for one state.

        :param obj: the live object
        :param state: what ``save`` returned
        """

    def children(self, state: Any) -> Iterable[Any]:
        """
        Objects that the saved state refers to and that may change themselves.

        :param state: what ``save`` returned
        :return: those objects
        """


class LeafCodec(Generic[T, S]):
    """
    Codec of an object that refers to nothing else, made of two functions.

    :param save: returns the state of an object, independent of later changes
    :param restore: writes such a state back into the object
    """

    def __init__(self, save: Callable[[T], S], restore: Callable[[T, S], None]) -> None:
        self.save = save
        self.restore = restore

    def children(self, state: S) -> Iterable[Any]:
        """Return nothing: a leaf refers to no other object."""
        return ()


class ReferencesCodec:
    """
    Codec of an object that cannot change itself but refers to others that may, such as a tuple.

    :param referents: returns those others
    """

    def __init__(self, referents: Callable[[Any], Iterable[Any]]) -> None:
        self.save = referents

    def restore(self, obj: Any, state: Iterable[Any]) -> None:
        """Do nothing: there is nothing to restore."""

    def children(self, state: Iterable[Any]) -> Iterable[Any]:
        """Return the objects referred to."""
        return state


class Mark(Enum):
    """Stands where a codec would, for types that have none. An enum stays the same object in worker processes."""

    CONSTANT = "part of no state"
    UNKNOWN = "served by no codec"


CONSTANT = Mark.CONSTANT
_Entry: TypeAlias = Codec | Mark

_registry: dict[type | str, _Entry] = {}
_user_registry: dict[type | str, _Entry] = {}
resolved: dict[type, _Entry] = {}
constant_types: set[type] = set()
_fallbacks: list[Callable[[type], _Entry | None]] = []


def _qualified_names(cls: type) -> tuple[str, str]:
    # Types of some extension modules have no module, such as SWIG's, or a descriptor, such as Cython's with Python 3.10.
    module = getattr(cls, "__module__", "")
    module = module if isinstance(module, str) else ""
    return f"{module}.{cls.__qualname__}", f"{module.split('.')[0]}.*"


def _resolve(cls: type) -> _Entry:
    for base in cls.__mro__[:-1]:
        for key in (base, *_qualified_names(base)):
            for registry in (_user_registry, _registry):
                if key in registry:
                    return registry[key]
    for fallback in _fallbacks:
        codec = fallback(cls)
        if codec is not None:
            return codec
    return Mark.UNKNOWN


def codec_of(cls: type) -> _Entry:
    """
    Find the codec of a type: its own, that of its nearest base class, or a structural one.

    :param cls: the type of an object found in an environment
    :return: its codec, ``CONSTANT``, or the mark of a type that nothing serves
    """
    entry = resolved.get(cls)
    if entry is None:
        entry = resolved[cls] = _resolve(cls)
        if entry is CONSTANT:
            constant_types.add(cls)
    return entry


def is_immutable(obj: Any) -> bool:
    """
    Tell whether an object is constant, or a tuple of such.

    :param obj: the object
    :return: whether nothing in it can change
    """
    return codec_of(type(obj)) is CONSTANT or (type(obj) is tuple and all(map(is_immutable, obj)))


def _forget_resolved() -> None:
    resolved.clear()
    constant_types.clear()


def register_codec(cls: type | str, codec: Codec | Mark) -> None:
    """
    Teach branching how to save and restore objects of a type: a simulator's handle, an environment or a wrapper.

    Branchers that are made later know it.

    :param cls: the type (subclasses are served too), or its qualified name such as ``"my_sim.World"`` for a package
        that should not be imported for it
    :param codec: an object with ``save``, ``restore`` and ``children`` (see ``LeafCodec``), or ``CONSTANT`` for objects
        that hold no state, such as loggers and renderers
    """
    _user_registry[cls] = codec
    _forget_resolved()


def register_builtin(cls: type | str, codec: Codec | Mark) -> None:
    """
    Register a codec that the package ships; ``register_codec`` takes precedence over it.

    :param cls: the type or its qualified name; ``"package.*"`` names all types of a package
    :param codec: its codec, or ``CONSTANT``
    """
    _registry[cls] = codec
    _forget_resolved()


def register_fallback(fallback: Callable[[type], _Entry | None]) -> None:
    """
    Register a function that is asked for a codec when none is registered for a type or its bases.

    :param fallback: maps a type to a codec or ``CONSTANT``, or to ``None`` if it cannot serve it
    """
    _fallbacks.append(fallback)


def user_codecs() -> dict[type | str, Any]:
    """
    Return what ``register_codec`` was told in this process, for the worker processes of a vectorised environment.

    :return: codecs by type or qualified name
    """
    return dict(_user_registry)


def kind_of(target: Any) -> str:
    """
    Name the type of an object.

    :param target: the object
    :return: the qualified name of its type
    """
    return _qualified_names(type(target))[0].lstrip(".")
