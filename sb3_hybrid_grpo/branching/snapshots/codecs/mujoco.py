"""Codecs of MuJoCo's simulation state, and of what dm_control wraps around it."""

import ctypes
import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import gymnasium as gym
import numpy as np

from sb3_hybrid_grpo.branching.snapshots.branch_states import known_layers
from sb3_hybrid_grpo.branching.snapshots.codecs.generic import AttributesCodec
from sb3_hybrid_grpo.branching.snapshots.registry import (
    CONSTANT,
    LeafCodec,
    Mark,
    kind_of,
    register_builtin,
    register_fallback,
)
from sb3_hybrid_grpo.branching.snapshots.snapshot import find
from sb3_hybrid_grpo.common import UnbranchableEnvError

_DATA = "mujoco._structs.MjData"
_LIBRARIES = ("libmujoco.so*", "libmujoco*.dylib", "mujoco.dll")

# Making an MjData takes a hundred times as long as copying one: copies that are no longer needed are used again.
_spare_copies: "WeakKeyDictionary[Any, list[Any]]" = WeakKeyDictionary()


def _copy_data(destination: Any, source: Any) -> None:
    _copy_function()(destination, source.model, source)


@functools.cache
def _copy_function() -> Callable[[Any, Any, Any], None]:
    """
    Find the function that copies an ``MjData`` into another. Before version 3.5 only the library of MuJoCo has it.

    :return: the function
    :raises UnbranchableEnvError: if there is none
    """
    import mujoco

    if hasattr(mujoco, "mj_copyData"):
        copy: Callable[[Any, Any, Any], None] = mujoco.mj_copyData
        return copy
    by_address = _function_of_library(mujoco)
    if by_address is None or not _copies_contacts(mujoco, by_address):
        raise UnbranchableEnvError(
            f"MuJoCo {mujoco.__version__} cannot copy its state. Versions from 3.3 on can: install one that the environment's "
            "own package allows as well."
        )
    return by_address


def _function_of_library(mujoco: Any) -> Callable[[Any, Any, Any], None] | None:
    libraries = [path for pattern in _LIBRARIES for path in sorted(Path(mujoco.__file__).parent.glob(pattern))]
    if not libraries or not (hasattr(mujoco.MjData, "_address") and hasattr(mujoco.MjModel, "_address")):
        return None
    function = ctypes.CDLL(str(libraries[0])).mj_copyData
    function.argtypes, function.restype = [ctypes.c_void_p] * 3, ctypes.c_void_p

    def copy(destination: Any, model: Any, source: Any) -> None:
        function(destination._address, model._address, source._address)

    return copy


def _copies_contacts(mujoco: Any, copy: Callable[[Any, Any, Any], None]) -> bool:
    """Try a ball that touches the ground: some versions leave out what they know of contacts."""
    model = mujoco.MjModel.from_xml_string(
        "<mujoco><worldbody><geom type='plane' size='1 1 1'/><body pos='0 0 .09'><freejoint/><geom size='.1'/></body>"
        "</worldbody></mujoco>"
    )
    data, copied = mujoco.MjData(model), mujoco.MjData(model)
    mujoco.mj_step(model, data)
    copy(copied, model, data)
    return (
        len(data.contact) > 0
        and np.array_equal(copied.contact.dist, data.contact.dist)
        and np.array_equal(copied.efc_force, data.efc_force)
    )


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
        _copy_data(self.data, source)

    def __del__(self) -> None:
        if hasattr(self, "data"):
            self.spare.append(self.data)


def _restore(obj: Any, state: _Copy) -> None:
    _copy_data(obj, state.data)


class PrivateStates:
    """
    Gives every branch of one of Gymnasium's own environments an ``MjData`` and instance dictionaries of its own.

    Nothing is saved, restored or copied between the steps of a branch then. What these environments share between branches
    in this way, they do not change in ``step``.

    :param layers: wrappers and environment, outermost first
    """

    def __init__(self, layers: Sequence[Any]) -> None:
        self._layers = tuple(layers)
        self._originals: tuple[dict[str, Any], ...] = ()
        self._branches: dict[int, tuple[dict[str, Any], ...]] = {}
        self._model: Any = None
        self._data: list[Any] = []

    @classmethod
    def of(cls, root: gym.Env[Any, Any]) -> "PrivateStates | None":
        """
        Decide whether an environment can be served.

        :param root: the outermost wrapper, with those taken out that only watch
        :return: ``None`` unless it is one of Gymnasium's, unchanged and in no wrapper but ``TimeLimit``
        """
        layers = known_layers(root)
        return cls(layers) if layers is not None and kind_of(vars(layers[-1]).get("data")) == _DATA else None

    def begin(self) -> None:
        """Look up the present state, see ``BranchStates``."""
        self._originals = tuple(layer.__dict__ for layer in self._layers)

    def enter(self, idx: int, is_last: bool) -> None:
        """Exchange the instance dictionaries, see ``BranchStates``."""
        branch = self._branches.get(idx)
        if branch is None:
            branch = tuple(attributes.copy() for attributes in self._originals)
            branch[-1]["data"] = self._copy_data(0 if is_last else idx)
            if not is_last:
                self._branches[idx] = branch
        self._exchange(branch)

    def _exchange(self, dictionaries: tuple[dict[str, Any], ...]) -> None:
        for layer, attributes in zip(self._layers, dictionaries, strict=True):
            layer.__dict__ = attributes

    def _copy_data(self, idx: int) -> Any:
        import mujoco

        model, data = self._originals[-1]["model"], self._originals[-1]["data"]
        if model is not self._model:
            self._model, self._data = model, []
        while len(self._data) <= idx:
            self._data.append(mujoco.MjData(model))
        _copy_data(self._data[idx], data)
        return self._data[idx]

    def keep(self, idx: int) -> None:
        """Do nothing: a branch is where its own objects are."""

    def leave(self) -> None:
        """Give the environment its own objects back."""
        self._exchange(self._originals)

    def close(self) -> None:
        """Forget the branches."""
        self._branches.clear()

    def include(self, shared_roots: tuple[Any, ...]) -> None:
        """Do nothing: these environments use no random numbers in ``step``."""


def _is_writeable(value: Any) -> bool:
    return isinstance(value, np.ndarray) and value.flags.writeable


class ModelParameters:
    """
    Stands for the parameters of an ``MjModel``, for snapshots around what may change them.

    Other snapshots leave them out: to copy them takes as long as many steps.

    :param model: the model
    :ivar names: names of its arrays, and of its options
    """

    def __init__(self, model: Any) -> None:
        self.model = model
        of_model, of_options = ({name: getattr(part, name) for name in dir(part)} for part in (model, model.opt))
        arrays = [item for item in (*of_model.items(), *of_options.items()) if _is_writeable(item[1])]
        self._arrays = [array for _, array in arrays]
        self._options = [name for name, value in of_options.items() if isinstance(value, int | float)]
        self.names = {*dict(arrays), *self._options}

    def save(self) -> tuple[list[np.ndarray], list[float]]:
        """
        Copy the parameters.

        :return: arrays of the model and of its options, and options that are numbers
        """
        return [array.copy() for array in self._arrays], [getattr(self.model.opt, name) for name in self._options]

    def restore(self, state: tuple[list[np.ndarray], list[float]]) -> None:
        """
        Write the parameters back.

        :param state: copies of them
        """
        arrays, options = state
        for array, saved in zip(self._arrays, arrays, strict=True):
            array[...] = saved
        for name, value in zip(self._options, options, strict=True):
            setattr(self.model.opt, name, value)


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
register_builtin(ModelParameters, LeafCodec(ModelParameters.save, ModelParameters.restore))
register_builtin("dm_control.mujoco.engine.Physics", AttributesCodec(constant=("_contexts", "_contexts_lock")))
