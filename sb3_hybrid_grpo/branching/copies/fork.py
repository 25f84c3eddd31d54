"""Branching by forked copies of the process: exact for whatever an environment keeps inside the process."""

import os
import sys
import time
from collections.abc import Sequence
from functools import partial
from multiprocessing.connection import wait
from typing import Any, TypeAlias

import gymnasium as gym
import numpy as np
from gymnasium import spaces

from sb3_hybrid_grpo.branching.copies.child import CAN_FORK, PATIENCE, Channel, Child, ChildDied, ChildHangs, Raised, end
from sb3_hybrid_grpo.branching.copies.forecasts import Forecast
from sb3_hybrid_grpo.branching.copies.shared import obstacle_to_fork
from sb3_hybrid_grpo.branching.simulator import PROBE_STEPS, InProcessBrancher, Simulator, copy_of_space, core_of, masks_of
from sb3_hybrid_grpo.common import (
    BranchError,
    BranchOutcome,
    BranchTimeoutError,
    UnbranchableEnvError,
    difference,
    store_observation,
)

_At: TypeAlias = tuple[int, int]

_STEPS_OF_COPIES = (PROBE_STEPS, 3, PROBE_STEPS)
"""Other numbers of steps in between, lest a counter outside the process comes around to the same value."""

_OUTSIDE = (
    "Some of its state is outside this process (a server, a device, shared memory), or depends on the clock or on the "
    "system's source of random numbers, which np.random.default_rng() without a seed draws from: then use self.np_random."
)
_WAYS_OUT = (
    "Ways out: (1) pass a brancher of your own, brancher=lambda venv: MyBrancher(venv); (2) train without branching, with "
    "n_samples=1."
)


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
        self._forecasts: list[Forecast] = []
        for simulator in self._simulators:
            self._note(self._probe(simulator))
        self._forecasts += [Forecast(simulator.root, idx, self) for idx, simulator in enumerate(self._simulators)]

    def open(self, actions: np.ndarray, alive: np.ndarray, horizon: int) -> BranchOutcome:
        """Open branches in the present states, see ``InProcessBrancher``; raise if an earlier one was wrong."""
        for env_idx, forecast in enumerate(self._forecasts):
            forecast.is_open = False
            if forecast.difference is not None:
                raise BranchError(
                    f"Environment {env_idx}, {self._simulators[env_idx].env}, cannot be branched by forking: a branch "
                    f"{forecast.difference}. {_OUTSIDE} What lies outside may have been changed by branches since the model "
                    f"was made: begin anew.\n{_WAYS_OUT}"
                )
        outcome = super().open(actions, alive, horizon)
        for forecast, of_env in zip(self._forecasts, alive, strict=True):
            forecast.is_open = bool(of_env.any())
        return outcome

    def foretell(self, env_idx: int, forecast: Forecast, action: Any) -> tuple[Any, ...] | str | None:
        """Take a step in a copy of the process, see ``Foreteller``."""
        simulator = self._simulators[env_idx]
        try:
            with simulator.unwatched():
                child = Child(lambda channel: channel.send(forecast.step_env(action)[:4]), self._family)
        except BranchError:
            return None
        try:
            answer = child.receive(self._timeout)
        except ChildHangs:
            return f"took longer than branch_timeout={self._timeout} s, unlike the step with the same action that followed"
        except ChildDied as error:
            return f"{error}, unlike the step with the same action that followed"
        finally:
            end([child], self._family)
        if isinstance(answer, Raised):
            return f"raised {answer.error_class}, unlike the step with the same action that followed: {answer.message}"
        returned: tuple[Any, ...] = answer
        return returned

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
        """Let copies of one state take the same steps, compare, and return an observation as the environment returns it."""
        _make_generators(simulator.root)
        with simulator.unwatched():
            child = Child(partial(_take_steps, simulator), self._family)
        try:
            (once, example, effects), _, (again, *_) = (self._hear(child, simulator.env) for _ in _STEPS_OF_COPIES)
        finally:
            end([child], self._family)
        simulator.notice.effects += effects
        if (name := difference(once, again)) is not None:
            raise UnbranchableEnvError(
                f"{simulator.env} cannot be branched by forking: in two copies of the process the same actions gave "
                f"other {name}. {_OUTSIDE}{simulator.notice.suspects}\n{_WAYS_OUT}"
            )
        return example

    def _hear(self, child: Child, env: gym.Env[Any, Any]) -> Any:
        patience = max(PATIENCE, 2 * PROBE_STEPS * (self._timeout or 0.0))
        try:
            answer = child.receive(patience)
        except ChildHangs:
            raise UnbranchableEnvError(
                f"{env} cannot be branched by forking: a few steps in a copy of the process took longer than {patience:g} s. "
                "They may wait for something outside this process, or for threads, which a copy does not have"
                f"{' (jax is loaded: its threads are among these)' if 'jax' in sys.modules else ''}.\n{_WAYS_OUT}"
            ) from None
        except ChildDied as error:
            raise BranchError(f"{env}: a copy of the process that tried a few steps {error}.") from error
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


def _make_generators(root: gym.Env[Any, Any]) -> None:
    """Make the random generators that do not exist yet: each branch would make others."""
    _ = core_of(root).np_random
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
    """Begin an episode in a child, and go on with it in several copies of that: a reset in each would hide what they share."""
    simulator.reset()
    for n_steps in _STEPS_OF_COPIES:
        family: set[Child] = set()
        child = Child(partial(_try_actions, simulator, n_steps), family)
        try:
            channel.send(child.receive())
        finally:
            end([child], family)


def _try_actions(simulator: Simulator, n_steps: int, channel: Channel) -> None:
    tried = simulator.try_actions(copy_of_space(simulator.env.action_space), n_steps, seed=0)
    channel.send((*tried, simulator.notice.effects))


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
