"""Committed steps, compared now and then with what a branch foretold."""

import weakref
from typing import Any, Protocol

import gymnasium as gym

from sb3_hybrid_grpo.branching.copies.stand_in import StandIn
from sb3_hybrid_grpo.branching.snapshots import CONSTANT, register_builtin
from sb3_hybrid_grpo.common import BranchOutcome, difference, empty_outcome, store_observation

_LONGEST_INTERVAL = 64


class Foreteller(Protocol):
    """A brancher that tells what a step will return."""

    def foretell(self, env_idx: int, forecast: "Forecast", action: Any) -> tuple[Any, ...] | str | None:
        """
        Take a step in a branch.

        :param env_idx: number of the environment
        :param forecast: takes the step of it that is asked for
        :param action: the action
        :return: what the step returned, or a description of what happened instead; ``None`` if it cannot be told
        """


class Forecast:
    """
    Compares committed steps, the first ones and others at intervals, with what a branch of the same action returned before.

    Takes the place of the environment's ``step`` as long as its brancher lives. ``is_open`` tells whether branches were opened
    at the present state, without which nothing is compared; ``difference`` describes the first step that differed.

    :param env: the environment, without the wrappers that only watch it
    :param env_idx: its number
    :param brancher: how it is branched
    """

    def __init__(self, env: gym.Env[Any, Any], env_idx: int, brancher: Foreteller) -> None:
        self.is_open = False
        self.difference: str | None = None
        self.step_env = env.step
        self._space = env.observation_space
        self._env_idx = env_idx
        self._brancher = weakref.ref(brancher)
        self._n_steps = 0
        weakref.finalize(brancher, StandIn(env, {"step": self.step}).leave)

    def step(self, action: Any) -> Any:
        """
        Step the environment.

        :param action: the action
        :return: what it returns
        """
        brancher = self._brancher() if self._is_due() else None
        if brancher is None:
            return self.step_env(action)
        foretold = brancher.foretell(self._env_idx, self, action)
        returned = self.step_env(action)
        if foretold is not None and self.difference is None:
            self.difference = foretold if isinstance(foretold, str) else self._compare(foretold, returned)
        return returned

    def _is_due(self) -> bool:
        """Tell whether to compare: after 0, 1, 2, 4, 8 ... steps that were branched, and no later than after 64 more."""
        if not self.is_open:
            return False
        self.is_open = False
        n_steps = self._n_steps
        self._n_steps += 1
        return n_steps & (n_steps - 1) == 0 or n_steps % _LONGEST_INTERVAL == 0

    def _compare(self, foretold: tuple[Any, ...], returned: tuple[Any, ...]) -> str | None:
        name = difference(self._as_outcome(foretold), self._as_outcome(returned))
        return None if name is None else f"showed other {name} than the step with the same action that followed"

    def _as_outcome(self, returned: tuple[Any, ...]) -> BranchOutcome:
        outcome = empty_outcome(self._space, (1, 1))
        obs, outcome.rewards[0, 0], outcome.terminated[0, 0], outcome.truncated[0, 0] = returned[:4]
        store_observation(outcome.observations, (0, 0), obs)
        return outcome


register_builtin(Forecast, CONSTANT)
