"""How much memory snapshots take, where they consist of nothing but Python's and NumPy's own objects."""

from typing import Any

import numpy as np

from sb3_hybrid_grpo.branching.snapshots.registry import user_codecs
from sb3_hybrid_grpo.branching.snapshots.snapshot import Snapshot

_PACKAGE = "sb3_hybrid_grpo.branching."
_PLAIN = frozenset(
    [_PACKAGE + "surroundings.namespaces"]
    + [f"{_PACKAGE}snapshots.codecs.{name}" for name in ("arrays", "containers", "generators", "generic", "memory")]
)
_OBJECT = 64
_REFERENCE = 16


def bytes_of(snapshot: Snapshot) -> int | None:
    """
    Estimate the memory that a snapshot takes.

    :param snapshot: the snapshot
    :return: number of bytes; ``None`` if it holds more than plain objects, or if users said of some how they are saved: what
        that takes is not known, nor whether many such states may be kept for long
    """
    if user_codecs() or any(visit.restore.__module__ not in _PLAIN for visit in snapshot.visits):
        return None
    return sum(_OBJECT + _bytes(state) for state in snapshot.states)


def _bytes(state: Any) -> int:
    if isinstance(state, np.ndarray):
        return state.nbytes + _OBJECT
    if isinstance(state, bytes | bytearray):
        return len(state)
    if isinstance(state, tuple):
        return sum(_REFERENCE + _bytes(part) for part in state)
    if hasattr(state, "memory"):
        return len(state.memory)
    return _REFERENCE * len(state) if hasattr(state, "__len__") else _REFERENCE
