"""Codec of MuJoCo's simulation state."""

from typing import Any
from weakref import WeakKeyDictionary

from sb3_hybrid_grpo.branching.snapshot import CONSTANT, LeafCodec, Mark, register_builtin, register_fallback

# Making an MjData takes a hundred times as long as copying one: copies that are no longer needed are used again.
_spare_copies: "WeakKeyDictionary[Any, list[Any]]" = WeakKeyDictionary()


class _Copy:
    """A copy of an ``MjData``, kept for the next snapshot when this one is gone."""

    __slots__ = ("data", "spare")

    def __init__(self, source: Any) -> None:
        import mujoco

        model = source.model
        spare = _spare_copies.get(source)
        if spare is None:
            spare = _spare_copies[source] = []
        self.spare = spare
        self.data = spare.pop() if spare else mujoco.MjData(model)
        mujoco.mj_copyData(self.data, model, source)

    def __del__(self) -> None:
        if hasattr(self, "data"):
            self.spare.append(self.data)


def _restore(obj: Any, state: _Copy) -> None:
    import mujoco

    mujoco.mj_copyData(obj, obj.model, state.data)


def _part_codec(cls: type) -> Mark | None:
    """Serve names for parts of an ``MjData`` or ``MjModel``."""
    return CONSTANT if getattr(cls, "__module__", "") == "mujoco._structs" and cls.__name__.startswith("_Mj") else None


register_fallback(_part_codec)
register_builtin("mujoco._structs.MjData", LeafCodec(_Copy, _restore))
register_builtin("mujoco._structs.MjModel", CONSTANT)
