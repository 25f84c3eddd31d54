"""Tasks of MiniGrid for networks without convolutions."""

from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces

TASKS = ("DoorKey-5x5-v0", "DoorKey-6x6-v0", "Empty-Random-5x5-v0", "Empty-Random-6x6-v0")
_LARGEST = 10.0


class FlatView(gym.ObservationWrapper[np.ndarray, Any, dict[str, Any]]):
    """
    The agent's view as a vector.

    :param env: an environment of MiniGrid
    """

    def __init__(self, env: gym.Env[dict[str, Any], Any]) -> None:
        super().__init__(env)
        assert isinstance(env.observation_space, spaces.Dict)
        size = int(np.prod(env.observation_space["image"].shape))  # type: ignore[arg-type]
        self.observation_space = spaces.Box(0.0, 255 / _LARGEST, (size,), np.float32)

    def observation(self, observation: dict[str, Any]) -> np.ndarray:
        """
        Flatten an observation.

        :param observation: view, direction and mission, of which the last two say nothing here
        :return: the view, [H * W * 3]
        """
        view: np.ndarray = observation["image"].astype(np.float32).ravel() / _LARGEST
        return view


def make(task: str, render_mode: str | None = None) -> FlatView:
    """
    Make a task.

    :param task: name in ``TASKS``
    :param render_mode: ``"rgb_array"``, if it is to be drawn
    :return: the environment
    """
    import minigrid  # noqa: F401  registers its environments

    return FlatView(gym.make(f"MiniGrid-{task}", render_mode=render_mode).unwrapped)


def register() -> None:
    """Make ``gym.make("MiniGridFlat/DoorKey-5x5-v0")`` and its kin work in this process."""
    for task in TASKS:
        gym.register(f"MiniGridFlat/{task}", make, kwargs={"task": task})


register()
