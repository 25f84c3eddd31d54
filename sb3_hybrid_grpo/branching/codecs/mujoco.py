"""Codecs of MuJoCo's simulation state, and of what dm_control wraps around it."""

from typing import Any
from weakref import WeakKeyDictionary

import numpy as np

from sb3_hybrid_grpo.branching.codecs.generic import AttributesCodec
from sb3_hybrid_grpo.branching.snapshot import (
    CONSTANT,
    LeafCodec,
    Mark,
    Snapshot,
    find,
    kind_of,
    register_builtin,
    register_fallback,
)

_DATA = "mujoco._structs.MjData"

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


class PrivateData:
    """
    Gives every branch of an environment an ``MjData`` of its own.

    Nothing is copied between the steps of a branch then: a snapshot only remembers which ``MjData`` the environment holds.

    :param env: one of Gymnasium's own MuJoCo environments
    """

    def __init__(self, env: Any) -> None:
        self._attributes = vars(env)
        self._model: Any = None
        self._copies: list[Any] = []
        self.types = frozenset({type(env.data)})

    @classmethod
    def of(cls, env: Any, snapshot: Snapshot) -> "PrivateData | None":
        """
        Decide whether an environment can be served.

        :param env: the innermost environment
        :param snapshot: a snapshot of it and its wrappers
        :return: ``None`` unless it is the only one to hold its ``MjData``, and nobody holds a view of that
        """
        if not type(env).__module__.startswith("gymnasium.envs.mujoco.") or kind_of(vars(env).get("data")) != _DATA:
            return None
        n_holders = sum(kind_of(child) == _DATA for visit in snapshot.visits for child in visit.children)
        has_views = any(isinstance(visit.obj, np.ndarray) and visit.obj.base is not None for visit in snapshot.visits)
        return None if has_views or n_holders != 1 else cls(env)

    def give(self, idx: int) -> None:
        """
        Let the environment go on with a copy of its ``MjData``.

        :param idx: number of the copy
        """
        import mujoco

        model = self._attributes["model"]
        if model is not self._model:
            self._model, self._copies = model, []
        while len(self._copies) <= idx:
            self._copies.append(mujoco.MjData(model))
        mujoco.mj_copyData(self._copies[idx], model, self._attributes["data"])
        self._attributes["data"] = self._copies[idx]


class ModelParameters:
    """
    Stands for the parameters of an ``MjModel``, for snapshots around a reset, which may change them.

    Other snapshots leave them out: to copy them takes as long as many steps.

    :param model: the model
    """

    def __init__(self, model: Any) -> None:
        self.model = model

    def arrays(self) -> dict[str, np.ndarray]:
        """
        Look the parameters up.

        :return: views of those that can be changed, by name
        """
        values = {name: getattr(self.model, name) for name in dir(self.model)}
        return {name: value for name, value in values.items() if isinstance(value, np.ndarray) and value.flags.writeable}

    def restore(self, state: dict[str, np.ndarray]) -> None:
        """
        Write the parameters back.

        :param state: copies of them
        """
        for name, array in self.arrays().items():
            array[...] = state[name]


def model_parameters(roots: tuple[Any, ...]) -> list[ModelParameters]:
    """
    Find the models that an environment simulates.

    :param roots: where the walk starts
    :return: their parameters
    """
    models: list[Any] = []

    def note(obj: Any) -> bool:
        if kind_of(obj) == _DATA:
            models.append(obj.model)
        return False

    find(roots, note)
    return [ModelParameters(model) for model in models]


def _part_codec(cls: type) -> Mark | None:
    """Serve names for parts of an ``MjData`` or ``MjModel``."""
    return CONSTANT if getattr(cls, "__module__", "") == "mujoco._structs" and cls.__name__.startswith("_Mj") else None


register_fallback(_part_codec)
register_builtin(_DATA, LeafCodec(_Copy, _restore))
register_builtin("mujoco._structs.MjModel", CONSTANT)
register_builtin(
    ModelParameters,
    LeafCodec[ModelParameters, dict[str, np.ndarray]](
        lambda obj: {name: array.copy() for name, array in obj.arrays().items()}, ModelParameters.restore
    ),
)
register_builtin("dm_control.mujoco.engine.Physics", AttributesCodec(constant=("_contexts", "_contexts_lock")))
