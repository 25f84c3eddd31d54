"""Branching of environments that live in this process."""

import gc
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from typing import Any

import gymnasium as gym
import numpy as np

from sb3_hybrid_grpo.branching.batched import RememberedStates, TaskStates
from sb3_hybrid_grpo.branching.simulator.in_process import InProcessBrancher
from sb3_hybrid_grpo.branching.simulator.layers import Composition, layers_of
from sb3_hybrid_grpo.branching.simulator.simulator import Simulator
from sb3_hybrid_grpo.branching.simulator.time_limit import time_limit
from sb3_hybrid_grpo.branching.snapshots import Cost, PrivateAttributes, SavedStates, randomness
from sb3_hybrid_grpo.common import BranchOutcome, warn

_MAX_VISITED = 32


class BeginAgainError(Exception):
    """The branches that are open were not saved completely: they have to be opened anew, from where they started."""


class LocalBrancher(InProcessBrancher):
    """
    Branches environments of this process from exact snapshots.

    Every environment is probed when this is made: a few steps are taken, undone and taken again. ``remembered`` keeps states
    to branch from later, where that is possible for all environments. ``cost`` is what snapshots cost where that is much.

    :param envs: the environments, as a vectorised environment holds them
    :param as_returned: keep the precision in which environments return observations and rewards, as ``SubprocVecEnv``
        does; otherwise observations have that of their space and rewards are float32, as in ``DummyVecEnv``
    :param timeout: seconds that all branches of an environment may take for one step
    :raises UnbranchableEnvError: if an environment cannot be saved and restored exactly
    :raises BranchError: if an environment raises while it is probed
    """

    def __init__(self, envs: Sequence[gym.Env[Any, Any]], as_returned: bool = False, timeout: float | None = None) -> None:
        super().__init__(envs, as_returned, timeout)
        self._watch = randomness.Watch()
        self._shares_generators = False
        self._stays = False
        self._visited: deque[tuple[Composition, Simulator]] = deque(maxlen=_MAX_VISITED)
        for simulator in self._simulators:
            self._probe(simulator)
        self._settle()

    def _probe(self, simulator: Simulator) -> None:
        self._watch.start()
        example, uses_global_generators = simulator.probe(self._watch)
        self._shares_generators |= uses_global_generators
        self._note(example)
        self._visited.append((Composition([simulator.env]), simulator))

    def _settle(self) -> None:
        """Decide what all environments together allow."""
        self.remembered = self._remembered_states() if self._timeout is None else None
        self._is_watched = any(simulator.may_use_global_generators for simulator in self._simulators)
        if self._shares_generators:
            self._include_generators()
        costs = (simulator.cost for simulator in self._simulators)
        self.cost = max((cost for cost in costs if cost is not None), key=_seconds_of, default=None)

    def follow(self, envs: Sequence[gym.Env[Any, Any]], changed: Sequence[int], is_rehearsed: bool) -> bool:
        """
        Turn to other environments in the place of some. Those that were here before need not be probed again.

        :param envs: all environments as they are now
        :param changed: indices of those that are others
        :param is_rehearsed: whether environments and wrappers of any class may be probed; otherwise those of classes that
            were seen before
        :return: whether that was possible; if not, nothing has changed
        :raises UnbranchableEnvError: if one of them cannot be saved and restored exactly
        """
        kinds = {_kinds(simulator.env) for _, simulator in self._visited}
        if len(envs) != len(self._simulators) or not (is_rehearsed or all(_kinds(envs[idx]) in kinds for idx in changed)):
            return False
        for idx in changed:
            known = (simulator for composition, simulator in self._visited if not composition.changed([envs[idx]]))
            simulator = next(known, None)
            if simulator is None:
                simulator = Simulator(envs[idx])
                self._probe(simulator)
            self._simulators[idx] = simulator
        self._settle()
        return True

    def _remembered_states(self) -> RememberedStates | None:
        tasks = [simulator.task for simulator in self._simulators if simulator.task is not None]
        if len(tasks) == len(self._simulators):
            return TaskStates(tasks, self._observation_space, is_worker=self._as_returned)
        memories = [simulator.memory for simulator in self._simulators if simulator.memory is not None]
        return _RememberedHere(self, self._simulators, memories) if len(memories) == len(self._simulators) else None

    def begin(self, actions: np.ndarray, alive: np.ndarray, horizon: int) -> BranchOutcome:
        """
        Take the first steps in branches, like ``open``, some of which may be open at other states than the present one.

        :param actions: actions as the environments take them, [E, n, \\*action_shape]
        :param alive: which of them are branched, [E, n]
        :param horizon: number of steps that a branch may take in all
        :return: the outcomes, zero where not ``alive``
        :raises BranchError: if an environment raises
        """
        self._steps_left = horizon
        return self._step(actions, alive)

    def close(self) -> None:
        """Forget the open branches."""
        for simulator in self._simulators:
            simulator.close()

    def _step(self, actions: np.ndarray, alive: np.ndarray) -> BranchOutcome:
        self._steps_left -= 1
        if self._shares_generators or not self._is_watched:
            return self._step_all(actions, alive)
        self._watch.start()
        try:
            outcome = self._step_all(actions, alive)
        finally:
            used_global_generators = self._watch.noticed()
            if used_global_generators:
                self._watch.undo()
        if used_global_generators:
            warn(
                "An environment began to draw from a random generator that the whole process shares (np.random, random or "
                "torch). From now on these are saved with every branch, which is slower; self.np_random would not be."
            )
            self._include_generators()
            if self._stays:
                raise BeginAgainError
            for env_idx, simulator in enumerate(self._simulators):
                if simulator.may_use_global_generators:
                    self._step_one(env_idx, actions.copy(), alive, outcome)
        return outcome

    @contextmanager
    def staying(self) -> Iterator[None]:
        """
        Let branches be followed from ``open`` on with nobody looking at the environments, which are as they were at the end of
        the context. That spares snapshots.

        :raises BeginAgainError: inside, if the branches must be followed anew, from ``open`` on
        """
        with ExitStack() as stack:
            for simulator in self._simulators:
                stack.enter_context(simulator.staying())
            self._stays = True
            try:
                yield
            finally:
                self._stays = False

    def _include_generators(self) -> None:
        self._shares_generators = True
        for simulator in self._simulators:
            simulator.include_generators()

    def _step_all(self, actions: np.ndarray, alive: np.ndarray) -> BranchOutcome:
        is_filled = bool(alive.all())
        outcome = self._empty_outcome(alive.shape, is_filled)
        # Environments may change the actions that they get.
        actions = actions.copy()
        for env_idx in range(len(self._simulators)):
            self._step_one(env_idx, actions, alive, outcome)
        return outcome

    def _step_one(self, env_idx: int, actions: np.ndarray, alive: np.ndarray, outcome: BranchOutcome) -> None:
        branches = np.flatnonzero(alive[env_idx]).tolist()
        if branches:
            with nullcontext() if self._timeout is None else time_limit(self._timeout):
                self._simulators[env_idx].step(actions, env_idx, branches, outcome, self._steps_left == 0)


def _kinds(env: gym.Env[Any, Any]) -> tuple[type, ...]:
    return tuple(map(type, layers_of(env)))


def _seconds_of(cost: Cost) -> float:
    return cost.seconds


class _RememberedHere:
    """
    Keeps the states of the environments of a brancher, see ``RememberedStates``.

    :param brancher: the brancher
    :param simulators: its environments
    :param memories: where their states are kept
    """

    def __init__(
        self, brancher: LocalBrancher, simulators: Sequence[Simulator], memories: Sequence[PrivateAttributes | SavedStates]
    ) -> None:
        self._brancher = brancher
        self._simulators = simulators
        self._memories = memories

    @property
    def branches_at_once(self) -> int:
        """Number of branches that are to be opened together at most."""
        return min(memory.branches_at_once for memory in self._memories)

    @property
    def pays_in_workers(self) -> bool:
        """Whether a worker saves time by following branches late: not with snapshots, which it can do without."""
        return all(isinstance(memory, PrivateAttributes) for memory in self._memories)

    def remember(self) -> None:
        """Keep the present states."""
        for simulator, memory in zip(self._simulators, self._memories, strict=True):
            with simulator.unwatched():
                memory.remember()

    def confirm(self) -> None:
        """Do nothing: they are kept."""

    def forget(self) -> None:
        """Forget the states that were kept."""
        for memory in self._memories:
            memory.forget()

    def open(self, actions: np.ndarray, alive: np.ndarray, horizon: int) -> BranchOutcome:
        """Open branches, see ``RememberedStates``."""
        for memory in self._memories:
            memory.recall(alive.shape[1])
        with _without_collections():
            return self._brancher.begin(actions, alive, horizon)

    def advance(self, actions: np.ndarray, alive: np.ndarray) -> BranchOutcome:
        """Take a further step in the open branches, see ``RememberedStates``."""
        with _without_collections():
            return self._brancher.advance(actions, alive)


@contextmanager
def _without_collections() -> Iterator[None]:
    """Keep the garbage collector from looking through thousands of snapshots, again and again, none of which is garbage."""
    is_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if is_enabled:
            gc.enable()
