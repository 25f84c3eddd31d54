"""What snapshots of an environment cost, and which of its attributes they cost it for."""

import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np

from sb3_hybrid_grpo.branching.snapshots.registry import kind_of
from sb3_hybrid_grpo.branching.snapshots.snapshot import Snapshot

COSTLY_SECONDS = 5e-3
"""From what time on a snapshot is worth a warning."""


class Cost(NamedTuple):
    """
    What a snapshot costs.

    :param seconds: to save and to restore everything
    :param owner: the wrapper or environment with the attribute that it costs most for
    :param name: the attribute's name
    :param share: what part of the time that takes
    :param changes: whether a step changed it; ``None`` if that was not tried
    """

    seconds: float
    owner: Any
    name: str
    share: float
    changes: bool | None = None

    def __str__(self) -> str:
        value = getattr(self.owner, self.name)
        owner = type(self.owner).__name__
        size = f" of {value.nbytes / 1e6:.0f} MB" if isinstance(value, np.ndarray) else ""
        mend = f"register_codec({owner}, AttributesCodec(constant=({self.name!r},))) of sb3_hybrid_grpo.branching"
        if isinstance(value, np.ndarray):
            mend += f", or {self.name}.flags.writeable = False"
        advice = (
            "Steps change it: keep less in it, or branch less (branch_fraction below 1, a shorter branch_horizon)."
            if self.changes
            else f"If steps never change it, say so, and it costs nothing: {mend}."
        )
        return (
            f"To save and restore {self.owner} takes {1000 * self.seconds:.1f} ms, {self.share:.0%} of it for "
            f"{owner}.{self.name}, a {kind_of(value)}{size}. {advice}"
        )


def cost_of(root: gym.Env[Any, Any], *roots: Any, step: Callable[[], Any] | None = None) -> Cost | None:
    """
    Measure what snapshots cost.

    :param root: the outermost wrapper that is saved
    :param roots: what else is saved
    :param step: takes a step of the environment
    :return: the cost; ``None`` if it is small
    """
    seconds = _seconds(root, *roots)
    if seconds < COSTLY_SECONDS:
        return None
    parts = {(id(layer), name): (_seconds(value), layer, name) for layer, name, value in _attributes(root)}
    if not parts:
        return None
    part, owner, name = max(parts.values(), key=_first)
    return Cost(seconds, owner, name, min(part / seconds, 1.0), step and _changes(getattr(owner, name), step))


def _changes(value: Any, step: Callable[[], Any]) -> bool:
    before = Snapshot(value)
    step()
    return before.differs()


def _first(part: tuple[float, Any, str]) -> float:
    return part[0]


def _attributes(root: gym.Env[Any, Any]) -> Iterator[tuple[Any, str, Any]]:
    layer: Any = root
    while layer is not None:
        for name, value in vars(layer).items():
            if name != "env":
                yield layer, name, value
        layer = layer.env if isinstance(layer, gym.Wrapper) else None


def _seconds(*roots: Any) -> float:
    """Return the time of a snapshot that is not the first."""
    snapshot = Snapshot(*roots)
    return min(_time(snapshot.again) + _time(snapshot.restore) for _ in range(3))


def _time(function: Callable[[], Any]) -> float:
    start = time.perf_counter()
    function()
    return time.perf_counter() - start
