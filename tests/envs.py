"""Small environments of the tests, and a policy."""

import sys

import gymnasium as gym
import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.policies import ActorCriticPolicy


class Walk(gym.Env):
    """
    A noisy walk on a line that ends beyond ±3, with observation and action spaces to choose.

    :param observation: ``"box"``, ``"dict"``, ``"image"`` or ``"discrete"``
    :param action_space: any space of fixed shape; the walk moves by the mean of its actions
    """

    def __init__(self, observation="box", action_space=None, render_mode=None):
        self.render_mode = render_mode
        self.observation = observation
        self.action_space = spaces.Box(-1, 1, (2,)) if action_space is None else action_space
        self.observation_space = {
            "box": spaces.Box(-10, 10, (2,)),
            "dict": spaces.Dict({"position": spaces.Box(-10, 10, (1,)), "bin": spaces.Discrete(8)}),
            "image": spaces.Box(0, 255, (36, 36, 1), np.uint8),
            "discrete": spaces.Discrete(8),
        }[observation]

    def _observe(self):
        position_bin = int(np.clip(self.position + 4, 0, 7))
        if self.observation == "box":
            return np.array([self.position, self.velocity], dtype=np.float32)
        if self.observation == "dict":
            return {"position": np.array([self.position], dtype=np.float32), "bin": position_bin}
        if self.observation == "image":
            image = np.zeros((36, 36, 1), dtype=np.uint8)
            image[:, int(np.clip(4 * self.position + 18, 0, 35))] = 255
            return image
        return position_bin

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.position, self.velocity = self.np_random.normal(size=2) / 3
        return self._observe(), {}

    def step(self, action):
        self.velocity = 0.5 * self.velocity + 0.5 * np.mean(action) + 0.3 * self.np_random.normal()
        self.position += self.velocity
        return self._observe(), -abs(self.position), bool(abs(self.position) > 3), False, {}


def limited(max_episode_steps=20, **kwargs):
    """Return a function that makes a ``Walk`` with a time limit."""
    return lambda: gym.wrappers.TimeLimit(Walk(**kwargs), max_episode_steps)


class _FarLibrary:
    """What a library in C might keep for its users, who have numbers only."""

    def __init__(self):
        self.worlds = {}

    def connect(self):
        self.worlds[len(self.worlds)] = 0
        return len(self.worlds) - 1

    def step(self, handle, n_steps=1):
        self.worlds[handle] += n_steps
        return self.worlds[handle]


_far_library = _FarLibrary()


def far_library():
    """Return a library by a way that no look at the code of an environment finds out."""
    return sys.modules["tests.envs"].__dict__["_far_" + "library"]


class SharedLayer(th.nn.Module):
    """A custom network, as SB3 documents them, whose actor and critic have a layer in common."""

    latent_dim_pi = latent_dim_vf = 4

    def __init__(self):
        super().__init__()
        self.both, self.pi, self.vf = th.nn.Linear(3, 4), th.nn.Linear(4, 4), th.nn.Linear(4, 4)

    def forward(self, features):
        return self.forward_actor(features), self.forward_critic(features)

    def forward_actor(self, features):
        return self.pi(self.both(features))

    def forward_critic(self, features):
        return self.vf(self.both(features))


class SharedLayerPolicy(ActorCriticPolicy):
    def _build_mlp_extractor(self):
        self.mlp_extractor = SharedLayer()
