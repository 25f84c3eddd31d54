"""Branching by forked copies of the process: exact for whatever an environment keeps inside the process."""

import copy
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterable, Sequence
from functools import partial
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess
from multiprocessing.synchronize import SemLock
from typing import Any, TypeAlias

import gymnasium as gym
import numpy as np
from gymnasium import spaces

from sb3_hybrid_grpo.branching.child import CAN_FORK, Channel, Child, ChildDied, Raised, end
from sb3_hybrid_grpo.branching.hidden_places import find_in_code
from sb3_hybrid_grpo.branching.in_process import InProcessBrancher
from sb3_hybrid_grpo.branching.masks import masks_of
from sb3_hybrid_grpo.branching.outcomes import identical, store_observation
from sb3_hybrid_grpo.branching.side_effects import is_outlet
from sb3_hybrid_grpo.branching.simulator import PROBE_STEPS, Simulator
from sb3_hybrid_grpo.branching.snapshot import find, kind_of
from sb3_hybrid_grpo.common.type_aliases import BranchError, BranchOutcome, BranchTimeoutError, UnbranchableEnvError

_At: TypeAlias = tuple[int, int]

_STANDARD_STREAMS = (sys.__stdin__, sys.__stdout__, sys.__stderr__)


class ForkBrancher(InProcessBrancher):
    """
    Branches environments of this process by copying the whole process for each branch.

    A copy starts from the present state with all that Python cannot reach, such as the world of a physics engine, and with
    the same random numbers in all branches. The environments themselves never take part. A branch of several steps is a copy
    that stays alive in between.

    :param envs: the environments, as a vectorised environment holds them
    :param as_returned: keep the precision in which environments return observations and rewards, see ``LocalBrancher``
    :param timeout: seconds that all branches of an environment may take for one step
    :param max_running: number of branches that run at the same time; by default that of the processors
    :raises UnbranchableEnvError: if an environment has state outside this process, or the platform cannot fork
    :raises BranchError: if an environment raises when a few steps are tried
    """

    def __init__(
        self,
        envs: Sequence[gym.Env[Any, Any]],
        as_returned: bool = False,
        timeout: float | None = None,
        max_running: int | None = None,
    ) -> None:
        if not CAN_FORK:
            raise UnbranchableEnvError("brancher='fork' needs os.fork, which this platform does not have. WSL does.")
        obstacle = obstacle_to_fork(envs)
        if obstacle is not None:
            raise UnbranchableEnvError(obstacle)
        super().__init__(envs, as_returned, timeout)
        self._max_running = max_running or os.cpu_count() or 1
        self._family: set[Child] = set()
        self._branches: dict[_At, Child] = {}
        for simulator in self._simulators:
            self._note(self._probe(simulator))

    def close(self) -> None:
        """End the open branches."""
        end(self._family, self._family)
        self._branches.clear()

    def _step(self, actions: np.ndarray, alive: np.ndarray) -> BranchOutcome:
        try:
            outcome = self._step_all(actions, alive)
            self._steps_left -= 1
            ended = outcome.terminated | outcome.truncated
            done = [child for at, child in self._branches.items() if ended[at] or not self._steps_left]
            end(self._family.intersection(done), self._family)
        except BaseException:
            self.close()
            raise
        return outcome

    def _step_all(self, actions: np.ndarray, alive: np.ndarray) -> BranchOutcome:
        outcome = self._empty_outcome(alive.shape)
        deadline = None if self._timeout is None else time.monotonic() + self._timeout * np.count_nonzero(alive.any(axis=1))
        pending = [(int(env_idx), int(idx)) for env_idx, idx in np.argwhere(alive)][::-1]
        running: dict[Any, _At] = {}
        while pending or running:
            while pending and len(running) < self._max_running:
                at = pending.pop()
                running[self._start(at, actions[at])] = at
            answered = wait(list(running), None if deadline is None else deadline - time.monotonic())
            if not answered:
                problem = f"took longer than branch_timeout={self._timeout} s"
                raise BranchTimeoutError(self._describe(running.popitem()[1], actions, problem))
            for connection in answered:
                self._finish(running.pop(connection), actions, outcome)
        return outcome

    def _start(self, at: _At, action: Any) -> Any:
        """Let a branch take a step and return the connection on which it will answer."""
        child = self._branches.get(at)
        if child is not None:
            child.send(action)
        else:
            simulator = self._simulators[at[0]]
            with simulator.unwatched():
                child = Child(partial(_live, simulator, action, self._steps_left), self._family)
            self._branches[at] = child
        return child.channel.connection

    def _finish(self, at: _At, actions: np.ndarray, outcome: BranchOutcome) -> None:
        try:
            answer = self._branches[at].receive()
        except ChildDied as error:
            raise BranchError(self._describe(at, actions, f"{error} in the process of a branch")) from error
        if isinstance(answer, Raised):
            raise BranchError(self._describe(at, actions, f"raised {answer.error_class} in a branch: {answer.message}"))
        obs, outcome.rewards[at], outcome.terminated[at], outcome.truncated[at], masks = answer
        store_observation(outcome.observations, at, obs)
        if outcome.action_masks is not None and masks is not None:
            outcome.action_masks[at] = masks

    def _describe(self, at: _At, actions: np.ndarray, problem: str) -> str:
        env_idx = at[0]
        return (
            f"Environment {env_idx}, {self._simulators[env_idx].env}, {problem}\n"
            f"Action: {actions[at]}. The environment itself did not take part and is as it was."
        )

    def _probe(self, simulator: Simulator) -> Any:
        """Let two copies take the same steps, compare, and return an observation as the environment returns it."""
        _make_generators(simulator.root)
        with simulator.unwatched():
            (once, example, effects), (again, *_) = (
                self._ask(partial(_take_steps, simulator), simulator.env) for _ in range(2)
            )
        simulator.notice.effects += effects
        for name in ("observations", "rewards", "terminated", "truncated"):
            if not identical(getattr(once, name), getattr(again, name)):
                raise UnbranchableEnvError(
                    f"{simulator.env} cannot be branched by forking: in two copies of the process the same actions gave "
                    f"other {name}. Some of its state is outside this process (a server, a device, shared memory), or "
                    "depends on the clock or on the system's source of random numbers.\n"
                    "Ways out: (1) pass a brancher of your own, brancher=lambda venv: MyBrancher(venv); (2) train without "
                    "branching, with n_samples=1."
                )
        return example

    def _ask(self, work: Any, env: gym.Env[Any, Any]) -> Any:
        child = Child(work, self._family)
        try:
            answer = child.receive()
        except ChildDied as error:
            raise BranchError(f"{env}: a copy of the process that tried a few steps {error}.") from error
        finally:
            end([child], self._family)
        if isinstance(answer, Raised):
            raise BranchError(
                f"{env} raised {answer.error_class} when a few steps with actions sampled from its action space were tried in "
                f"a copy of the process: {answer.message}"
            )
        return answer


def milliseconds_per_fork() -> float:
    """
    Measure what a branch costs in this process, apart from the environment's step.

    :return: the time of a child that does nothing
    """
    family: set[Child] = set()
    start = time.perf_counter()
    child = Child(lambda channel: channel.send(None), family)
    try:
        child.receive()
    finally:
        end([child], family)
    return 1000 * (time.perf_counter() - start)


def obstacle_to_fork(envs: Iterable[gym.Env[Any, Any]]) -> str | None:
    """
    Look for what a copy of the process would share with the original, or would not have.

    :param envs: environments
    :return: a description of the first such thing; ``None`` if there is none
    """
    for env in envs:
        simulator = Simulator(env)
        with simulator.unwatched():
            found = find(simulator.roots, _is_shared) or find_in_code(simulator.root, simulator.roots, _is_shared)
        if found is not None:
            path, obj = found
            return (
                f"{env} cannot be branched by forking: {path} is a {kind_of(obj)}, which a copy of the process does not "
                "have, or shares with the original.\n"
                f"Ways out: (1) register_codec({type(obj).__name__}, CONSTANT) of sb3_hybrid_grpo.branching if steps do not "
                "use it; (2) train without branching, with n_samples=1."
            )
    return None


def _is_shared(obj: Any) -> bool:
    if isinstance(obj, threading.Thread | BaseProcess):
        return obj.is_alive()
    if isinstance(obj, subprocess.Popen):
        return obj.returncode is None
    if isinstance(obj, np.memmap):
        return obj.mode in ("r+", "w+")
    return isinstance(obj, SemLock) or _is_open_file(obj) or is_outlet(obj)


def _is_open_file(obj: Any) -> bool:
    """Tell whether an object is an open file, socket or pipe: two processes would share its position or its peer."""
    if not hasattr(type(obj), "fileno") or any(obj is stream for stream in _STANDARD_STREAMS):
        return False
    try:
        return int(obj.fileno()) >= 0
    except (OSError, ValueError):
        return False


def _make_generators(root: gym.Env[Any, Any]) -> None:
    """Make the random generators that do not exist yet: each branch would make others."""
    _ = root.unwrapped.np_random
    pending: list[Any] = []
    layer: Any = root
    while isinstance(layer, gym.Wrapper):
        pending += [layer.action_space, layer.observation_space]
        layer = layer.env
    pending += [layer.action_space, layer.observation_space]
    while pending:
        space = pending.pop()
        if isinstance(space, spaces.Space):
            _ = space.np_random
            pending += [part for part in vars(space).values() if isinstance(part, spaces.Space | dict | tuple)]
        elif isinstance(space, dict | tuple):
            pending += space.values() if isinstance(space, dict) else space


def _take_steps(simulator: Simulator, channel: Channel) -> None:
    """Play an episode's beginning in a child."""
    action_space = copy.deepcopy(simulator.env.action_space)
    simulator.root.reset()
    channel.send((*simulator.try_actions(action_space, PROBE_STEPS, seed=0), simulator.notice.effects))


def _live(simulator: Simulator, action: Any, n_steps: int, channel: Channel) -> None:
    """Be a branch: take a step, answer, wait for the next action."""
    for steps_left in reversed(range(n_steps)):
        obs, reward, terminated, truncated, _ = simulator.root.step(action)
        is_last = terminated or truncated or not steps_left
        masks = masks_of(simulator.env) if simulator.n_masks and not is_last else None
        channel.send((obs, reward, terminated, truncated, masks))
        if is_last:
            return
        action = channel.receive()
