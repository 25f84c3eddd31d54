"""
Exact snapshots of live Python objects: save everything reachable from an environment, restore it in place.

A snapshot never copies an environment. It walks the objects that the environment is made of (wrappers, instance
dictionaries, containers, arrays, random generators, simulator handles) and lets the codec of each type save its
content. Restoring writes the content back into the same objects, so that references between them stay valid.
"""

import builtins
from collections.abc import Callable, Iterable
from operator import is_
from typing import Any, NamedTuple

from sb3_hybrid_grpo.branching.snapshots.registry import (
    CONSTANT,
    LeafCodec,
    Mark,
    ReferencesCodec,
    codec_of,
    constant_types,
    kind_of,
    resolved,
)
from sb3_hybrid_grpo.common import UnbranchableEnvError, UnrestorableStateError

# ``eval`` and ``exec`` put it into the namespaces that they are given.
_BUILTINS = vars(builtins)


class _Visit(NamedTuple):
    """
    An object that a walk came by and that may change itself.

    :param obj: the object
    :param save: returns its state
    :param restore: writes a state back
    :param refer: returns what a state refers to; ``None`` if that is nothing
    :param referents: what it referred to
    """

    obj: Any
    save: Callable[[Any], Any]
    restore: Callable[[Any, Any], None]
    refer: Callable[[Any], Iterable[Any]] | None
    referents: list[Any]


def _changeable(referents: list[Any]) -> list[Any]:
    return [obj for obj in referents if type(obj) not in constant_types]


class Snapshot:
    """
    The state of everything reachable from some objects, as it is now.

    :param roots: where the walk starts
    :raises UnbranchableEnvError: if it meets an object that no codec serves; the message says how to get there
    """

    __slots__ = ("_others", "_roots", "states", "visits")

    def __init__(self, *roots: Any) -> None:
        self._roots = roots
        # Two lists and no tuple for each object: what is alive for long keeps Python's garbage collector busy.
        self.visits: list[_Visit] = []
        self.states: list[Any] = []
        self._others: list[Snapshot] = []
        self._walk(list(roots), {id(_BUILTINS)})

    def _walk(self, pending: list[Any], seen: set[int]) -> None:
        """
        Save objects and all that they lead to.

        :param pending: the objects
        :param seen: identities of those that were saved before
        """
        # What is not kept otherwise is kept alive meanwhile: another object must not get its identity.
        passed = []
        while pending:
            obj = pending.pop()
            if id(obj) in seen:
                continue
            seen.add(id(obj))
            codec = resolved.get(type(obj)) or codec_of(type(obj))
            if isinstance(codec, Mark):
                if codec is CONSTANT:
                    passed.append(obj)
                    continue
                raise UnbranchableEnvError(_describe_unknown(self._roots, obj))
            try:
                state = codec.save(obj)
                referents = [*codec.children(state)]
            except Exception as error:
                raise UnbranchableEnvError(_describe_failure(self._roots, obj, error)) from error
            pending += _changeable(referents)
            if type(codec) is ReferencesCodec:
                passed.append(obj)
                continue
            refer = None if type(codec) is LeafCodec else codec.children
            self.visits.append(_Visit(obj, codec.save, codec.restore, refer, referents))
            self.states.append(state)

    def again(self) -> "tuple[Snapshot, int] | None":
        """
        Save the same objects once more, and walk only over what they refer to now and did not before.

        :return: a snapshot of the present, and the number of references that are gone: what was behind them is still saved;
            ``None`` if an object can no longer be saved
        """
        snapshot = Snapshot()
        snapshot._roots = self._roots
        states, visits, pending, n_gone = snapshot.states, self.visits, [], 0
        try:
            for idx, (obj, save, restore, refer, known_referents) in enumerate(self.visits):
                state = save(obj)
                states.append(state)
                if refer is None:
                    continue
                referents = [*refer(state)]
                if len(referents) == len(known_referents) and all(map(is_, referents, known_referents)):
                    continue
                if visits is self.visits:
                    visits = self.visits.copy()
                visits[idx] = _Visit(obj, save, restore, refer, referents)
                children, known_children = _changeable(referents), _changeable(known_referents)
                known = set(map(id, known_children))
                pending += [child for child in children if id(child) not in known]
                n_gone += len(known.difference(map(id, children)))
            snapshot.visits = visits
            if pending:
                snapshot._walk(pending, {id(_BUILTINS), *(id(visit.obj) for visit in visits)})
        except Exception:
            return None
        return snapshot, n_gone

    def include(self, other: "Snapshot") -> None:
        """
        Add what another snapshot has saved.

        :param other: a snapshot of other objects
        """
        self._others.append(other)

    def restore(self) -> None:
        """
        Bring every object back to the state of the snapshot.

        :raises UnrestorableStateError: if that is impossible for one of them; all others are restored
        """
        try:
            for (obj, _, restore, _, _), state in zip(self.visits, self.states, strict=True):
                restore(obj, state)
        except Exception:
            self._restore_one_by_one()
        finally:
            for other in self._others:
                other.restore()

    def _restore_one_by_one(self) -> None:
        failure: tuple[Any, Exception] | None = None
        for (obj, _, restore, _, _), state in zip(self.visits, self.states, strict=True):
            try:
                restore(obj, state)
            except Exception as error:
                failure = failure or (obj, error)
        if failure is not None:
            obj, cause = failure
            raise UnrestorableStateError(
                f"{_path_to(self._roots, obj)} is a {kind_of(obj)}, and what a branch did to it cannot be undone: "
                f"{type(cause).__name__}: {cause}\n{_ways_out(obj)}"
            ) from cause

    def differs(self) -> bool:
        """Tell whether any object is in another state now."""
        is_same = (_same(visit.save(visit.obj), state) for visit, state in zip(self.visits, self.states, strict=True))
        return not all(is_same) or any(other.differs() for other in self._others)


def _same(first: Any, second: Any) -> bool:
    """Compare two saved states bit for bit."""
    if first is second:
        return True
    if type(first) is not type(second):
        return False
    if isinstance(first, list | tuple):
        return len(first) == len(second) and all(map(_same, first, second))
    if isinstance(first, dict):
        return len(first) == len(second) and all(map(_same, (*first, *first.values()), (*second, *second.values())))
    if hasattr(first, "tobytes"):
        return bool(first.dtype == second.dtype and first.shape == second.shape and first.tobytes() == second.tobytes())
    if hasattr(first, "detach"):
        return bool(first.equal(second))
    try:
        return bool(first == second) or repr(first) == repr(second)
    except Exception:
        return False


def _describe_unknown(roots: tuple[Any, ...], target: Any) -> str:
    return f"{_path_to(roots, target)} is a {kind_of(target)}, whose state cannot be saved and restored.\n{_ways_out(target)}"


def _describe_failure(roots: tuple[Any, ...], target: Any, error: Exception) -> str:
    if isinstance(error, UnbranchableEnvError):
        return f"{_path_to(roots, target)} is a {kind_of(target)} that cannot be saved: {error}.\n{_ways_out(target)}"
    return (
        f"{_path_to(roots, target)} is a {kind_of(target)}, and saving its state raised {type(error).__name__}: {error}\n"
        f"{_ways_out(target)}"
    )


def _ways_out(target: Any) -> str:
    return (
        f"Ways out: (1) tell how, with sb3_hybrid_grpo.branching.register_codec({type(target).__name__}, codec), or "
        "register it as CONSTANT if it holds no simulator state; (2) branch by forking the process, with "
        "brancher='fork'; (3) train without branching, with n_samples=1."
    )


def _path_to(roots: tuple[Any, ...], target: Any) -> str:
    found = find(roots, lambda obj: obj is target)
    return type(target).__name__ if found is None else found[0]


def find(roots: tuple[Any, ...], is_wanted: Callable[[Any], bool]) -> tuple[str, Any] | None:
    """
    Walk as a snapshot does, past whatever it could not save, to the first object of some kind.

    :param roots: where the walk starts
    :param is_wanted: tells that kind; it is not asked about types registered as ``CONSTANT``
    :return: how to get there, and the object; ``None`` if there is no such object
    """
    seen: dict[int, Any] = {}
    pending = [(root, type(root).__name__) for root in roots]
    while pending:
        obj, path = pending.pop()
        codec = codec_of(type(obj))
        if codec is CONSTANT or id(obj) in seen:
            continue
        seen[id(obj)] = obj
        if is_wanted(obj):
            return path, obj
        if isinstance(codec, Mark):
            continue
        try:
            state = codec.save(obj)
            children = list(codec.children(state))
        except Exception:
            continue
        names = _names_of_children(obj, state)
        for index, child in enumerate(children):
            name = names.get(id(child), f"[{index}]")
            pending.append((child, type(child).__name__ if name == ".env" else path + name))
    return None


def _names_of_children(obj: Any, state: Any) -> dict[int, str]:
    """Tell how code gets from an object to those that its state refers to."""
    names = {}
    for part in state if isinstance(state, tuple) else (state,):
        if isinstance(part, dict):
            for key, value in part.items():
                is_item = isinstance(obj, dict) and key in obj
                names[id(value)] = f"[{key!r}]" if is_item else f".{key}"
    return names
