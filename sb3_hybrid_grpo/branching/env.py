"""Branching of environments that live in this process."""

import copy
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces, wrappers
from stable_baselines3.common.monitor import Monitor

from sb3_hybrid_grpo.branching import codecs, randomness
from sb3_hybrid_grpo.branching.snapshot import Snapshot
from sb3_hybrid_grpo.common.type_aliases import BranchError, BranchOutcome, Observations, UnbranchableEnvError

__all__ = ["LocalBrancher", "codecs", "register_transparent_wrapper"]

_PROBE_STEPS = 8

_transparent_wrappers: set[type[gym.Wrapper[Any, Any, Any, Any]]] = {
    Monitor,
    wrappers.OrderEnforcing,
    wrappers.PassiveEnvChecker,
    wrappers.RecordEpisodeStatistics,
    wrappers.RecordVideo,
    wrappers.RenderCollection,
    wrappers.HumanRendering,
}


def register_transparent_wrapper(wrapper_class: type[gym.Wrapper[Any, Any, Any, Any]]) -> None:
    """
    Declare that a wrapper hands actions, observations, rewards and ends of episodes through unchanged.

    Branches go around such wrappers, so that what they record or draw never includes a branch.

    :param wrapper_class: the wrapper's class; its subclasses are not meant
    """
    _transparent_wrappers.add(wrapper_class)


class LocalBrancher:
    """
    Branches environments of this process from exact snapshots.

    Every environment is probed when this is made: a few steps are taken, undone and taken again.

    :param envs: the environments, as a vectorised environment holds them
    :raises UnbranchableEnvError: if an environment cannot be saved and restored exactly
    """

    def __init__(self, envs: Sequence[gym.Env[Any, Any]]) -> None:
        self._simulators = [_Simulator(env) for env in envs]
        self._shared_roots: tuple[Any, ...] = ()
        if any([simulator.probe() for simulator in self._simulators]):
            self._shared_roots = randomness.global_generators()

    def branch(self, actions: np.ndarray) -> BranchOutcome:
        """
        Step every environment with each of its actions from the present state, and undo it.

        :param actions: actions as the environments take them, [E, n, \\*action_shape]
        :return: the outcomes, observations in the data type of their space, rewards in float64
        :raises BranchError: if an environment raises; its state is restored first
        """
        before = randomness.fingerprint()
        outcome = self._branch(actions)
        if randomness.fingerprint() != before:
            randomness.rewind(before)
            self._shared_roots = randomness.global_generators()
            warnings.warn(
                "An environment began to draw from a random generator that the whole process shares (np.random, random or "
                "torch). From now on these are saved with every branch, which is slower; self.np_random would not be.",
                stacklevel=2,
            )
            outcome = self._branch(actions)
        return outcome

    def _branch(self, actions: np.ndarray) -> BranchOutcome:
        n_envs, n_branches = actions.shape[:2]
        observation_space = self._simulators[0].env.observation_space
        outcome = BranchOutcome(
            _empty_observations(observation_space, (n_envs, n_branches)),
            np.empty((n_envs, n_branches)),
            np.empty((n_envs, n_branches), dtype=bool),
            np.empty((n_envs, n_branches), dtype=bool),
        )
        for env_idx, simulator in enumerate(self._simulators):
            simulator.branch(actions[env_idx], env_idx, outcome, self._shared_roots)
        return outcome


class _Simulator:
    """One environment, without the wrappers that only watch it."""

    def __init__(self, env: gym.Env[Any, Any]) -> None:
        self.env = env
        self.root = _skip_transparent(env)
        self._detours: list[tuple[dict[str, Any], str, Any]] = []
        layer = self.root
        while isinstance(layer, gym.Wrapper):
            inner = _skip_transparent(layer.env)
            if inner is not layer.env:
                self._detours.append((vars(layer), "env", inner))
            layer = inner
        if layer.render_mode == "human":
            self._detours.append((vars(layer), "render_mode", None))

    @contextmanager
    def _unwatched(self) -> Iterator[None]:
        """Lead around recorders and renderers."""
        originals = [(attributes, name, attributes[name]) for attributes, name, _ in self._detours]
        for attributes, name, value in self._detours:
            attributes[name] = value
        try:
            yield
        finally:
            for attributes, name, value in originals:
                attributes[name] = value

    def branch(self, actions: np.ndarray, env_idx: int, outcome: BranchOutcome, shared_roots: tuple[Any, ...]) -> None:
        """Fill row ``env_idx`` of the outcome."""
        observations, rewards, terminated, truncated = outcome
        with self._unwatched():
            snapshot = Snapshot(self.root, *shared_roots)
            try:
                for idx, action in enumerate(actions):
                    if idx > 0:
                        snapshot.restore()
                    obs, reward, terminated[env_idx, idx], truncated[env_idx, idx], _ = self.root.step(action)
                    rewards[env_idx, idx] = reward
                    _store_observation(observations, (env_idx, idx), obs)
            except Exception as error:
                raise BranchError(
                    f"Environment {env_idx}, {self.env}, raised {type(error).__name__} in a branch: {error}\n"
                    f"Action: {actions[idx]}. The state before the branch was restored."
                ) from error
            finally:
                snapshot.restore()

    def probe(self) -> bool:
        """
        Take steps twice from the same snapshots and compare.

        :return: whether the environment draws from global random generators
        :raises UnbranchableEnvError: if something cannot be saved, or the second time differs
        """
        action_space = copy.deepcopy(self.env.action_space)
        action_space.seed(0)
        with self._unwatched(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                untouched = Snapshot(self.root, *randomness.global_generators())
            except UnbranchableEnvError as error:
                raise UnbranchableEnvError(f"{self.env} cannot be branched: {error}") from None
            before = randomness.fingerprint()
            try:
                self.root.reset()
                for _ in range(_PROBE_STEPS):
                    self._probe_step(action_space)
                return randomness.fingerprint() != before
            except UnbranchableEnvError as error:
                raise UnbranchableEnvError(f"{self.env} cannot be branched: {error}") from None
            except Exception as error:
                raise BranchError(
                    f"{self.env} raised {type(error).__name__} when branching was tried out with random actions: {error}"
                ) from error
            finally:
                untouched.restore()

    def _probe_step(self, action_space: spaces.Space[Any]) -> None:
        first, second, other = (action_space.sample() for _ in range(3))
        snapshot = Snapshot(self.root, *randomness.global_generators())
        once = self._outcomes(first, second)
        snapshot.restore()
        self._outcomes(other, first)
        snapshot.restore()
        again = self._outcomes(first, second)
        for name in ("observations", "rewards", "terminated", "truncated"):
            if not _identical(getattr(once, name), getattr(again, name)):
                raise UnbranchableEnvError(
                    f"after its attributes were saved and restored, the same actions gave other {name}. Some of its state "
                    "is hidden from its attributes: in a closure, a module or class variable, another process, or an "
                    "extension library that keeps it by a handle.\n"
                    "Ways out: (1) keep that state in attributes, or register a codec for it with "
                    "sb3_hybrid_grpo.branching.register_codec; (2) branch by forking the process, where your version "
                    "offers brancher='fork'; (3) train without branching, with n_samples=1."
                )
        snapshot.restore()
        _, _, terminated, truncated, _ = self.root.step(first)
        if terminated or truncated:
            self.root.reset()

    def _outcomes(self, *actions: Any) -> BranchOutcome:
        """Step with one action after the other until the episode ends."""
        observations = _empty_observations(self.env.observation_space, (1, len(actions)))
        rewards, terminated, truncated = np.zeros((3, 1, len(actions)))
        for idx, action in enumerate(actions):
            obs, rewards[0, idx], terminated[0, idx], truncated[0, idx], _ = self.root.step(action)
            _store_observation(observations, (0, idx), obs)
            if terminated[0, idx] or truncated[0, idx]:
                break
        return BranchOutcome(observations, rewards, terminated, truncated)


def _skip_transparent(env: gym.Env[Any, Any]) -> gym.Env[Any, Any]:
    while type(env) in _transparent_wrappers:
        env = env.env  # type: ignore[attr-defined]
    return env


def _empty_observations(space: spaces.Space[Any], shape: tuple[int, ...]) -> Observations:
    if isinstance(space, spaces.Dict):
        return {key: _empty_observations(sub, shape) for key, sub in space.spaces.items()}  # type: ignore[misc]
    if isinstance(space, spaces.Tuple):
        return tuple(_empty_observations(sub, shape) for sub in space.spaces)  # type: ignore[misc]
    return np.zeros((*shape, *(space.shape or ())), dtype=space.dtype)


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
