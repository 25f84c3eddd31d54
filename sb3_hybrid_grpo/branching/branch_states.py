"""Where the branches of one environment are between their steps."""

from typing import Any, Protocol

from sb3_hybrid_grpo.branching.snapshot import Recorder, Snapshot

_START = -1


class BranchStates(Protocol):
    """
    The states of the branches of one environment.

    Each round of steps is ``begin``, then ``enter``, a step and possibly ``keep`` for each branch, then ``leave``.
    """

    uses_global_generators: bool
    """Whether a step may draw from random generators that the whole process shares."""

    def begin(self) -> None:
        """Remember the present state as the one that branches start from, if none is open."""

    def enter(self, idx: int, is_last: bool) -> None:
        """
        Bring the environment into the state of a branch, opening it if it is not open.

        :param idx: number of the branch
        :param is_last: whether it takes its last step
        """

    def keep(self, idx: int) -> None:
        """
        Remember the present state as that of a branch.

        :param idx: number of the branch
        """

    def leave(self) -> None:
        """Bring the environment back to where the branches started. Harmless when called twice."""

    def close(self) -> None:
        """Forget the branches."""

    def include(self, shared_roots: tuple[Any, ...]) -> None:
        """
        Save further objects from now on, and with the open branches, which have not changed them yet.

        :param shared_roots: the objects
        """


class SavedStates:
    """
    Snapshots of the environment, restored in place.

    :param roots: where they start
    """

    uses_global_generators = True

    def __init__(self, *roots: Any) -> None:
        self._roots = roots
        self._recorders: dict[int, Recorder] = {}
        self._start: Snapshot | None = None
        self._branches: dict[int, Snapshot] = {}
        self._is_at_start = False

    def begin(self) -> None:
        """Take a snapshot of the start, see ``BranchStates``."""
        self._is_at_start = self._start is None
        if self._start is None:
            self._start = self._take(_START)

    def enter(self, idx: int, is_last: bool) -> None:
        """Restore a branch or the start, see ``BranchStates``."""
        branch = self._branches.get(idx, self._start)
        if branch is not None and not self._is_at_start:
            branch.restore()
        self._is_at_start = False

    def keep(self, idx: int) -> None:
        """Take a snapshot of a branch, see ``BranchStates``."""
        self._branches[idx] = self._take(idx)

    def _take(self, key: int) -> Snapshot:
        recorder = self._recorders.get(key)
        if recorder is None:
            recorder = self._recorders[key] = Recorder(*self._roots)
        return recorder.take()

    def leave(self) -> None:
        """Restore the start, see ``BranchStates``."""
        if self._start is not None:
            self._start.restore()

    def close(self) -> None:
        """Forget all snapshots."""
        self._start = None
        self._branches.clear()

    def include(self, shared_roots: tuple[Any, ...]) -> None:
        """Save further objects, see ``BranchStates``."""
        self._roots += shared_roots
        self._recorders.clear()
        for snapshot in filter(None, (self._start, *self._branches.values())):
            snapshot.include(Snapshot(*shared_roots))
