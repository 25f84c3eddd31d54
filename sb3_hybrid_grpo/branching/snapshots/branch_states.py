"""Where the branches of one environment are between their steps."""

import time
import types
from typing import Any, Protocol

import gymnasium as gym

from sb3_hybrid_grpo.branching.snapshots.costs import COSTLY_SECONDS, cost_of
from sb3_hybrid_grpo.branching.snapshots.recorder import Recorder
from sb3_hybrid_grpo.branching.snapshots.snapshot import Snapshot
from sb3_hybrid_grpo.common import warn

_START = -1
_STARTS_BETWEEN_MEASUREMENTS = 256
_KNOWN_PACKAGES = ("gymnasium.envs.", "ale_py.")


def known_layers(root: gym.Env[Any, Any]) -> tuple[Any, ...] | None:
    """
    Take an environment apart whose code is known: it draws from no random generator but its own.

    :param root: the outermost wrapper, with those taken out that only watch
    :return: wrappers and environment, outermost first; ``None`` unless it is one of Gymnasium's or of the Arcade Learning
        Environment's, unchanged and in no wrapper but ``TimeLimit``
    """
    layers: list[Any] = [root]
    while type(layers[-1]) is gym.wrappers.TimeLimit:
        layers.append(layers[-1].env)
    is_changed = any(
        isinstance(value, types.FunctionType | types.MethodType) for obj in layers for value in vars(obj).values()
    )
    return tuple(layers) if type(layers[-1]).__module__.startswith(_KNOWN_PACKAGES) and not is_changed else None


class BranchStates(Protocol):
    """
    The states of the branches of one environment.

    Each round of steps is ``begin``, then ``enter``, a step and possibly ``keep`` for each branch, then ``leave``.
    """

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
    Snapshots of the environment, restored in place. A warning says, once, if they have come to take long.

    :param roots: where they start
    """

    def __init__(self, *roots: Any) -> None:
        self._roots = roots
        self._recorders: dict[int, Recorder] = {}
        self._start: Snapshot | None = None
        self._branches: dict[int, Snapshot] = {}
        self._is_at_start = False
        self._n_starts = 0
        self._is_announced = False

    def begin(self) -> None:
        """Take a snapshot of the start, see ``BranchStates``."""
        self._is_at_start = self._start is None
        if self._start is None:
            self._n_starts += 1
            if self._n_starts % _STARTS_BETWEEN_MEASUREMENTS == 0 and not self._is_announced:
                self._measure()
            self._start = self._take(_START)

    def _measure(self) -> None:
        started = time.perf_counter()
        self._take(_START)
        if time.perf_counter() - started > COSTLY_SECONDS / 2:
            cost = cost_of(*self._roots)
            if cost is not None:
                self._is_announced = True
                warn(f"Snapshots have come to take long. {cost}")

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
