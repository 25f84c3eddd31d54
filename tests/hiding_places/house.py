"""Environments that are made of places."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from stable_baselines3.common.monitor import Monitor

from tests.hiding_places.places import PLACES

EPISODE_STEPS = 9


class Room(gym.Env):
    """A noisy walk on a line: its position is seen, and the sum of all levels."""

    observation_space = spaces.Box(-np.inf, np.inf, (2,), np.float64)
    action_space = spaces.Discrete(3)

    def __init__(self, drift=0.0):
        self.drift = drift
        self.np_random = np.random.default_rng(0)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.n_steps = 0
        self.position = float(self.np_random.normal())
        return np.array([self.position, 0.0]), {"levels": {}}

    def step(self, action):
        self.n_steps += 1
        self.position += float(action) - 1 + self.drift + 0.1 * self.np_random.normal()
        is_over = bool(abs(self.position) > 4)
        return np.array([self.position, 0.0]), -abs(self.position), is_over, self.n_steps >= EPISODE_STEPS, {"levels": {}}


class Floor(gym.Wrapper):
    """Adds the level of a place to what is seen and to the reward."""

    def __init__(self, env, label):
        super().__init__(env)
        self.label = label

    def place(self):
        raise NotImplementedError

    def step(self, action):
        obs, reward, terminated, truncated, info = self.env.step(action)
        level = self.place().level()
        info["levels"][self.label] = level
        return obs + np.array([0.0, level]), reward + level, terminated, truncated, info

    def close(self):
        self.place().tear_down()
        super().close()


class SwitchAtReset(gym.Wrapper):
    """Goes on in another of its tasks after each reset."""

    def __init__(self, tasks):
        super().__init__(tasks[0])
        self.tasks = tasks
        self.n_resets = 0

    def reset(self, **kwargs):
        self.n_resets += 1
        self.env = self.tasks[self.n_resets // 2 % 2]
        return self.env.reset(**kwargs)


class Visit(NamedTuple):
    """
    A place in an environment.

    :param name: its kind
    :param period: visits per level
    :param is_held: whether a wrapper holds it in an attribute; else the wrapper is one
    """

    name: str
    period: int
    is_held: bool


def make_floor(visit: Visit, index: int, folder: Path) -> Callable[[gym.Env], gym.Env]:
    """Return what wraps environments of one run into a place."""
    cls = PLACES[visit.name].make_class()

    def wrap(env: gym.Env) -> gym.Env:
        floor_class = _HoldingFloor if visit.is_held else type("Floor", (cls, _PlaceAsFloor), {})
        floor: Any = floor_class(env, f"{index} {visit.name}")
        if visit.is_held:
            floor.held = cls()
        held: Any = floor.place()
        held.period, held.folder = visit.period, folder
        held.set_up()
        return floor

    return wrap


class _HoldingFloor(Floor):
    def place(self):
        return self.held


class _PlaceAsFloor(Floor):
    def place(self):
        return self


def make_house(visits: list[Visit], folder: Path, switches: bool = False) -> Callable[[], gym.Env]:
    """
    Return a function that makes the environments of one run.

    :param visits: places, from the inside out
    :param folder: where traces are left
    :param switches: whether each reset goes on in another of two rooms
    """
    floors = [make_floor(visit, index, folder) for index, visit in enumerate(visits)]

    def make() -> gym.Env:
        env: gym.Env = SwitchAtReset([Room(), Room(drift=0.5)]) if switches else Room()
        for floor in floors:
            env = floor(env)
        return Monitor(env)

    return make
