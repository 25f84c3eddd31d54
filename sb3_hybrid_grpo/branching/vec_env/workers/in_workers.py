"""Branching inside the workers of a vectorised environment."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from sb3_hybrid_grpo.branching.vec_env.workers.dispatcher import Prepared, Setup
from sb3_hybrid_grpo.branching.vec_env.workers.team import Team
from sb3_hybrid_grpo.branching.vec_env.workers.transport import Transport
from sb3_hybrid_grpo.common import BranchOutcome, join

_GRACE_SECONDS = 5.0


class WorkersBrancher:
    """
    Sends each worker the actions of its environments, then collects the outcomes: the workers branch at the same time.

    ``is_outdated`` tells whether a worker has said that an environment is another one than before.

    :param transport: the way to the workers
    :param name: name of the way to branch, see ``choose_brancher``
    :param timeout: seconds that all branches of an environment may take for one step
    :param as_returned: see ``LocalBrancher``
    :param options: what the first reset of each environment is to be given
    :raises UnbranchableEnvError: if an environment cannot be branched exactly in this way
    :raises BranchError: if an environment raises while it is probed
    """

    def __init__(
        self,
        transport: Transport,
        name: str,
        timeout: float | None,
        as_returned: bool,
        options: Sequence[dict[str, Any]],
    ) -> None:
        self.is_outdated = False
        self._groups = transport.groups
        # The worker itself interrupts an environment that hangs, unless that never returns to Python.
        largest = max(map(len, self._groups))
        patience = None if timeout is None else 2 * largest * timeout + _GRACE_SECONDS
        self.team = Team(transport, "in a branch", patience, None if timeout is None else f"branch_timeout={timeout} s")
        setup = Setup.here(name, timeout, as_returned)
        self.announcement = self._prepare(
            self.team.call("prepare", [(setup, [options[idx] for idx in group]) for group in self._groups])
        )

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
        return self._prepare(self.team.call("renew"))

    def open(self, actions: np.ndarray, alive: np.ndarray, horizon: int) -> BranchOutcome:
        """Open branches and take their first steps, see ``VecEnvBrancher.open``."""
        self.start(actions, alive, horizon)
        return self.wait()

    def start(self, actions: np.ndarray, alive: np.ndarray, horizon: int) -> None:
        """Open branches without waiting, see ``VecEnvBrancher.start``."""
        self.team.send("open", self._split(actions, alive, horizon))

    def wait(self) -> BranchOutcome:
        """Return what ``start`` asked for."""
        return join(self.team.receive())

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
        slices = [slice(group.start, group.stop) for group in self._groups]
        return [(actions[rows], alive[rows], *arguments) for rows in slices]

    def include_masks(self) -> None:
        """Have outcomes include masks of invalid actions from now on."""
        self.team.call("include_masks")

    def close(self) -> None:
        """Do nothing: a worker forgets its branches when the next ones are opened."""


class _WorkerStates:
    """Has workers remember their states, see ``RememberedStates``."""

    def __init__(self, workers: WorkersBrancher) -> None:
        self._workers = workers

    def remember(self) -> None:
        self._workers.team.send("remember")

    def confirm(self) -> np.ndarray:
        came_too_late = np.concatenate(self._workers.team.receive())
        self._workers.is_outdated |= bool(came_too_late.any())
        return came_too_late

    def forget(self) -> None:
        self._workers.team.call("remembered.forget")

    def open(self, actions: np.ndarray, alive: np.ndarray, horizon: int) -> BranchOutcome:
        return self._workers.step("remembered.open", actions, alive, horizon)

    def advance(self, actions: np.ndarray, alive: np.ndarray) -> BranchOutcome:
        return self._workers.step("remembered.advance", actions, alive)
