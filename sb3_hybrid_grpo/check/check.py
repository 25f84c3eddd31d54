"""Checks whether an environment can be branched."""

import contextlib
import random
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import gymnasium as gym
import numpy as np
import torch as th
from gymnasium.utils import EzPickle
from stable_baselines3.common.vec_env import DummyVecEnv

from sb3_hybrid_grpo.branching import make_brancher, randomness
from sb3_hybrid_grpo.branching.child import CAN_FORK
from sb3_hybrid_grpo.branching.fork import obstacle_to_fork
from sb3_hybrid_grpo.branching.functional import FunctionalVecEnv, is_functional_id
from sb3_hybrid_grpo.branching.masks import masks_of, sample
from sb3_hybrid_grpo.branching.simulator import Simulator
from sb3_hybrid_grpo.branching.snapshot import Mark, Snapshot, codec_of, find, kind_of
from sb3_hybrid_grpo.check.functional import check_functional
from sb3_hybrid_grpo.check.hidden import hidden_state
from sb3_hybrid_grpo.check.laws import LawBrokenError, Run, Saboteur, run, same
from sb3_hybrid_grpo.check.report import BranchReport, Costs
from sb3_hybrid_grpo.common.type_aliases import Brancher, BranchError, InvalidArgumentError, UnbranchableEnvError

_MOST_STEPS = {"fork": 5, "replay": 30}
_QUICK_STEP = 1000.0
_N_TIMED_BRANCHES = 8
_N_TIMINGS = 5
_CONTAINERS = (dict, list, tuple, set, frozenset)
_MOST_TYPES = 20


def check_branchable(
    env: str | gym.Env[Any, Any] | FunctionalVecEnv | Callable[[], gym.Env[Any, Any]],
    wrappers: Sequence[Callable[[Any], gym.Env[Any, Any]]] = (),
    n_envs: int = 1,
    n_steps: int = 100,
) -> BranchReport:
    """
    Try whether an environment can be branched exactly, find out what stands in the way, and measure what it costs.

    Random steps are taken with and without branching and compared bit for bit, with branches of several steps and with
    branches that raise.

    :param env: an id, or a function that makes environments, of which copies are made; or an environment, or a
        ``FunctionalVecEnv``, which is then reset with a seed and stepped, with and without branching in turn
    :param wrappers: wrappers around each environment, from the inside out
    :param n_envs: number of environments that are branched together
    :param n_steps: number of steps to take
    :return: the report; print it
    :raises InvalidArgumentError: if the environment cannot be made or reset at all
    """
    if isinstance(env, FunctionalVecEnv) or (isinstance(env, str) and is_functional_id(env)):
        return check_functional(env, wrappers, n_envs, n_steps)
    return _Check(env, wrappers, n_envs, n_steps).report()


class _Check:
    def __init__(self, env: Any, wrappers: Sequence[Callable[[Any], Any]], n_envs: int, n_steps: int) -> None:
        self._env = env
        self._wrappers = wrappers
        self._can_be_made = not isinstance(env, gym.Env)
        self._n_envs = n_envs if self._can_be_made else 1
        self._n_steps = n_steps
        self._name = env if isinstance(env, str) else str(env if isinstance(env, gym.Env) else getattr(env, "__name__", env))
        self._findings: list[str] = []
        self._notes: list[str] = []

    def report(self) -> BranchReport:
        threads = set(threading.enumerate())
        with self._quiet(), self._made() as venv:
            for env in venv.envs:
                self._look_for_threads(set(threading.enumerate()) - threads, env)
            codecs = _codecs(venv.envs[0])
            if any(isinstance(layer, EzPickle) for layer in _layers(venv.envs[0])):
                self._notes.append(
                    "EzPickle: copy.deepcopy of this environment would make a fresh one. Snapshots do not copy it, they "
                    "save and restore its state in place."
                )
        brancher, costs = self._find_brancher()
        return BranchReport(self._name, brancher, self._findings, self._notes, codecs, costs)

    def _find_brancher(self) -> tuple[str | None, Costs | None]:
        for name in ("snapshot", "fork"):
            with self._quiet():
                costs = self._try(name)
            if costs is None:
                continue
            if name == "fork" and costs.raw_step < _QUICK_STEP:
                self._try_replays()
            return name, costs
        costs = self._try_replays()
        return None if costs is None else "replay", costs

    @contextlib.contextmanager
    def _quiet(self) -> Iterator[None]:
        """Keep the global random generators as they are, and warnings to themselves."""
        generators = Snapshot(*randomness.GLOBAL_GENERATORS)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                yield
            finally:
                generators.restore()

    @contextlib.contextmanager
    def _made(self) -> Iterator[DummyVecEnv]:
        """Make the environments and reset them with a seed."""
        np.random.seed(0)
        random.seed(0)
        th.manual_seed(0)
        try:
            venv = DummyVecEnv([self._make] * self._n_envs)
            venv.seed(0)
            venv.reset()
        except Exception as error:
            raise InvalidArgumentError(f"{self._name} cannot be made and reset: {type(error).__name__}: {error}") from error
        try:
            yield venv
        finally:
            if self._can_be_made:
                venv.close()

    def _make(self) -> gym.Env[Any, Any]:
        env: Any = self._env
        if isinstance(env, str):
            env = gym.make(env)
        elif self._can_be_made:
            env = env()
        for wrapper in self._wrappers:
            env = wrapper(env)
        return Saboteur(env)

    def _try(self, name: str) -> Costs | None:
        """Branch in one way; return the costs, or None and take down what stands in the way."""
        n_steps = min(self._n_steps, _MOST_STEPS.get(name, self._n_steps))
        if name == "fork" and not CAN_FORK:
            self._findings.append("processes cannot be forked on this system")
            return None
        with self._made() as venv:
            try:
                if name == "fork" and (obstacle := obstacle_to_fork(venv.envs)) is not None:
                    raise UnbranchableEnvError(obstacle)
                brancher = make_brancher(name, venv)
                if name == "replay":
                    venv.seed(0)
                    venv.reset()
            except (UnbranchableEnvError, BranchError) as error:
                self._findings += [str(error)]
                if name == "snapshot":
                    self._findings += _hidden_state(venv.envs[0])
                return None
            try:
                branched = run(venv, n_steps, brancher)
            except (LawBrokenError, BranchError) as error:
                self._findings += [f"{name}: {error}", *_hidden_state(venv.envs[0])]
                return None
            costs = _costs(venv, brancher, name)
        return costs if self._leaves_no_trace(name, branched) else None

    def _try_replays(self) -> Costs | None:
        """Branch by replaying episodes; what stands in the way of this is no more than a note."""
        findings, self._findings = self._findings, []
        with self._quiet():
            costs = self._try("replay")
        self._notes += [f"brancher='replay' does not help: {finding}" for finding in self._findings]
        if costs is not None:
            self._notes.append(
                f"brancher='replay' is exact: a branch takes {costs.branch_step:.0f} µs at the beginning of an episode, and "
                "later as many steps more as the episode has had"
            )
        self._findings = findings
        return costs

    def _leaves_no_trace(self, name: str, branched: Run) -> bool:
        n_steps = len(branched.results)
        summary = f"{name}: {n_steps} steps with {self._n_envs} environment(s), {branched.n_episodes} ends of episodes"
        first, second = self._without_branching(n_steps), self._without_branching(n_steps)
        if first.global_generators:
            self._notes.append(
                f"Steps draw from {' and '.join(first.global_generators)}, which the whole process shares: it is saved with "
                "every branch, which is slow. Draw from self.np_random instead."
            )
        if not same(first.results, second.results):
            self._notes.append(
                f"{summary}; branches told what the steps returned. Runs with the same seed differ even without branching, "
                "so whether branches leave a trace cannot be seen. Does the environment draw from self.np_random?"
            )
            return True
        for what, field in {"steps returned": "results", "self.np_random drew": "next_random"}.items():
            if not same(getattr(first, field), getattr(branched, field)):
                self._findings.append(
                    f"{name}: {what} something else after branching than in a run with the same seed that was not branched. "
                    "Keep all state that steps change in attributes."
                )
                return False
        self._notes.append(f"{summary}; branches told what the steps returned and left no trace, even those that raised")
        return True

    def _without_branching(self, n_steps: int) -> Run:
        with self._made() as venv:
            return run(venv, n_steps)

    def _look_for_threads(self, threads: set[threading.Thread], env: gym.Env[Any, Any]) -> None:
        for thread in threads:
            self._findings.append(
                f"{env} started the thread {thread.name!r}. What threads do is not undone: let steps do the work, or make "
                "sure that the thread never touches the state."
            )


def _layers(env: gym.Env[Any, Any]) -> Iterator[gym.Env[Any, Any]]:
    while isinstance(env, gym.Wrapper):
        yield env
        env = env.env
    yield env


def _hidden_state(env: gym.Env[Any, Any]) -> list[str]:
    try:
        return hidden_state(env)
    except Exception:
        # What cannot be saved at all was reported before.
        return []


def _codecs(env: gym.Env[Any, Any]) -> dict[str, str]:
    """Tell which types the state of an environment consists of, and what saves them."""
    codecs: dict[str, str] = {}

    def note(obj: Any) -> bool:
        codec = codec_of(type(obj))
        if type(obj) not in (*_CONTAINERS, Saboteur):
            codecs[kind_of(obj)] = "nothing" if isinstance(codec, Mark) else type(codec).__name__.lstrip("_")
        return False

    simulator = Simulator(env)
    with simulator.unwatched():
        find(simulator.roots, note)
    return dict(list(codecs.items())[:_MOST_TYPES])


def _costs(venv: DummyVecEnv, brancher: Brancher, name: str) -> Costs:
    simulator = Simulator(venv.envs[0])
    valid = masks_of(venv.envs[0])
    actions = np.array([[sample(venv.action_space, valid) for _ in range(_N_TIMED_BRANCHES)]] * venv.num_envs)
    alive = np.zeros(actions.shape[:2], dtype=bool)
    alive[0] = True

    def branch() -> None:
        brancher.open(actions, alive, 1)
        brancher.close()

    if name == "replay":
        venv.reset()
    branch_step = _microseconds(branch) / _N_TIMED_BRANCHES
    with simulator.unwatched():
        if name != "snapshot":
            return Costs(_microseconds(lambda: simulator.root.step(actions[0, 0])), None, branch_step)
        snapshot = Snapshot(*simulator.roots)
        save_and_restore = _microseconds(lambda: Snapshot(*simulator.roots).restore())
        raw_steps = [_microseconds(partial(simulator.root.step, action), before=snapshot.restore) for action in actions[0]]
        snapshot.restore()
    return Costs(float(np.mean(raw_steps)), save_and_restore, branch_step)


def _microseconds(function: Callable[[], Any], before: Callable[[], None] = lambda: None) -> float:
    timings = []
    for _ in range(_N_TIMINGS):
        before()
        start = time.perf_counter()
        function()
        timings.append(time.perf_counter() - start)
    return 1e6 * min(timings)
