"""Branching inside the workers of a vectorised environment."""

import pickle
from collections.abc import Callable, Sequence
from typing import Any, cast

import numpy as np
from stable_baselines3.common.vec_env import VecEnv
from stable_baselines3.common.vec_env.base_vec_env import CloudpickleWrapper, VecEnvStepReturn

from sb3_hybrid_grpo.branching.choice import longest_probe
from sb3_hybrid_grpo.branching.vec_env.views import VecWrapperView, sent
from sb3_hybrid_grpo.branching.vec_env.workers.dispatcher import Lesson, Prepared, Setup, Task
from sb3_hybrid_grpo.branching.vec_env.workers.team import Team
from sb3_hybrid_grpo.branching.vec_env.workers.transport import Transport
from sb3_hybrid_grpo.common import BranchError, BranchOutcome, BranchStep, Collector, Follower, join, join_steps

_GRACE_SECONDS = 5.0


class WorkersBrancher:
    """
    Sends each worker the actions of its environments, then collects the outcomes: the workers branch at the same time.

    ``is_outdated`` tells whether a worker has said that an environment is another one than before.

    :param transport: the way to the workers
    :param name: name of the way to branch, see ``choose_brancher``
    :param timeout: seconds that all branches of an environment may take for one step
    :param as_returned: see ``LocalBrancher``
    :param venv: the environments
    :raises UnbranchableEnvError: if an environment cannot be branched exactly in this way
    :raises BranchError: if an environment raises while it is probed
    """

    def __init__(self, transport: Transport, name: str, timeout: float | None, as_returned: bool, venv: VecEnv) -> None:
        self.is_outdated = False
        self._venv = cast(Any, venv)
        self._transport = transport
        self._token = object()
        self._venv.sb3_hybrid_grpo_token = self._token
        self.remembered: _WorkerStates | None
        self._version = 0
        self._groups = transport.groups
        self._rows = [slice(group.start, group.stop) for group in transport.groups]
        # The worker itself interrupts an environment that hangs, unless that never returns to Python.
        largest = max(map(len, self._groups))
        patience = None if timeout is None else 2 * largest * timeout + _GRACE_SECONDS
        limit = None if timeout is None else f"branch_timeout={timeout} s"
        self._team = Team(transport, "in a branch", patience, limit)
        longest = None if timeout is None else longest_probe(largest, timeout) + _GRACE_SECONDS
        self._probed = Team(transport, "while its environments were probed", longest, limit)
        setup, options = Setup.here(name, timeout, as_returned), venv._options
        self.announcement = self._prepare(
            self._probed.call("prepare", [(setup, [options[idx] for idx in group]) for group in self._groups])
        )

    @property
    def is_superseded(self) -> bool:
        """Whether workers have another brancher since, of which they keep one, or were started anew."""
        is_restarted = getattr(self._venv, "transport", self._transport) is not self._transport
        return is_restarted or self._venv.sb3_hybrid_grpo_token is not self._token

    @property
    def team(self) -> Team:
        """
        The workers.

        :raises BranchError: if they have another brancher by now
        """
        if self.is_superseded:
            raise BranchError(
                "Another brancher was made for these environments in the middle of a rollout, by a second model or by "
                "make_brancher, or their workers were started anew, and the states of this one are forgotten. Give the other "
                "one environments of its own, or do it between two rollouts."
            )
        return self._team

    def _prepare(self, answers: list[Prepared]) -> str | None:
        announcements, can_remember = zip(*answers, strict=True)
        self.remembered = _WorkerStates(self) if all(can_remember) else None
        return next(filter(None, announcements), None)

    def renew(self) -> str | None:
        """
        Have workers turn to the environments that they have now.

        :return: what the user should know about how they are branched, if that is news
        :raises UnbranchableEnvError: if one of them cannot be branched exactly
        """
        self.is_outdated = False
        return self._prepare(self._probed.call("renew"))

    def open(self, actions: np.ndarray, alive: np.ndarray, horizon: int) -> BranchOutcome:
        """Open branches and take their first steps, see ``VecEnvBrancher.open``."""
        return self.step("open", actions, alive, horizon)

    def teach(self, follower: Follower) -> str | None:
        """
        Send workers what they are to follow branches with.

        :param follower: it
        :return: why that is not possible; ``None`` if it is
        """
        self._version += 1
        try:
            lesson = Lesson(self._version, pickle.dumps(CloudpickleWrapper(follower)))
        except Exception as error:
            return f"it cannot be pickled: {type(error).__name__}: {error}"
        return next(filter(None, self.team.broadcast("learn", lesson)), None)

    def follow(
        self, actions: np.ndarray, alive: np.ndarray, noise: Sequence[np.ndarray], views: Sequence[VecWrapperView]
    ) -> list[BranchStep]:
        """
        Have workers follow branches, see ``FollowingBrancher``.

        :param actions: first actions for the environments, [E, n, \\*action_shape]
        :param alive: which of them are branched, [E, n]
        :param noise: the policy's noise in each further step
        :param views: views of all wrappers
        :return: the steps of the branches
        """
        return join_steps(self.team.call("follow", self._tasks(actions, alive, noise, views)))

    def follow_and_step(
        self,
        step: Callable[[], VecEnvStepReturn],
        actions: np.ndarray,
        alive: np.ndarray,
        noise: Sequence[np.ndarray],
        views: Sequence[VecWrapperView],
    ) -> tuple[VecEnvStepReturn, list[BranchStep]]:
        """
        Have workers follow branches and then take the committed step, with one message to each of them.

        :param step: takes the committed step
        :param actions: see ``follow``
        :param alive: see ``follow``
        :param noise: see ``follow``
        :param views: see ``follow``
        :return: what the environment returns, and the steps of the branches of each worker, stacked
        """
        return self.team.ride(step, "follow", self._tasks(actions, alive, noise, views))

    def collect(
        self,
        collector: Collector,
        shares: Callable[[slice], tuple[Any, ...]],
        n_steps: int,
        views: Sequence[VecWrapperView],
    ) -> list[Any]:
        """
        Have workers collect a rollout, see ``CollectingBrancher``.

        :param collector: collects it
        :param shares: what the worker of some environments is to be given beside
        :param n_steps: number of macro-steps
        :param views: views of all wrappers, which can be sent and have no memory
        :return: what ``collector`` returned in each worker
        """
        rows = [(self._version, sent(views, part) or [], part, *shares(part)) for part in self._rows]
        team = self.team.asked_for_more("while it collected a rollout", n_steps)
        return team.broadcast("collect", pickle.dumps(CloudpickleWrapper(collector)), rows)

    def remember_and_step(self, step: Callable[[], VecEnvStepReturn]) -> VecEnvStepReturn:
        """
        Have workers keep the present states and then take the committed step, with one message to each of them.

        :param step: takes the committed step
        :return: what the environment returns
        """
        assert self.remembered is not None
        returned, self.remembered.answers = self.team.ride(step, "remember")
        return returned

    def _tasks(
        self, actions: np.ndarray, alive: np.ndarray, noise: Sequence[np.ndarray], views: Sequence[VecWrapperView]
    ) -> list[tuple[Task]]:
        # One array travels faster than many.
        stacked = np.stack(noise) if noise else np.empty((0, len(actions)))
        n_states = stacked.shape[1] // len(actions)
        tasks = []
        for rows in self._rows:
            # The states of an environment follow one another.
            noise_of_group = stacked[:, rows.start * n_states : rows.stop * n_states]
            sendable = (sent(views, rows) if noise else None) or []
            tasks.append((Task(self._version, actions[rows], alive[rows], noise_of_group, sendable),))
        return tasks

    def advance(self, actions: np.ndarray, alive: np.ndarray) -> BranchOutcome:
        """Take a further step in the open branches, see ``VecEnvBrancher.advance``."""
        return self.step("advance", actions, alive)

    def step(self, method: str, actions: np.ndarray, alive: np.ndarray, *arguments: Any) -> BranchOutcome:
        """
        Have each worker step its branches.

        :param method: name of a method of its brancher
        :param actions: actions as the environments take them, [E, n, \\*action_shape]
        :param alive: which branches take a step, [E, n]
        :param arguments: what else the method takes
        :return: the outcomes, zero where not ``alive``
        """
        return join(self.team.call(method, self._split(actions, alive, *arguments)))

    def _split(self, actions: np.ndarray, alive: np.ndarray, *arguments: Any) -> list[tuple[Any, ...]]:
        return [(actions[rows], alive[rows], *arguments) for rows in self._rows]

    def include_masks(self) -> None:
        """Have outcomes include masks of invalid actions from now on."""
        self.team.call("include_masks")

    def close(self) -> None:
        """Do nothing: a worker forgets its branches when the next ones are opened."""


class _WorkerStates:
    """Has workers remember their states, see ``RememberedStates``."""

    answers: list[list[bool]]
    branches_at_once = 2048
    pays_in_workers = True

    def __init__(self, workers: WorkersBrancher) -> None:
        self._workers = workers

    def remember(self) -> None:
        self.answers = self._workers.team.call("remember")

    def confirm(self) -> np.ndarray:
        came_too_late = np.concatenate(self.answers)
        self._workers.is_outdated |= bool(came_too_late.any())
        return came_too_late

    def forget(self) -> None:
        self._workers.team.call("remembered.forget")

    def open(self, actions: np.ndarray, alive: np.ndarray, horizon: int) -> BranchOutcome:
        return self._workers.step("remembered.open", actions, alive, horizon)

    def advance(self, actions: np.ndarray, alive: np.ndarray) -> BranchOutcome:
        return self._workers.step("remembered.advance", actions, alive)

    def follow(
        self, actions: np.ndarray, alive: np.ndarray, noise: Sequence[np.ndarray], views: Sequence[VecWrapperView]
    ) -> list[BranchStep]:
        workers = self._workers
        return join_steps(workers.team.call("follow_remembered", workers._tasks(actions, alive, noise, views)))
