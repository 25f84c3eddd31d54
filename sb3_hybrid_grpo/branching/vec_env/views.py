"""What the wrappers of vectorised environments do to observations and rewards, without their side effects."""

import copy
import itertools
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np
from stable_baselines3.common.running_mean_std import RunningMeanStd
from stable_baselines3.common.vec_env import (
    VecCheckNan,
    VecEnvWrapper,
    VecExtractDictObs,
    VecFrameStack,
    VecMonitor,
    VecNormalize,
    VecTransposeImage,
    VecVideoRecorder,
)
from stable_baselines3.common.vec_env.stacked_observations import StackedObservations

from sb3_hybrid_grpo.common import BranchOutcome, UnbranchableEnvError


class VecWrapperView(Protocol):
    """What a ``VecEnvWrapper`` does to the outcomes of branches."""

    has_memory: bool
    """Whether an outcome depends on those before it in its branch."""

    def before_step(self) -> None:
        """Remember what the wrapper holds at the state that branches start from, before the committed step."""

    def __call__(self, path: Sequence[BranchOutcome]) -> list[BranchOutcome]:
        """
        Transform outcomes as the wrapper would, with its statistics of now and its memory of ``before_step``.

        :param path: outcomes of the branches step by step, from the first one if ``has_memory``
        :return: the outcomes as the wrapper returns them
        """


class SendableView(VecWrapperView, Protocol):
    """A view that can be used in workers, which follow branches of several steps by themselves."""

    def sent(self, rows: slice) -> VecWrapperView:
        """
        Return the view as it is now, and stays until the committed step, for a worker.

        :param rows: the environments of the worker
        :return: what can be pickled, and does not need the wrapper
        """


class RecallableView(VecWrapperView, Protocol):
    """A view that can wait with its outcomes for macro-steps to come."""

    def forget(self) -> None:
        """Forget what was kept."""

    def remember(self) -> None:
        """Keep what the wrapper holds now, before a committed step."""

    def recall(self) -> tuple[VecWrapperView, VecWrapperView]:
        """
        Forget what was kept.

        :return: views of what the T macro-steps since then lead to, outcomes [E, T · n]: with what the wrapper held before
            their committed steps, and after these
        """


class _Unchanged:
    has_memory = False

    def __init__(self, wrapper: VecEnvWrapper) -> None:
        pass

    def before_step(self) -> None:
        pass

    def __call__(self, path: Sequence[BranchOutcome]) -> list[BranchOutcome]:
        return [self._transform(outcome) for outcome in path]

    def _transform(self, outcome: BranchOutcome) -> BranchOutcome:
        return outcome

    def forget(self) -> None:
        pass

    def remember(self) -> None:
        pass

    def recall(self) -> tuple[VecWrapperView, VecWrapperView]:
        return self, self

    def sent(self, rows: slice) -> VecWrapperView:
        return self


class _NormalizeView(_Unchanged):
    def __init__(self, wrapper: VecNormalize) -> None:
        self.wrapper = wrapper
        self._remembered: list[dict[str, Any]] = []

    def _transform(self, outcome: BranchOutcome) -> BranchOutcome:
        assert not isinstance(outcome.observations, tuple)
        return outcome._replace(
            observations=self.wrapper.normalize_obs(outcome.observations),
            rewards=self.wrapper.normalize_reward(outcome.rewards),
        )

    def forget(self) -> None:
        self._remembered = []

    def remember(self) -> None:
        # Arrays of statistics are replaced when they move, not written into.
        attributes = vars(self.wrapper)
        self._remembered.append({name: _copy(attributes[name]) for name in _NORMALISING if name in attributes})

    def recall(self) -> tuple[VecWrapperView, VecWrapperView]:
        self.remember()
        # The statistics after a macro-step are those before the next one.
        (*before, _), (_, *after) = self._remembered, self._remembered
        self.forget()
        return _RecalledNormalizeView(self.wrapper, before), _RecalledNormalizeView(self.wrapper, after)

    def sent(self, rows: slice) -> VecWrapperView:
        return _NormalizeView(_detached(self.wrapper))


class _RecalledNormalizeView(_NormalizeView):
    """Normalises outcomes [E, n] that belong to T macro-steps with what the wrapper was at each of these."""

    def __init__(self, wrapper: VecNormalize, remembered: Sequence[dict[str, Any]]) -> None:
        super().__init__(wrapper)
        self._remembered_of_steps = remembered

    def _transform(self, outcome: BranchOutcome) -> BranchOutcome:
        attributes = vars(self.wrapper)
        current = attributes.copy()
        try:
            rewards = []
            parts = np.split(outcome.rewards, len(self._remembered_of_steps), axis=1)
            for remembered, part in zip(self._remembered_of_steps, parts, strict=True):
                attributes.update(remembered)
                rewards.append(self.wrapper.normalize_reward(part))
            observations = self._normalize_obs(outcome.observations, parts[0].shape[1])
        finally:
            attributes.update(current)
        return outcome._replace(observations=observations, rewards=np.concatenate(rewards, axis=1))

    def _normalize_obs(self, observations: Any, n_branches: int) -> Any:
        """Normalise all macro-steps together that have the same limits, and differ in statistics at most."""
        normalized = []
        start = 0
        for _, group in itertools.groupby(self._remembered_of_steps, key=_limits):
            steps = list(group)
            part = slice(start, start := start + len(steps) * n_branches)
            vars(self.wrapper).update(steps[0])
            if "obs_rms" in steps[0]:
                self.wrapper.obs_rms = _stack([step["obs_rms"] for step in steps], n_branches)
            normalized.append(self.wrapper.normalize_obs(_columns(observations, part)))
        return normalized[0] if len(normalized) == 1 else _joined(normalized)

    def sent(self, rows: slice) -> VecWrapperView:
        return _RecalledNormalizeView(_detached(self.wrapper), self._remembered_of_steps)


def _detached(wrapper: VecNormalize) -> VecNormalize:
    """Return what normalises like a wrapper, without the environment in it."""
    detached: VecNormalize = VecNormalize.__new__(VecNormalize)
    vars(detached).update({name: value for name, value in vars(wrapper).items() if name in _NORMALISING})
    vars(detached).update(dict.fromkeys(_NOT_PICKLED), observation_space=wrapper.observation_space)
    return detached


_STATISTICS = ("obs_rms", "ret_rms")
_LIMITS = ("norm_obs", "norm_reward", "norm_obs_keys", "clip_obs", "clip_reward", "epsilon")
_NORMALISING = (*_STATISTICS, *_LIMITS)
_NOT_PICKLED = ("venv", "class_attributes", "returns")


def _limits(remembered: dict[str, Any]) -> list[Any]:
    return [remembered[name] for name in _LIMITS if name in remembered]


def _columns(observations: Any, part: slice) -> Any:
    if isinstance(observations, dict):
        return {key: values[:, part] for key, values in observations.items()}
    return observations[:, part]


def _joined(parts: Sequence[Any]) -> Any:
    if isinstance(parts[0], dict):
        return {key: np.concatenate([part[key] for part in parts], axis=1) for key in parts[0]}
    return np.concatenate(parts, axis=1)


def _copy(statistic: Any) -> Any:
    if isinstance(statistic, dict):
        return {key: copy.copy(part) for key, part in statistic.items()}
    return copy.copy(statistic)


def _stack(statistics: Sequence[Any], repeats: int) -> Any:
    if isinstance(statistics[0], dict):
        return {key: _stack([each[key] for each in statistics], repeats) for key in statistics[0]}
    stacked = RunningMeanStd()
    stacked.mean = np.array([each.mean for each in statistics]).repeat(repeats, axis=0)
    stacked.var = np.array([each.var for each in statistics]).repeat(repeats, axis=0)
    return stacked


class _ExtractDictObsView(_Unchanged):
    def __init__(self, wrapper: VecExtractDictObs) -> None:
        self.key = wrapper.key

    def _transform(self, outcome: BranchOutcome) -> BranchOutcome:
        assert isinstance(outcome.observations, dict)
        return outcome._replace(observations=outcome.observations[self.key])


class _TransposeImageView(_Unchanged):
    def __init__(self, wrapper: VecTransposeImage) -> None:
        self._skip = wrapper.skip
        self._keys = getattr(wrapper, "image_space_keys", ())

    def _transform(self, outcome: BranchOutcome) -> BranchOutcome:
        if self._skip:
            return outcome
        if isinstance(outcome.observations, np.ndarray):
            return outcome._replace(observations=_channels_first(outcome.observations))
        assert isinstance(outcome.observations, dict)
        images = {key: _channels_first(outcome.observations[key]) for key in self._keys}
        return outcome._replace(observations={**outcome.observations, **images})


class _FrameStackView(_Unchanged):
    has_memory = True

    def __init__(self, wrapper: VecFrameStack) -> None:
        self._wrapper = wrapper
        self._frozen = _FrozenStacks({}, {})

    def before_step(self) -> None:
        stacked = self._wrapper.stacked_obs
        parts: dict[str | None, StackedObservations[Any]] = getattr(stacked, "sub_stacked_observations", {None: stacked})
        self._frozen = _FrozenStacks(
            {key: part.stacked_obs[:, None].copy() for key, part in parts.items()},
            {key: part.channels_first for key, part in parts.items()},
        )

    def __call__(self, path: Sequence[BranchOutcome]) -> list[BranchOutcome]:
        return self._frozen(path)

    def sent(self, rows: slice) -> VecWrapperView:
        return self._frozen.of(rows)


class _FrozenStacks:
    """
    Stacks frames upon those of the state that branches start from.

    :param stacks: the state's frames, [E, 1, ...]; the key is ``None`` if observations are no dict
    :param channels_first: whether frames are stacked along their first axis
    """

    has_memory = True

    def __init__(self, stacks: dict[str | None, np.ndarray], channels_first: dict[str | None, bool]) -> None:
        self._stacks = stacks
        self._channels_first = channels_first

    def of(self, rows: slice) -> "_FrozenStacks":
        return _FrozenStacks({key: stack[rows] for key, stack in self._stacks.items()}, self._channels_first)

    def before_step(self) -> None:
        pass

    def __call__(self, path: Sequence[BranchOutcome]) -> list[BranchOutcome]:
        stacks, result = self._stacks, []
        for outcome in path:
            frames: Any = outcome.observations if isinstance(outcome.observations, dict) else {None: outcome.observations}
            stacks = {key: _push(first, stacks[key], frames[key]) for key, first in self._channels_first.items()}
            observations: Any = stacks.get(None, stacks)
            result.append(outcome._replace(observations=observations))
        return result


def _push(channels_first: bool, stacks: np.ndarray, frames: np.ndarray) -> np.ndarray:
    """Append frames [E, n, ...] to the stacks [E, 1 or n, ...] that they follow, dropping the oldest frame."""
    axis = 2 if channels_first else frames.ndim - 1
    kept = np.delete(stacks, np.s_[: frames.shape[axis]], axis=axis)
    kept = np.broadcast_to(kept, (*frames.shape[:2], *kept.shape[2:]))
    return np.concatenate((kept, frames), axis=axis, dtype=stacks.dtype, casting="unsafe")


def _channels_first(images: np.ndarray) -> np.ndarray:
    return np.moveaxis(images, -1, -3)


_views: dict[type[VecEnvWrapper], Callable[[Any], VecWrapperView]] = {
    VecCheckNan: _Unchanged,
    VecMonitor: _Unchanged,
    VecVideoRecorder: _Unchanged,
    VecNormalize: _NormalizeView,
    VecExtractDictObs: _ExtractDictObsView,
    VecTransposeImage: _TransposeImageView,
    VecFrameStack: _FrameStackView,
}


def register_vec_wrapper(wrapper_class: type[VecEnvWrapper], view: Callable[[Any], VecWrapperView]) -> None:
    """
    Teach branching what a ``VecEnvWrapper`` does to observations and rewards.

    :param wrapper_class: the wrapper's class; its subclasses are not meant
    :param view: called with the wrapper, returns its ``VecWrapperView``; a ``SendableView``, if workers are to follow branches
        of several steps by themselves
    """
    _views[wrapper_class] = view


def view_of(wrapper: VecEnvWrapper) -> VecWrapperView:
    """
    Return the view of a wrapper.

    :param wrapper: a wrapper around a vectorised environment
    :return: what it does to the outcomes of branches
    :raises UnbranchableEnvError: if nothing is known about wrappers of its class
    """
    view = _views.get(type(wrapper))
    if view is None:
        raise UnbranchableEnvError(
            f"What {type(wrapper).__name__} does to observations and rewards is unknown, so branches cannot go through it.\n"
            "Ways out: (1) tell, with sb3_hybrid_grpo.branching.register_vec_wrapper; (2) wrap the single environments "
            "instead of the vectorised one; (3) train without branching, with n_samples=1."
        )
    return view(wrapper)


def recallable(views: Sequence[VecWrapperView]) -> list[RecallableView] | None:
    """
    Decide whether outcomes can wait.

    :param views: views of all wrappers
    :return: the views, or ``None`` if one of them knows only the present
    """
    found = [view for view in views if isinstance(view, _Unchanged) and not view.has_memory]
    return [*found] if len(found) == len(views) else None


def see(outcome: BranchOutcome, earlier: Sequence[BranchOutcome], views: Sequence[VecWrapperView]) -> BranchOutcome:
    """
    Send what simulators returned through the wrappers.

    :param outcome: an outcome
    :param earlier: the outcomes of the steps before it in the same branches
    :param views: views of all wrappers, the innermost first
    :return: what the outermost wrapper returns for it
    """
    path = [*earlier, outcome] if any(view.has_memory for view in views) else [outcome]
    for view in views:
        path = view(path)
    return path[-1]


def sent(views: Sequence[VecWrapperView], rows: slice) -> list[VecWrapperView] | None:
    """
    Prepare views for a worker.

    :param views: views of all wrappers
    :param rows: the environments of the worker
    :return: the views as they are now, or ``None`` if one of them cannot be sent
    """
    senders = [getattr(view, "sent", None) for view in views]
    return None if None in senders else [send(rows) for send in senders]  # type: ignore[misc]
