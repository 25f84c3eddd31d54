"""Branches that start from many remembered states of a vectorised environment at once."""

from collections.abc import Sequence

import numpy as np

from sb3_hybrid_grpo.branching.batched import RememberedStates
from sb3_hybrid_grpo.branching.vec_env.views import RecallableView
from sb3_hybrid_grpo.common import BranchOutcome, Committed, Observations


class RecalledBranches:
    """
    A ``Brancher`` from all states that were remembered. The environments themselves are not touched.

    :param states: the states
    :param views: what vectorised wrappers do to the outcomes
    """

    uses_simulator = True

    def __init__(self, states: RememberedStates, views: Sequence[RecallableView]) -> None:
        self._states = states
        self._views = [view.recall() for view in views]
        self.is_changed_by_wrappers = bool(views)

    def open(self, actions: np.ndarray, alive: np.ndarray, horizon: int, obs: Observations | None = None) -> BranchOutcome:
        """
        Open branches at the remembered states and take their first steps.

        :param actions: actions as the environments take them, [E, n, \\*action_shape]
        :param alive: which of them are branched, [E, n]
        :param horizon: number of steps that a branch may take in all
        :param obs: not needed
        :return: their outcomes as the simulators return them, zero where not ``alive``
        """
        return self._states.open(actions, alive, horizon)

    def advance(self, actions: np.ndarray, alive: np.ndarray) -> BranchOutcome:
        """
        Take a further step in the open branches.

        :param actions: actions as the environments take them, [E, n, \\*action_shape]
        :param alive: which branches go on, [E, n]
        :return: the outcomes as the simulators return them, zero where not ``alive``
        """
        return self._states.advance(actions, alive)

    def close(self) -> None:
        """Do nothing: the branches are forgotten when the next ones are opened."""

    def observed(
        self, outcome: BranchOutcome, earlier: Sequence[BranchOutcome] = (), committed: Committed | None = None
    ) -> BranchOutcome:
        """
        Send simulator outcomes through the vectorised wrappers, each with the statistics after its own macro-step.

        :param outcome: what ``open`` or ``advance`` returned
        :param earlier: not needed
        :param committed: not needed
        :return: what the wrappers would return for it
        """
        for view in self._views:
            (outcome,) = view([outcome])
        return outcome
