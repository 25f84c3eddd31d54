"""Branching of environments that live in this process."""

import copy
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeAlias

import gymnasium as gym
import numpy as np
from gymnasium import spaces, wrappers
from stable_baselines3.common.monitor import Monitor

from sb3_hybrid_grpo.branching import codecs, randomness
from sb3_hybrid_grpo.branching.snapshot import Snapshot
from sb3_hybrid_grpo.branching.time_limit import time_limit
from sb3_hybrid_grpo.common.type_aliases import (
    BranchError,
    BranchOutcome,
    BranchTimeoutError,
    Observations,
    UnbranchableEnvError,
)

__all__ = ["LocalBrancher", "codecs", "register_transparent_wrapper"]

_PROBE_STEPS = 8

_AnyWrapper: TypeAlias = gym.Wrapper[Any, Any, Any, Any]

_MISSING = object()
_START = -1
_SPACES_WITH_PARTS = (spaces.Dict, spaces.Tuple)

_transparent_wrappers: set[type[_AnyWrapper]] = {
    Monitor,
    wrappers.OrderEnforcing,
    wrappers.PassiveEnvChecker,
    wrappers.RecordEpisodeStatistics,
    wrappers.RecordVideo,
    wrappers.RenderCollection,
    wrappers.HumanRendering,
}


def register_transparent_wrapper(wrapper_class: type[_AnyWrapper]) -> None:
    """
    Declare that a wrapper hands actions, observations, rewards and ends of episodes through unchanged.

    Branches go around such wrappers, so that what they record or draw never includes a branch.

    :param wrapper_class: the wrapper's class; its subclasses are not meant
    """
    _transparent_wrappers.add(wrapper_class)


def transparent_wrappers() -> set[type[_AnyWrapper]]:
    """
    Return what branches go around in this process, for the worker processes of a vectorised environment.

    :return: classes of wrappers
    """
    return set(_transparent_wrappers)


class LocalBrancher:
    """
    Branches environments of this process from exact snapshots.

    Every environment is probed when this is made: a few steps are taken, undone and taken again.

    :param envs: the environments, as a vectorised environment holds them
    :param as_returned: keep the precision in which environments return observations and rewards, as ``SubprocVecEnv``
        does; otherwise observations have that of their space and rewards are float32, as in ``DummyVecEnv``
    :param timeout: seconds that all branches of an environment may take for one step
    :raises UnbranchableEnvError: if an environment cannot be saved and restored exactly
    :raises BranchError: if an environment raises while it is probed
    """

    def __init__(self, envs: Sequence[gym.Env[Any, Any]], as_returned: bool = False, timeout: float | None = None) -> None:
        self._simulators = [_Simulator(env) for env in envs]
        self._watch = randomness.Watch()
        self._shared_roots: tuple[Any, ...] = ()
        self._observation_space = envs[0].observation_space
        self._example: Any = None
        self._reward_dtype = np.float64 if as_returned else np.float32
        self._steps_left = 0
        self._timeout = timeout
        for simulator in self._simulators:
            self._watch.start()
            example, uses_global_generators = simulator.probe(self._watch)
            if uses_global_generators:
                self._shared_roots = randomness.GLOBAL_GENERATORS
            if as_returned:
                self._example = example

    def open(self, actions: np.ndarray, alive: np.ndarray, horizon: int) -> BranchOutcome:
        """
        Open branches in the present states, take their first steps and leave the environments as they were.

        :param actions: actions as the environments take them, [E, n, \\*action_shape]
        :param alive: which of them are branched, [E, n]
        :param horizon: number of steps that a branch may take in all
        :return: the outcomes, zero where not ``alive``
        :raises BranchError: if an environment raises
        """
        self.close()
        self._steps_left = horizon
        return self._step(actions, alive)

    def advance(self, actions: np.ndarray, alive: np.ndarray) -> BranchOutcome:
        """
        Take a further step in the open branches and leave the environments as they were.

        :param actions: actions as the environments take them, [E, n, \\*action_shape]
        :param alive: which branches go on, [E, n]
        :return: the outcomes, zero where not ``alive``
        :raises BranchError: if an environment raises
        """
        return self._step(actions, alive)

    def close(self) -> None:
        """Forget the open branches."""
        for simulator in self._simulators:
            simulator.close()

    def _step(self, actions: np.ndarray, alive: np.ndarray) -> BranchOutcome:
        self._steps_left -= 1
        if self._shared_roots:
            return self._step_all(actions, alive)
        self._watch.start()
        try:
            outcome = self._step_all(actions, alive)
        finally:
            used_global_generators = self._watch.noticed()
            if used_global_generators:
                self._watch.undo()
        if used_global_generators:
            self._shared_roots = randomness.GLOBAL_GENERATORS
            warnings.warn(
                "An environment began to draw from a random generator that the whole process shares (np.random, random or "
                "torch). From now on these are saved with every branch, which is slower; self.np_random would not be.",
                stacklevel=2,
            )
            for simulator in self._simulators:
                simulator.include(self._shared_roots)
            outcome = self._step_all(actions, alive)
        return outcome

    def _step_all(self, actions: np.ndarray, alive: np.ndarray) -> BranchOutcome:
        outcome = BranchOutcome(
            _empty_observations(self._observation_space, alive.shape, self._example),
            np.zeros(alive.shape, dtype=self._reward_dtype),
            np.zeros(alive.shape, dtype=bool),
            np.zeros(alive.shape, dtype=bool),
        )
        # Environments may change the actions that they get.
        actions = actions.copy()
        for env_idx, simulator in enumerate(self._simulators):
            branches = np.flatnonzero(alive[env_idx]).tolist()
            if branches:
                with time_limit(self._timeout):
                    simulator.step(actions, env_idx, branches, outcome, self._shared_roots, self._steps_left == 0)
        return outcome


class _Simulator:
    """One environment, without the wrappers that only watch it."""

    def __init__(self, env: gym.Env[Any, Any]) -> None:
        self.env = env
        self.root = _skip_transparent(env)
        self._snapshots: dict[int, Snapshot] = {}
        self._detours: list[tuple[dict[str, Any], str, Any]] = []
        layer = self.root
        while isinstance(layer, gym.Wrapper):
            inner = _skip_transparent(layer.env)
            if inner is not layer.env:
                self._detours.append((vars(layer), "env", inner))
            layer = inner
        if layer.render_mode == "human":
            self._detours.append((vars(layer), "render_mode", None))
        # Spaces may be attributes of the class, where no walk from the instance meets them.
        self._roots = (self.root, layer.action_space, layer.observation_space)

    @contextmanager
    def _unwatched(self) -> Iterator[None]:
        """Lead around recorders and renderers."""
        originals = [(attributes, name, attributes.get(name, _MISSING)) for attributes, name, _ in self._detours]
        for attributes, name, value in self._detours:
            attributes[name] = value
        try:
            yield
        finally:
            for attributes, name, value in originals:
                if value is _MISSING:
                    del attributes[name]
                else:
                    attributes[name] = value

    def step(
        self,
        actions: np.ndarray,
        env_idx: int,
        branches: list[int],
        outcome: BranchOutcome,
        shared_roots: tuple[Any, ...],
        is_last: bool,
    ) -> None:
        """Step some branches, opening them if none are open, and fill row ``env_idx`` of the outcome."""
        observations, rewards, terminated, truncated = outcome
        with self._unwatched():
            start = self._snapshots.get(_START)
            is_restored = start is None
            if start is None:
                start = self._snapshots[_START] = Snapshot(*self._roots, *shared_roots)
            try:
                for idx in branches:
                    if not is_restored:
                        self._snapshots.get(idx, start).restore()
                    is_restored = False
                    at = env_idx, idx
                    obs, rewards[at], terminated[at], truncated[at], _ = self.root.step(actions[at])
                    _store_observation(observations, at, obs)
                    if not (is_last or terminated[at] or truncated[at]):
                        self._snapshots[idx] = Snapshot(*self._roots, *shared_roots)
            except Exception as error:
                error_class = BranchTimeoutError if isinstance(error, BranchTimeoutError) else BranchError
                raise error_class(
                    f"Environment {env_idx}, {self.env}, raised {type(error).__name__} in a branch: {error}\n"
                    f"Action: {actions[at]}. The state before the branch was restored."
                ) from error
            finally:
                _restore_in_any_case(start)

    def include(self, shared_roots: tuple[Any, ...]) -> None:
        """Save global generators with the open branches, which have not used them yet."""
        for snapshot in self._snapshots.values():
            snapshot.include(Snapshot(*shared_roots))

    def close(self) -> None:
        """Forget the open branches."""
        self._snapshots.clear()

    def probe(self, watch: randomness.Watch) -> tuple[Any, bool]:
        """
        Take steps twice from the same snapshots and compare.

        :param watch: a watch on the global random generators that was just started
        :return: an observation as the environment returns it, and whether it uses global generators
        :raises UnbranchableEnvError: if something cannot be saved, or the second time differs
        :raises BranchError: if the environment raises
        """
        action_space = copy.deepcopy(self.env.action_space)
        action_space.seed(0)
        with self._unwatched(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                untouched = Snapshot(*self._roots, *randomness.GLOBAL_GENERATORS)
                try:
                    self._make_generator()
                    self.root.reset()
                    for step in range(_PROBE_STEPS):
                        # Other numbers of steps in between, lest a hidden counter comes around to the same value.
                        example = self._probe_step(action_space, n_others=1 + step % 3)
                    uses_global_generators = watch.noticed()
                finally:
                    untouched.restore()
            except UnbranchableEnvError as error:
                raise UnbranchableEnvError(f"{self.env} cannot be branched: {error}") from error.__cause__
            except Exception as error:
                raise BranchError(
                    f"{self.env} raised {type(error).__name__} when a few steps with actions sampled from its action space "
                    f"were tried: {error}\nThe state before was restored."
                ) from error
            self._make_generator()
        return example, uses_global_generators

    def _make_generator(self) -> None:
        """Make the environment's random generator if there is none: each branch would make one of its own."""
        _ = self.root.unwrapped.np_random

    def _probe_step(self, action_space: spaces.Space[Any], n_others: int) -> Any:
        first, second, *others = (action_space.sample() for _ in range(2 + n_others))
        snapshot = Snapshot(*self._roots, *randomness.GLOBAL_GENERATORS)
        once, _ = self._outcomes(first, second)
        snapshot.restore()
        self._outcomes(*others)
        snapshot.restore()
        again, obs = self._outcomes(first, second)
        for name in ("observations", "rewards", "terminated", "truncated"):
            if not _identical(getattr(once, name), getattr(again, name)):
                raise UnbranchableEnvError(
                    f"after its attributes were saved and restored, the same actions gave other {name}. Some of its state "
                    "is hidden from its attributes: in a closure, a module or class variable, another process, or an "
                    "extension library that keeps it by a handle.\n"
                    "Ways out: (1) keep that state in attributes, or register a codec for it with "
                    "sb3_hybrid_grpo.branching.register_codec; (2) branch by forking the process, with "
                    "brancher='fork'; (3) train without branching, with n_samples=1."
                )
        if again.terminated.any() or again.truncated.any():
            self.root.reset()
        return obs

    def _outcomes(self, *actions: Any) -> tuple[BranchOutcome, Any]:
        """Step with one action after the other until the episode ends; return also the last observation as it is."""
        observations = _empty_observations(self.env.observation_space, (1, len(actions)))
        rewards, terminated, truncated = np.zeros((3, 1, len(actions)))
        for idx, action in enumerate(actions):
            obs, rewards[0, idx], terminated[0, idx], truncated[0, idx], _ = self.root.step(copy.copy(action))
            _store_observation(observations, (0, idx), obs)
            if terminated[0, idx] or truncated[0, idx]:
                break
        return BranchOutcome(observations, rewards, terminated, truncated), obs


def _restore_in_any_case(snapshot: Snapshot) -> None:
    try:
        snapshot.restore()
    except BaseException:
        # Interrupted, as by Ctrl-C: to restore again is harmless, to stop halfway is not.
        snapshot.restore()
        raise


def _skip_transparent(env: gym.Env[Any, Any]) -> gym.Env[Any, Any]:
    while type(env) in _transparent_wrappers:
        env = env.env  # type: ignore[attr-defined]
    return env


def _empty_observations(space: spaces.Space[Any], shape: tuple[int, ...], example: Any = None) -> Observations:
    """Allocate observations in the data type of their space, or in one that holds those of an example as well."""
    if isinstance(space, _SPACES_WITH_PARTS):
        keys = _keys(space.spaces)
        parts: Any = {key: _empty_observations(space[key], shape, None if example is None else example[key]) for key in keys}
        return parts if isinstance(space, spaces.Dict) else tuple(parts.values())
    dtype = space.dtype if example is None else np.result_type(space.dtype, np.asarray(example).dtype)
    return np.zeros((*shape, *(space.shape or ())), dtype=dtype)


def _store_observation(observations: Observations, index: tuple[int, int], obs: Any) -> None:
    if isinstance(observations, np.ndarray):
        observations[index] = obs
    else:
        for key in _keys(observations):
            observations[key][index] = obs[key]


def _identical(first: Observations, second: Observations) -> bool:
    if isinstance(first, np.ndarray) and isinstance(second, np.ndarray):
        return first.tobytes() == second.tobytes()
    return all(_identical(first[key], second[key]) for key in _keys(first))


def _keys(observations: Any) -> Any:
    return observations if isinstance(observations, dict) else range(len(observations))
