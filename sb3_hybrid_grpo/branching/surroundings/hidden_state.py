"""State beside the attributes of an environment: saved with them, watched where that is costly, or refused by name."""

import io
import pickle
import time
from collections.abc import Sequence
from contextvars import ContextVar
from functools import partial
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np
import torch as th

from sb3_hybrid_grpo.branching.snapshots import (
    STATEFUL_MODULES,
    Mark,
    SavedStates,
    Snapshot,
    codec_of,
    codecs,
    find,
    known_layers,
)
from sb3_hybrid_grpo.branching.surroundings.hidden_places import Place, hidden_places
from sb3_hybrid_grpo.branching.surroundings.namespaces import ClassVariables, GlobalVariables
from sb3_hybrid_grpo.branching.surroundings.side_effects import is_outlet
from sb3_hybrid_grpo.common import UnbranchableEnvError, warn

_COSTLY_SECONDS = 1e-4
_WATCHING_SHARE = 0.01
# Snapshots of these are made for this process alone: where their memory lies is not what they contain.
_SAVED_WITH_ADDRESS = (np.random.Generator, np.random.BitGenerator, np.random.RandomState, th.Tensor)

_WAYS_OUT = (
    "Ways out: (1) keep that state in attributes, as self.name, and draw from self.np_random; (2) register a codec for it "
    "with sb3_hybrid_grpo.branching.register_codec, or CONSTANT if outcomes do not depend on it; (3) branch by forking the "
    "process, with brancher='fork'; (4) train without branching, with n_samples=1."
)


class _Saveable(NamedTuple):
    place: Place
    before: Snapshot
    seconds: float


class _Unsaveable(NamedTuple):
    place: Place
    before: Any
    reason: str


class HiddenState:
    """
    What an environment's code may change beside its attributes.

    :param root: the outermost wrapper, with those taken out that only watch
    :param roots: where snapshots of the attributes start
    :raises UnbranchableEnvError: if a cache keeps what cannot be repeated
    """

    def __init__(self, root: gym.Env[Any, Any], roots: tuple[Any, ...]) -> None:
        self._root = root
        self._roots = roots
        self._saveable: list[_Saveable] = []
        self._unsaveable: list[_Unsaveable] = []
        self._fleeting: list[_Saveable] = []
        self._known: dict[Any, Place] = {}
        self._sets_context = False
        self._models: dict[int, codecs.mujoco.ModelParameters] = {}
        self._search(is_first=True)

    def look_again(self) -> None:
        """Search once more, after a reset."""
        self._search(is_first=False)
        self.pass_over_reset()

    def pass_over_reset(self) -> None:
        """Take models for unchanged: what a reset does to them is not done by a step, and branches never reset."""
        self._saveable = [
            found._replace(before=Snapshot(found.place.root))
            if isinstance(found.place.root, codecs.mujoco.ModelParameters)
            else found
            for found in self._saveable
        ]

    def _search(self, is_first: bool) -> None:
        if known_layers(self._root) is not None:
            return
        places, caches, simulators, code = hidden_places(self._root, self._roots)
        if simulators:
            raise UnbranchableEnvError(
                f"the module {simulators[0]} cannot be restored: {STATEFUL_MODULES[simulators[0]]}.\nWays out: (1) branch by "
                "forking the process, with brancher='fork'; (2) train without branching, with n_samples=1."
            )
        self._sets_context |= any("set" in facts.attributes for facts in code)
        if caches:
            raise UnbranchableEnvError(
                f"the cache of {caches[0]} keeps results of a function that draws random numbers or changes something, and "
                f"cannot be saved and restored.\n{_WAYS_OUT}"
            )
        for model in codecs.mujoco.model_parameters(self._roots):
            if any(facts.may_write(name) for name in model.names for facts in code):
                model = self._models.setdefault(id(model.model), model)
                places.append(Place("the parameters of the MuJoCo model", model))
        for place in places:
            is_namespace = isinstance(place.root, ClassVariables | GlobalVariables)
            key = place.root.key if is_namespace else id(place.root)
            if key not in self._known:
                self._known[key] = place
                self._try(place, self._fleeting if place.is_fleeting and not is_first else self._saveable)

    def _try(self, place: Place, found: list[_Saveable]) -> None:
        try:
            Snapshot(place.root)
            start = time.perf_counter()
            snapshot = Snapshot(place.root)
            seconds = time.perf_counter() - start
        except UnbranchableEnvError as error:
            reason = str(error).splitlines()[0]
            is_opaque = partial(_is_opaque, sets_context=self._sets_context)
            if find((place.root,), is_opaque) is not None:
                raise UnbranchableEnvError(f"{place.name} cannot be saved and restored: {reason}\n{_WAYS_OUT}") from error
            if isinstance(place.root, ClassVariables | GlobalVariables) and len(place.root.names) > 1:
                kind = "class attribute" if isinstance(place.root, ClassVariables) else "global variable"
                for name, part in place.root.parts():
                    self._try(Place(f"the {kind} {name}", part), found)
                return
            self._unsaveable.append(_Unsaveable(place, _fingerprint(place.root), reason))
            return
        if snapshot.visits:
            found.append(_Saveable(place, snapshot, seconds))

    @property
    def roots(self) -> tuple[Any, ...]:
        """Where snapshots of all that can be saved start."""
        return tuple(found.place.root for found in self._saveable)

    @property
    def treatments(self) -> dict[str, str]:
        """What is done about each variable, by name."""
        saved = {found.place.name: "saved" for found in self._saveable}
        return saved | {place.name: "not saved, refused if it is seen to change" for place, *_ in self._unsaveable}

    @property
    def contents(self) -> dict[str, Any]:
        """Something for each variable, by name, that is equal if what is in it is."""
        return {found.place.name: _describe_content(found.place.root) for found in self._saveable}

    @property
    def first(self) -> str | None:
        """The name of the first variable that may change; ``None`` if there is none."""
        return next((place.name for place, *_ in (*self._saveable, *self._unsaveable)), None)

    @property
    def suspects(self) -> str:
        """A sentence on what cannot be saved and was not seen to change."""
        names = ", ".join(place.name for place, *_ in self._unsaveable)
        return f" Perhaps in {names}, which cannot be saved." if names else ""

    def settle(self) -> tuple[tuple[Any, ...], list[Place]]:
        """
        Decide what is saved, after steps were tried and before they are undone.

        :return: roots of what every snapshot has to save, and places that are costly and did not change
        :raises UnbranchableEnvError: if something changed that cannot be saved
        """
        for place, before, reason in self._unsaveable:
            if _fingerprint(place.root) != before:
                raise UnbranchableEnvError(f"{place.name} changes with steps and cannot be saved: {reason}\n{_WAYS_OUT}")
        for place, before, _ in self._fleeting:
            if before.differs():
                raise UnbranchableEnvError(
                    f"{place.name} changes with steps and cannot be saved: the function is another one after each "
                    f"reset.\n{_WAYS_OUT}"
                )
        saved: list[Place] = []
        watched: list[Place] = []
        for place, before, seconds in self._saveable:
            (watched if seconds > _COSTLY_SECONDS and not before.differs() else saved).append(place)
        return tuple(place.root for place in saved), watched


class WatchedStates(SavedStates):
    """
    Snapshots that leave out what is costly to save and does not seem to change. Now and then it is saved all the same: if a
    branch has changed it, it is put back, announced, and saved from then on.

    :param roots: where snapshots start
    :param places: what is watched
    :param env: the environment's name
    """

    def __init__(self, roots: Sequence[Any], places: Sequence[Place], env: str) -> None:
        super().__init__(*roots)
        self._places = list(places)
        self._env = env
        self._before: list[Snapshot] = []
        self._due = 0.0

    def begin(self) -> None:
        """Take a snapshot of the start, see ``BranchStates``."""
        super().begin()
        if time.monotonic() >= self._due:
            start = time.monotonic()
            self._before = [Snapshot(place.root) for place in self._places]
            self._due = time.monotonic() + (time.monotonic() - start) / _WATCHING_SHARE

    def leave(self) -> None:
        """Restore the start, see ``BranchStates``."""
        super().leave()
        before, self._before = self._before, []
        for place, snapshot in zip(tuple(self._places), before, strict=False):
            if snapshot.differs():
                snapshot.restore()
                self._places.remove(place)
                self.include((place.root,))
                warn(
                    f"{self._env}: a branch changed {place.name}, which had not changed when steps were tried. It was put "
                    "back and is saved with every branch from now on. Branches before may have left changes in it: keep it in "
                    "an attribute, as self.name.",
                )


class _Describer(pickle.Pickler):
    """Describes tensors by their values: pickled, they differ with the memory they lie in."""

    def reducer_override(self, obj: Any) -> Any:
        if isinstance(obj, th.Tensor):
            return tuple, ((str(obj.dtype), obj.tolist()),)
        return NotImplemented


def _describe_content(root: Any) -> Any:
    codec = codec_of(type(root))
    if isinstance(codec, Mark):
        return None
    description = io.BytesIO()
    try:
        _Describer(description).dump(root if isinstance(root, _SAVED_WITH_ADDRESS) else codec.save(root))
    except Exception:
        return None
    return description.getvalue()


def _is_opaque(obj: Any, sets_context: bool) -> bool:
    """Tell whether an object changes without being seen to."""
    is_variable = (sets_context and isinstance(obj, ContextVar)) or hasattr(type(obj), "__next__")
    return codec_of(type(obj)) is Mark.UNKNOWN and (is_variable or is_outlet(obj))


def _fingerprint(value: Any) -> Any:
    try:
        return pickle.dumps(value)
    except Exception:
        return repr(value)
