"""pgx's games for one player."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pgx
from gymnasium import spaces

from sb3_hybrid_grpo.common import InvalidArgumentError

_MOST_STEPS_OF_MINATAR = 2500


class PgxEnv:
    """
    A game of pgx for one player, with masks of illegal actions.

    :param env: the game
    :param max_episode_steps: number of steps after which an episode is cut off; by default none, and 2,500 in MinAtar's games,
        which need not end
    :raises InvalidArgumentError: if it is played by several
    """

    arrays = "jax"

    def __init__(self, env: Any, max_episode_steps: float | None = None) -> None:
        if env.num_players > 1:
            raise InvalidArgumentError(
                f"{env.id} is a game for {env.num_players} players, and an environment has one: write a functional "
                f"environment "
                "whose transition has the others move."
            )
        self.env = env
        if max_episode_steps is None:
            max_episode_steps = _MOST_STEPS_OF_MINATAR if env.id.startswith("minatar") else math.inf
        self.max_episode_steps = max_episode_steps
        state = jax.eval_shape(env.init, jax.random.PRNGKey(0))
        self.action_space = spaces.Discrete(state.legal_action_mask.shape[0])
        self.observation_space = spaces.Box(-np.inf, np.inf, state.observation.shape, dtype=np.float32)

    def initial(self, rng: Any) -> Any:
        """Return the state in which an episode starts."""
        return self.env.init(rng)

    def transition(self, state: Any, action: Any, rng: Any) -> Any:
        """Return the state that an action leads to."""
        return self.env.step(state, action, rng)

    def observation(self, state: Any, rng: Any) -> Any:
        """Return what the agent sees of a state."""
        return state.observation.astype(jnp.float32)

    def reward(self, state: Any, action: Any, next_state: Any, rng: Any) -> Any:
        """Return the reward of a transition."""
        return next_state.rewards[0]

    def terminal(self, state: Any, rng: Any) -> Any:
        """Return whether an episode ends in a state."""
        return state.terminated

    def truncation(self, state: Any, rng: Any) -> Any:
        """Return whether an episode is cut off in a state."""
        return state.truncated

    def action_mask(self, state: Any) -> Any:
        """Return which actions are legal."""
        return state.legal_action_mask


def make(name: str) -> PgxEnv:
    """
    Make an environment.

    :param name: its name in pgx
    :return: the environment
    :raises InvalidArgumentError: if there is none, or it is for several players
    """
    if name not in pgx.available_envs():
        raise InvalidArgumentError(f"pgx has no environment {name!r}. It has {', '.join(pgx.available_envs())}.")
    return PgxEnv(pgx.make(name))
