"""What was saved of large objects, to be shared by all snapshots between which they do not change."""

import weakref
from collections.abc import Callable
from typing import Any, Generic, TypeVar

S = TypeVar("S")


class LastStates(Generic[S]):
    """The last state of each of many objects. They are told apart by identity, and forgotten when they are gone."""

    def __init__(self) -> None:
        self._states: dict[int, tuple[weakref.ref[Any], S]] = {}

    def get(self, obj: Any) -> S | None:
        """
        Look a state up.

        :param obj: the object
        :return: its last state, if there is one
        """
        known = self._states.get(id(obj))
        return known[1] if known is not None and known[0]() is obj else None

    def put(self, obj: Any, state: S) -> None:
        """
        Keep a state.

        :param obj: the object
        :param state: its state
        """
        key = id(obj)
        self._states[key] = weakref.ref(obj, self._forgetting(key)), state

    def _forgetting(self, key: int) -> Callable[[weakref.ref[Any]], None]:
        states = self._states

        def forget(reference: weakref.ref[Any]) -> None:
            known = states.get(key)
            if known is not None and known[0] is reference:
                del states[key]

        return forget
