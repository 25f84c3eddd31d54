"""Functional environments of the tests."""

import importlib.util
import math
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch as th
from gymnasium import spaces

from sb3_hybrid_grpo.branching.functional import random

EXAMPLES = Path(__file__).parents[1] / "examples"


def example(name):
    """Load the environment of an example."""
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.CartPole()


class State(NamedTuple):
    position: np.ndarray
    velocity: np.ndarray


class Drift:
    """A noisy walk that ends beyond ±3, with masks, noisy observations, and spaces to choose."""

    arrays = "numpy"
    max_episode_steps = 9

    def __init__(self, observation="box", action_space=None, masks=False):
        self.observation_kind = observation
        self.action_space = spaces.Discrete(3) if action_space is None else action_space
        self.observation_space = {
            "box": spaces.Box(-math.inf, math.inf, (2,)),
            "dict": spaces.Dict({"position": spaces.Box(-math.inf, math.inf, (1,)), "bin": spaces.Discrete(8)}),
            "image": spaces.Box(0, 255, (36, 36, 1), np.uint8),
        }[observation]
        if masks:
            self.action_mask = self.valid

    def initial(self, rng):
        return State(*random.normal(rng, (2,)).T / np.float32(3))

    def transition(self, state, action, rng):
        push = action.reshape(len(action), -1).mean(axis=1).astype(np.float32) - np.float32(
            isinstance(self.action_space, spaces.Discrete)
        )
        velocity = (state.velocity + push) / np.float32(2) + np.float32(0.3) * random.normal(rng)
        return State(state.position + velocity, velocity)

    def observation(self, state, rng):
        if self.observation_kind == "box":
            return np.stack(state, axis=1) + np.float32(0.01) * random.normal(rng, (2,))
        if self.observation_kind == "dict":
            return {"position": state.position[:, None], "bin": np.clip(state.position + 4, 0, 7).astype(np.int64)}
        images = np.zeros((len(state.position), 36, 36, 1), dtype=np.uint8)
        images[np.arange(len(images)), :, np.clip(4 * state.position + 18, 0, 35).astype(int)] = 255
        return images

    def reward(self, state, action, next_state, rng):
        return -np.abs(next_state.position)

    def terminal(self, state, rng):
        return np.abs(state.position) > 3

    def valid(self, state):
        return np.stack((state.position > -1, np.ones_like(state.position, dtype=bool), state.position < 1), axis=1)


class Joint:
    """The same walk in two functions."""

    arrays = "numpy"
    max_episode_steps = 9

    def __init__(self):
        self.parts = Drift()
        self.observation_space, self.action_space = self.parts.observation_space, self.parts.action_space

    def joint_start(self, rng):
        state = self.parts.initial(rng)
        return state, self.parts.observation(state, rng)

    def joint_step(self, state, action, rng):
        after = self.parts.transition(state, action, rng)
        told = self.parts.reward(state, action, after, rng), self.parts.terminal(after, rng), after.position > 1
        return after, self.parts.observation(after, rng), *told


class Torch(Drift):
    """The same walk in PyTorch."""

    arrays = "torch"

    def initial(self, rng):
        return State(*random.normal(rng, (2,)).T / 3)

    def transition(self, state, action, rng):
        velocity = (state.velocity + action.float() - 1) / 2 + 0.3 * random.normal(rng)
        return State(state.position + velocity, velocity)

    def observation(self, state, rng):
        return th.stack(state, dim=1) + 0.01 * random.normal(rng, (2,))

    def reward(self, state, action, next_state, rng):
        return -next_state.position.abs()

    def terminal(self, state, rng):
        return state.position.abs() > 3
