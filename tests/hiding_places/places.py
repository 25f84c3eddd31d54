"""
What a place is that an environment may keep state in, and the list of all of them.

A place counts its visits, and what it counts rises late: a level that each step is rewarded with goes up every so many visits.
Each function in ``PLACES`` returns a new class, so that no two runs share what is kept on classes, in closures and the like.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple


class Place:
    """
    What counts visits.

    :ivar period: visits per level
    :ivar folder: where traces are left
    """

    period: int
    folder: Path

    def set_up(self):
        pass

    def tear_down(self):
        pass

    def level(self):
        return self.count() // self.period

    def count(self):
        raise NotImplementedError


class LatePlace(Place):
    """Changes at every new level only, beside a plain counter that any snapshot finds."""

    n_visits = 0

    def level(self):
        self.n_visits += 1
        if self.n_visits % self.period == 0:
            self.change()
        return self.look()

    def change(self):
        raise NotImplementedError

    def look(self):
        raise NotImplementedError


class Kind(NamedTuple):
    """
    A kind of place.

    :param make_class: returns a new class of places
    :param names: what may be said of it, one of which has to be
    :param trace: the name of the file in which every visit leaves a row, and how to count these
    """

    make_class: Callable[[], type[Place]]
    names: tuple[str, ...]
    trace: tuple[str, Callable[[Path], int]] | None = None

    def rows(self, folder: Path) -> int:
        """Count the rows that were left in a folder."""
        assert self.trace is not None
        file_name, count = self.trace
        return count(folder / file_name)


PLACES: dict[str, Kind] = {}


def place(*names: str, trace: tuple[str, Callable[[Path], int]] | None = None) -> Callable[[Any], Any]:
    def register(make_class: Callable[[], type[Place]]) -> Callable[[], type[Place]]:
        PLACES[make_class.__name__] = Kind(make_class, names, trace)
        return make_class

    return register
