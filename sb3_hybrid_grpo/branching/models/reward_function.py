"""Outcomes from a reward function, for environments that no one can branch: real robots, closed services."""

from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import numpy as np
from stable_baselines3.common.vec_env import VecEnv, unwrap_vec_normalize

from sb3_hybrid_grpo.common import BranchOutcome, Committed, InvalidArgumentError, Observations

RewardOf: TypeAlias = Callable[[Any, np.ndarray], np.ndarray]


class RewardFunction:
    """
    A ``brancher`` that asks a function for the rewards of uncommitted actions instead of a simulator.

    Their next state is taken to be that of the committed action. This is a bias: the estimate knows what an action costs at
    once, and nothing of where it leads. It suits tasks whose reward says it all, and single-step branches only.

    :param function: returns one reward per state and action, in the environment's own unit: called with observations as the
        policy sees them, [B, \\*obs_shape] or a dict of such arrays (normalised if the environment is wrapped in
        ``VecNormalize``), and actions as the environment takes them, [B, \\*action_shape]; returns [B]
    """

    def __init__(self, function: RewardOf) -> None:
        self.function = function

    def __call__(self, venv: VecEnv) -> "RewardFunctionBrancher":
        """
        Make the brancher of an environment.

        :param venv: the training environment
        :return: its brancher
        """
        return RewardFunctionBrancher(self.function, venv)


class RewardFunctionBrancher:
    """
    The brancher that ``RewardFunction`` makes.

    :param function: see ``RewardFunction``
    :param venv: the training environment
    """

    uses_simulator = False

    def __init__(self, function: RewardOf, venv: VecEnv) -> None:
        self._function = function
        self._normalize = unwrap_vec_normalize(venv)

    def open(self, actions: np.ndarray, alive: np.ndarray, horizon: int, obs: Observations | None = None) -> BranchOutcome:
        """
        Ask the function.

        :param actions: actions as the environment takes them, [E, n, \\*action_shape]
        :param alive: which of them are asked about, [E, n]
        :param horizon: number of steps that a branch may take in all: 1
        :param obs: observations of the states
        :return: rewards; the rest is known after the committed step
        :raises InvalidArgumentError: if the horizon is longer, or the function does not return one reward per action
        """
        if horizon > 1:
            raise InvalidArgumentError("A RewardFunction knows no further steps: use branch_horizon=1.")
        n_branches = actions.shape[1]
        rewards = np.asarray(self._function(_repeat(obs, n_branches, merge=True), actions.reshape(-1, *actions.shape[2:])))
        if rewards.shape != (alive.size,):
            raise InvalidArgumentError(
                f"The RewardFunction returned shape {rewards.shape} for {alive.size} states and actions: it must return one "
                "reward for each."
            )
        nothing = np.zeros(alive.shape, dtype=bool)
        rewards = np.where(alive, rewards.reshape(alive.shape), 0.0)
        return BranchOutcome(np.zeros(alive.shape), rewards, nothing, nothing)

    def advance(self, actions: np.ndarray, alive: np.ndarray) -> BranchOutcome:
        """Raise: there are no further steps."""
        raise InvalidArgumentError("A RewardFunction knows no further steps: use branch_horizon=1.")

    def close(self) -> None:
        """Do nothing."""

    def observed(
        self, outcome: BranchOutcome, earlier: Sequence[BranchOutcome] = (), committed: Committed | None = None
    ) -> BranchOutcome:
        """
        Complete the outcome with the committed transition.

        :param outcome: what ``open`` returned
        :param earlier: nothing
        :param committed: the committed transition
        :return: normalised rewards, and next states of the committed actions
        """
        assert committed is not None
        n_branches = outcome.rewards.shape[1]
        return BranchOutcome(
            _repeat(committed.observations, n_branches),
            outcome.rewards if self._normalize is None else self._normalize.normalize_reward(outcome.rewards),
            np.repeat(committed.terminated[:, None], n_branches, axis=1),
            outcome.truncated,
        )


def _repeat(observations: Any, n_branches: int, merge: bool = False) -> Any:
    if isinstance(observations, dict):
        return {key: _repeat(part, n_branches, merge) for key, part in observations.items()}
    repeated = np.repeat(observations[:, None], n_branches, axis=1)
    return repeated.reshape(-1, *observations.shape[1:]) if merge else repeated
