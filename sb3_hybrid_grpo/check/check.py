"""Checks whether an environment can be branched."""

import contextlib
import random
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple, TypeVar

import gymnasium as gym
import numpy as np
import torch as th
from gymnasium.utils import EzPickle
from stable_baselines3.common.vec_env import DummyVecEnv

from sb3_hybrid_grpo.branching import make_brancher
from sb3_hybrid_grpo.branching.copies import CAN_FORK, obstacle_to_fork
from sb3_hybrid_grpo.branching.functional import FunctionalVecEnv, is_functional_id
from sb3_hybrid_grpo.branching.simulator import Simulator, core_of, masks_of, sample
from sb3_hybrid_grpo.branching.snapshots import Mark, Snapshot, codec_of, find, kind_of, randomness
from sb3_hybrid_grpo.branching.surroundings import WAYS_OUT, HiddenState
from sb3_hybrid_grpo.check.functional import check_functional
from sb3_hybrid_grpo.check.isolated import GaveUpError, Tick, isolated
from sb3_hybrid_grpo.check.laws import LawBrokenError, Pace, Run, Saboteur, run
from sb3_hybrid_grpo.check.pace import BudgetPace, EnoughPace, FixedPace, TickingPace
from sb3_hybrid_grpo.check.report import BranchReport, Costs, Trial
from sb3_hybrid_grpo.check.traces import compare_runs, treatment_of_variables
from sb3_hybrid_grpo.common import (
    Brancher,
    BranchError,
    InvalidArgumentError,
    UnbranchableEnvError,
    check_positive_integer,
)

T = TypeVar("T")

_SEED = 1
_QUICK_STEP = 1000.0
_N_TIMED_BRANCHES = 8
_N_TIMINGS = 5
_CONTAINERS = (dict, list, tuple, set, frozenset)
_MOST_TYPES = 20
_SECONDS = 10.0


def check_branchable(
    env: str | gym.Env[Any, Any] | FunctionalVecEnv | Callable[[], gym.Env[Any, Any]],
    wrappers: Sequence[Callable[[Any], gym.Env[Any, Any]]] = (),
    n_envs: int = 1,
    n_steps: int | None = None,
) -> BranchReport:
    """
    Try whether an environment can be branched exactly, find out what stands in the way, and measure what it costs.

    Random steps are taken with and without branching and compared bit for bit, with branches of several steps and with
    branches that raise.

    :param env: an id, or a function that makes environments, of which copies are made; or an environment, or a
        ``FunctionalVecEnv``, which is then reset with a seed and stepped, with and without branching in turn
    :param wrappers: wrappers around each environment, from the inside out
    :param n_envs: number of environments that are branched together
    :param n_steps: number of steps to take; by default several whole episodes or 500 steps
    :return: the report; print it
    :raises InvalidArgumentError: if the environment cannot be made or reset at all, or a number is not positive
    """
    check_positive_integer("n_envs", n_envs)
    if n_steps is not None:
        check_positive_integer("n_steps", n_steps)
    if isinstance(env, FunctionalVecEnv) or (isinstance(env, str) and is_functional_id(env)):
        return check_functional(env, wrappers, n_envs, n_steps)
    return _Check(env, wrappers, n_envs, n_steps).report()


class _Tried(NamedTuple):
    """What came of branching in one way: nothing if a finding stands in the way."""

    costs: Costs | None = None
    run: Run | None = None
    findings: tuple[str, ...] = ()
    side_effects: tuple[str, ...] = ()


class _Look(NamedTuple):
    """What there is to be seen before any step."""

    codecs: dict[str, str]
    variables: dict[str, str]
    threads: list[str]
    is_ez_pickle: bool
    is_seeded: bool


class _Check:
    def __init__(self, env: Any, wrappers: Sequence[Callable[[Any], Any]], n_envs: int, n_steps: int | None) -> None:
        self._env = env
        self._wrappers = wrappers
        self._can_be_made = not isinstance(env, gym.Env)
        # A copy of the process does not have the threads of an environment that is there already, nor its connections.
        self._can_be_copied = self._can_be_made or obstacle_to_fork([env]) is None
        self._n_envs = n_envs if self._can_be_made else 1
        self._n_steps = n_steps
        self._name = env if isinstance(env, str) else str(env if isinstance(env, gym.Env) else getattr(env, "__name__", env))
        self._findings: list[str] = []
        self._notes: list[str] = []
        self._side_effects: list[str] = []
        self._plain: tuple[Run, Run]

    def report(self) -> BranchReport:
        look = self._isolated(self._look)
        self._findings += look.threads
        if look.is_ez_pickle:
            self._notes.append(
                "EzPickle: copy.deepcopy of this environment would make a fresh one. Snapshots do not copy it, they "
                "save and restore its state in place."
            )
        if not look.is_seeded:
            self._notes.append(
                "reset(seed=...) does not seed self.np_random, for want of super().reset(seed=seed): the check has set the "
                "state of this generator instead."
            )
        first = self._isolated(partial(self._play, self._pace()))
        self._plain = first, self._isolated(partial(self._play, FixedPace(len(first.results))))
        brancher, costs, trial = self._find_brancher()
        if self._side_effects:
            self._side_effects.append(f"Branches do it too. {WAYS_OUT}")
        return BranchReport(
            self._name, brancher, self._findings, self._side_effects, self._notes, look.variables, look.codecs, costs, trial
        )

    def _isolated(self, work: Callable[[Tick], T]) -> T:
        """Do what no branch is needed for, and which has to succeed."""
        try:
            return isolated(partial(self._quietly, work), self._can_be_copied)
        except GaveUpError as error:
            raise InvalidArgumentError(f"{self._name} cannot be played: it {error}") from error

    def _quietly(self, work: Callable[[Tick], T], tick: Tick) -> T:
        """Keep the global random generators as they are, and warnings to themselves."""
        generators = Snapshot(*randomness.GLOBAL_GENERATORS)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                return work(tick)
            finally:
                generators.restore()

    def _pace(self) -> Pace:
        return EnoughPace(_SECONDS) if self._n_steps is None else FixedPace(self._n_steps)

    def _find_brancher(self) -> tuple[str | None, Costs | None, Trial | None]:
        for name in ("snapshot", "fork"):
            if name == "fork" and not CAN_FORK:
                self._findings.append("processes cannot be forked on this system")
                continue
            tried = self._try(name)
            if tried.costs is None:
                continue
            if name == "fork" and tried.costs.raw_step < _QUICK_STEP:
                self._try_replays()
            return name, tried.costs, _trial(tried.run)
        tried = self._try_replays()
        return (None, None, None) if tried.costs is None else ("replay", tried.costs, _trial(tried.run))

    def _try(self, name: str) -> _Tried:
        """Branch in one way, compare with runs without branching, and take down what stands in the way."""
        try:
            tried = isolated(partial(self._quietly, partial(self._branch, name)), self._can_be_copied)
        except GaveUpError as error:
            tried = _Tried(findings=(f"{name}: a step or a branch {error}",))
        except Exception as error:
            tried = _Tried(findings=(f"{name}: a step raised {type(error).__name__}: {error}",))
        if tried.run is not None:
            problems, notes = compare_runs(name, tried.run, *self._plain, n_envs=self._n_envs)
            tried = tried if not problems else _Tried(findings=(*tried.findings, *problems))
            self._notes += notes
        self._findings += tried.findings
        self._side_effects += [
            f"A step {effect}." for effect in tried.side_effects if f"A step {effect}." not in self._side_effects
        ]
        return tried

    def _branch(self, name: str, tick: Tick) -> _Tried:
        brancher: Brancher | None = None
        with self._made() as venv:
            try:
                if name == "fork" and (obstacle := obstacle_to_fork(venv.envs)) is not None:
                    raise UnbranchableEnvError(obstacle)
                brancher = make_brancher(name, venv)
                if name == "replay":
                    venv.seed(_SEED)
                    venv.reset()
                plain = self._plain[0]
                branched = run(venv, TickingPace(BudgetPace(len(plain.results), plain.ends, _SECONDS), tick), brancher)
            except UnbranchableEnvError as error:
                return _Tried(findings=(str(error),))
            except (LawBrokenError, BranchError) as error:
                return _Tried(findings=(f"{name}: {error}{_suspects(brancher)}",))
            return _Tried(_costs(venv, brancher, name), branched, (), tuple(getattr(brancher, "side_effects", ())))

    def _try_replays(self) -> _Tried:
        """Branch by replaying episodes; what stands in the way of this is no more than a note."""
        findings, self._findings = self._findings, []
        tried = self._try("replay")
        self._notes += [f"brancher='replay' does not help: {finding}" for finding in self._findings]
        if tried.costs is not None:
            self._notes.append(
                f"brancher='replay' is exact: a branch takes {tried.costs.branch_step:.0f} µs at the beginning of an episode, "
                "and later as many steps more as the episode has had"
            )
        self._findings = findings
        return tried

    def _play(self, pace: Pace, tick: Tick) -> Run:
        with self._made() as venv:
            return run(venv, TickingPace(pace, tick))

    def _look(self, tick: Tick) -> _Look:
        threads = set(threading.enumerate())
        with self._made() as venv:
            env = venv.envs[0]
            started = [
                f"{env} started the thread {thread.name!r}. What threads do is not undone: let steps do the work, or make "
                "sure that the thread never touches the state."
                for thread in set(threading.enumerate()) - threads
            ]
            is_ez_pickle = any(isinstance(layer, EzPickle) for layer in _layers(env))
            is_seeded = getattr(core_of(env), "_np_random_seed", _SEED) == _SEED
            return _Look(_codecs(env), treatment_of_variables(env), started, is_ez_pickle, is_seeded)

    @contextlib.contextmanager
    def _made(self) -> Iterator[DummyVecEnv]:
        """Make the environments and reset them with a seed."""
        np.random.seed(_SEED)
        random.seed(_SEED)
        th.manual_seed(_SEED)
        try:
            venv = DummyVecEnv([self._make] * self._n_envs)
        except Exception as error:
            raise self._cannot_be_made(error) from error
        variables = [_variables_of(env) for env in venv.envs]
        try:
            for env_idx, env in enumerate(venv.envs):
                # For resets that do not seed it.
                core_of(env).np_random = np.random.default_rng(_SEED + env_idx)
            venv.seed(_SEED)
            venv.reset()
        except Exception as error:
            raise self._cannot_be_made(error) from error
        try:
            yield venv
        finally:
            if self._can_be_made:
                venv.close()
            for snapshot in variables:
                snapshot.restore()

    def _cannot_be_made(self, error: Exception) -> InvalidArgumentError:
        is_unknown = isinstance(error, gym.error.UnregisteredEnv)
        way_out = (
            " Ids are registered with gymnasium.register; in Python, check_branchable takes a class as well."
            if is_unknown
            else ""
        )
        return InvalidArgumentError(f"{self._name} cannot be made and reset: {type(error).__name__}: {error}{way_out}")

    def _make(self) -> gym.Env[Any, Any]:
        env: Any = self._env
        if isinstance(env, str):
            env = gym.make(env)
        elif self._can_be_made:
            env = env()
        for wrapper in self._wrappers:
            env = wrapper(env)
        return Saboteur(env)


def _trial(branched: Run | None) -> Trial | None:
    return None if branched is None else Trial(len(branched.results), branched.n_branched, len(branched.ends))


def _variables_of(env: gym.Env[Any, Any]) -> Snapshot:
    """Save what is beside the attributes of an environment: the next run is to start from it, too."""
    simulator = Simulator(env)
    try:
        return Snapshot(*HiddenState(simulator.root, simulator.attributes).roots)
    except UnbranchableEnvError:
        return Snapshot()


def _suspects(brancher: Brancher | None) -> str:
    """Name what steps use outside the process, where a law is broken."""
    effects = getattr(brancher, "side_effects", ())
    return f" A step {', '.join(effects)}: what it reads again from there is state that is not undone." if effects else ""


def _layers(env: gym.Env[Any, Any]) -> Iterator[gym.Env[Any, Any]]:
    while isinstance(env, gym.Wrapper):
        yield env
        env = env.env
    yield env


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
            return Costs(_microseconds_of_step(simulator, actions[0, 0]), None, branch_step)
        snapshot = Snapshot(*simulator.roots)
        save_and_restore = _microseconds(lambda: Snapshot(*simulator.roots).restore())
        raw_steps = [_microseconds(partial(simulator.root.step, action), before=snapshot.restore) for action in actions[0]]
        snapshot.restore()
    return Costs(float(np.mean(raw_steps)), save_and_restore, branch_step)


def _microseconds_of_step(simulator: Simulator, action: Any) -> float:
    is_over = False

    def go_on() -> None:
        if is_over:
            simulator.reset()

    def step() -> None:
        nonlocal is_over
        _, _, terminated, truncated, _ = simulator.root.step(action)
        is_over = terminated or truncated

    return _microseconds(step, before=go_on)


def _microseconds(function: Callable[[], Any], before: Callable[[], None] = lambda: None) -> float:
    timings = []
    for _ in range(_N_TIMINGS):
        before()
        start = time.perf_counter()
        function()
        timings.append(time.perf_counter() - start)
    return 1e6 * min(timings)
