"""Branches as they are seen behind the wrappers of a vectorised environment."""

from collections.abc import Sequence
from typing import Protocol

import numpy as np

from sb3_hybrid_grpo.branching.batched import RememberedStates
from sb3_hybrid_grpo.branching.vec_env.views import RecallableView, VecWrapperView, see
from sb3_hybrid_grpo.common import BranchOutcome, BranchStep, Committed, Observations


class Stepped(Protocol):
    """What takes the steps of branches."""

    def open(self, actions: np.ndarray, alive: np.ndarray, horizon: int) -> BranchOutcome:
        """Open branches and take their first steps, see ``Brancher.open``."""

    def advance(self, actions: np.ndarray, alive: np.ndarray) -> BranchOutcome:
        """Take a further step in the open branches, see ``Brancher.advance``."""


class BranchesBehindWrappers:
    """
    A ``Brancher`` whose outcomes are seen through views of wrappers.

    :param source: takes the steps
    :param views: what vectorised wrappers do to the outcomes, the innermost first
    """

    uses_simulator = True

    def __init__(self, source: Stepped, views: Sequence[VecWrapperView]) -> None:
        self._source = source
        self._views = views

    def open(self, actions: np.ndarray, alive: np.ndarray, horizon: int, obs: Observations | None = None) -> BranchOutcome:
        """
        Open branches and take their first steps.

        :param actions: actions as the environments take them, [E, n, \\*action_shape]
        :param alive: which of them are branched, [E, n]
        :param horizon: number of steps that a branch may take in all
        :param obs: not needed
        :return: their outcomes as the simulators return them, zero where not ``alive``
        """
        return self._source.open(actions, alive, horizon)

    def advance(self, actions: np.ndarray, alive: np.ndarray) -> BranchOutcome:
        """
        Take a further step in the open branches.

        :param actions: actions as the environments take them, [E, n, \\*action_shape]
        :param alive: which branches go on, [E, n]
        :return: the outcomes as the simulators return them, zero where not ``alive``
        """
        return self._source.advance(actions, alive)

    def close(self) -> None:
        """Do nothing: the branches are forgotten when the next ones are opened."""

    def observed(
        self, outcome: BranchOutcome, earlier: Sequence[BranchOutcome] = (), committed: Committed | None = None
    ) -> BranchOutcome:
        """
        Send simulator outcomes through the vectorised wrappers.

        :param outcome: what ``open`` or ``advance`` returned
        :param earlier: the outcomes of the steps before it in the same branches
        :param committed: not needed
        :return: what the wrappers would return for it
        """
        return see(outcome, earlier, self._views)


class RememberedInWorkers(RememberedStates, Protocol):
    """States that workers remember and branch from by themselves."""

    def follow(
        self, actions: np.ndarray, alive: np.ndarray, noise: Sequence[np.ndarray], views: Sequence[VecWrapperView]
    ) -> list[BranchStep]:
        """
        Follow branches from the states that were kept, see ``FollowingBrancher.follow``.

        :param actions: first actions for the environments, [E, n, \\*action_shape]
        :param alive: which of them are branched, [E, n]
        :param noise: the policy's noise in each further step
        :param views: views of all wrappers, which can be sent
        :return: the steps of the branches
        """


class RecalledBranches(BranchesBehindWrappers):
    """
    Branches from all states that were remembered. While they are followed, the policy sees outcomes with the statistics before
    the committed step of their macro-step, as where branches do not wait; once they are closed, with those after it. The
    environments themselves are not touched.

    :param states: the states
    :param views: what vectorised wrappers do to the outcomes
    """

    def __init__(self, states: RememberedStates, views: Sequence[RecallableView]) -> None:
        recalled = [view.recall() for view in views]
        super().__init__(states, [before for before, _ in recalled])
        self._afterwards = [after for _, after in recalled]
        self.is_changed_by_wrappers = bool(views)
        self.has_workers = hasattr(states, "follow")

    def follow(self, actions: np.ndarray, alive: np.ndarray, noise: Sequence[np.ndarray]) -> list[BranchStep]:
        """Have workers follow branches, see ``FollowingBrancher``."""
        try:
            return self._source.follow(actions, alive, noise, self._views)  # type: ignore[attr-defined, no-any-return]
        finally:
            self.close()

    def close(self) -> None:
        """See outcomes with the statistics after the committed step."""
        self._views = self._afterwards
