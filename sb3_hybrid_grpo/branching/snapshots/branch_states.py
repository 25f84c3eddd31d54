"""Where the branches of one environment are between their steps."""

import functools
import time
import types
from typing import Any, Protocol

import gymnasium as gym

from sb3_hybrid_grpo.branching.snapshots.costs import COSTLY_SECONDS, cost_of
from sb3_hybrid_grpo.branching.snapshots.recorder import Recorder
from sb3_hybrid_grpo.branching.snapshots.sizes import bytes_of
from sb3_hybrid_grpo.branching.snapshots.snapshot import Snapshot
from sb3_hybrid_grpo.common import UnbranchableEnvError, warn

_START = -1
_STARTS_BETWEEN_MEASUREMENTS = 256
_KNOWN_PACKAGES = ("gymnasium.envs.", "ale_py.")
_FUNCTIONS = (types.FunctionType, types.MethodType, functools.partial)
# Further ones would share what the policy costs among more branches, but keep Python's garbage collector busy.
_MOST_BRANCHES = 64
_MOST_BYTES = 1 << 25


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
    is_known = type(layers[-1]).__module__.startswith(_KNOWN_PACKAGES) and not any(map(_is_changed, layers))
    return tuple(layers) if is_known else None


def _is_changed(layer: gym.Env[Any, Any]) -> bool:
    """Tell whether a function was put into a layer or its classes in place of their own."""
    own = type(layer)
    return any(callable(value) and hasattr(own, name) for name, value in vars(layer).items()) or any(
        isinstance(function, _FUNCTIONS) and getattr(function, "__module__", None) != base.__module__
        for base in own.__mro__
        for function in vars(base).values()
    )


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
        self._kept: dict[int, Snapshot] = {}
        self._is_at_start = False
        self._n_starts = 0
        self._is_announced = False
        self._is_recalled = False
        self._remembered: list[tuple[Snapshot, Snapshot]] = []
        self._aside: Recorder | None = None
        self._asides: dict[int, Snapshot] = {}
        self.branches_at_once = _MOST_BRANCHES

    def begin(self) -> None:
        """Take a snapshot of the start, see ``BranchStates``."""
        self._branches.update(self._kept)
        self._kept = {}
        self._is_at_start = self._start is None and not self._is_recalled
        if self._start is None:
            self._n_starts += 1
            if self._n_starts % _STARTS_BETWEEN_MEASUREMENTS == 0 and not self._is_announced:
                self._measure()
            self._start = self._take(_START)
            if self._is_recalled:
                self._start.include(self._dropped(self._start))

    def _dropped(self, start: Snapshot) -> Snapshot:
        """Save what the environment held in the states that are recalled, and does not any more: others may hold it."""
        known = {id(visit.obj) for visit in start.visits}
        then = {id(branch.visits): branch.visits for branch in self._branches.values() if branch.visits is not start.visits}
        dropped = {id(obj): obj for visits in then.values() for obj, *_ in visits if id(obj) not in known}
        try:
            return Snapshot(*dropped.values())
        except UnbranchableEnvError:
            return Snapshot()  # Whoever holds them has put something into them that no environment may.

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
        branch = self._kept.get(idx) or self._branches.get(idx, self._start)
        if branch is not None and not self._is_at_start:
            branch.restore()
        self._is_at_start = False

    def keep(self, idx: int) -> None:
        """Take a snapshot of a branch, see ``BranchStates``."""
        self._kept[idx] = self._take(_START if self._is_recalled else idx)

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
        """Forget all snapshots of branches."""
        self._start = None
        self._is_recalled = False
        self._branches, self._kept, self._asides = {}, {}, {}

    def include(self, shared_roots: tuple[Any, ...]) -> None:
        """Save further objects, see ``BranchStates``."""
        self._roots += shared_roots
        self._recorders.clear()
        for snapshot in filter(None, (self._start, *self._branches.values(), *self._kept.values())):
            snapshot.include(Snapshot(*shared_roots))

    def take_again(self, shared_roots: tuple[Any, ...]) -> None:
        """
        Forget the last round of steps, in which shared objects changed that were not saved, and save them from now on.

        :param shared_roots: the objects, which were brought back to where they were before this round
        """
        self._kept = {}
        self.include(shared_roots)
        for idx, snapshot in self._branches.items():
            if idx in self._asides:
                snapshot.include(self._asides[idx])

    def set_aside(self, shared_roots: tuple[Any, ...]) -> None:
        """
        Keep what branches have not been seen to change with each state that is remembered, in case that they do.

        :param shared_roots: the objects
        """
        self._aside = Recorder(*shared_roots)

    def remember(self) -> None:
        """Keep the present state, for branches to come."""
        snapshot = self._take(_START)
        if not self._remembered:
            n_bytes = bytes_of(snapshot)
            self.branches_at_once = 0 if n_bytes is None else min(_MOST_BRANCHES, _MOST_BYTES // n_bytes)
        self._remembered.append((snapshot, self._aside.take() if self._aside is not None else Snapshot()))

    def forget(self) -> None:
        """Forget the states that were kept."""
        self._remembered = []

    def recall(self, n_branches: int) -> None:
        """
        Have branches start from the states that were kept, and forget these.

        :param n_branches: number of branches: of T states each is where ``n_branches`` / T of them start, in their order
        """
        self.close()
        n_states = len(self._remembered)
        for idx in range(n_branches):
            self._branches[idx], self._asides[idx] = self._remembered[idx * n_states // n_branches]
        self._is_recalled = True
        self.forget()
