"""The games of MinAtar for networks without convolutions, and with Gymnasium's random numbers."""

from typing import Any, ClassVar

import gymnasium as gym
import numpy as np
from gymnasium import spaces

MAX_STEPS = 1000


class MinAtar(gym.Env[np.ndarray, np.int64]):
    """
    A game of MinAtar (https://arxiv.org/abs/1903.03176) with its minimal action set and sticky actions.

    :param game: ``"asterix"``, ``"breakout"``, ``"freeway"``, ``"seaquest"`` or ``"space_invaders"``
    :param render_mode: ``"rgb_array"``, if it is to be drawn
    """

    metadata: ClassVar[dict[str, Any]] = {"render_modes": ["rgb_array"], "render_fps": 10}  # type: ignore[misc]

    def __init__(self, game: str, render_mode: str | None = None) -> None:
        from minatar import Environment

        self.render_mode = render_mode
        self._game = Environment(game)
        self._actions = self._game.minimal_action_set()
        self.action_space = spaces.Discrete(len(self._actions))
        self.observation_space = spaces.Box(0.0, 1.0, (int(np.prod(self._game.state_shape())),), np.float32)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict[str, Any]]:
        """
        Start an episode.

        :param seed: seed of the environment
        :param options: not used
        :return: the first observation and no information
        """
        super().reset(seed=seed)
        if seed is not None:
            self._game.seed(seed)
        self._game.last_action = 0
        self._game.reset()
        return self._observation(), {}

    def step(self, action: np.int64) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """
        Play one frame.

        :param action: index in the minimal action set
        :return: observation, reward, whether the game is over, ``False`` and no information
        """
        reward, terminated = self._game.act(self._actions[action])
        return self._observation(), float(reward), bool(terminated), False, {}

    def render(self) -> np.ndarray:  # type: ignore[override]
        """
        Draw the screen.

        :return: an image whose grey tells the topmost object
        """
        state = self._game.state()
        grey = (state * np.arange(1, state.shape[-1] + 1)).max(axis=-1) * (255 // state.shape[-1])
        return np.repeat(grey[..., None].astype(np.uint8), 3, axis=-1)

    def _observation(self) -> np.ndarray:
        return self._game.state().astype(np.float32).ravel()


def register() -> None:
    """Make ``gym.make("MinAtarFlat/breakout-v0")`` and its kin work in this process."""
    for game in ("asterix", "breakout", "freeway", "seaquest", "space_invaders"):
        gym.register(f"MinAtarFlat/{game}-v0", MinAtar, kwargs={"game": game}, max_episode_steps=MAX_STEPS)


register()
