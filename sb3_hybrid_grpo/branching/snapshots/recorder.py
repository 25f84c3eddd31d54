"""Snapshots of the same objects, one after the other."""

from typing import Any

from sb3_hybrid_grpo.branching.snapshots.snapshot import Snapshot


class Recorder:
    """
    Takes one snapshot after the other. Only the first walks over everything; later ones over what has come new.

    What is no longer referred to stays in the snapshots, until to save it has cost as much as another walk.

    :param roots: where a walk starts
    """

    def __init__(self, *roots: Any) -> None:
        self._roots = roots
        self._last: Snapshot | None = None
        self._n_gone = 0
        self._waste = 0

    def take(self) -> Snapshot:
        """
        Save the present.

        :return: a snapshot of everything reachable from the roots
        :raises UnbranchableEnvError: see ``Snapshot``
        """
        again = None
        if self._last is not None and self._waste <= len(self._last.visits):
            again = self._last.again()
        if again is None:
            self._last = Snapshot(*self._roots)
            self._n_gone = self._waste = 0
        else:
            self._last, n_gone = again
            self._n_gone += n_gone
            self._waste += self._n_gone
        return self._last
