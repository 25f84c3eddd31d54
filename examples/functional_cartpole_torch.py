"""CartPole as a functional environment in PyTorch: all functions take the states of all environments at once."""

import math
from typing import NamedTuple

import torch as th
from gymnasium import spaces

from sb3_hybrid_grpo import FunctionalVecEnv, HybridGRPO
from sb3_hybrid_grpo.branching.functional.random import uniform


class State(NamedTuple):
    position: th.Tensor
    velocity: th.Tensor
    angle: th.Tensor
    angular_velocity: th.Tensor


class CartPole:
    arrays = "torch"
    max_episode_steps = 500
    observation_space = spaces.Box(-math.inf, math.inf, (4,))
    action_space = spaces.Discrete(2)

    def initial(self, rng):
        return State(*uniform(rng, (4,), -0.05, 0.05).T)

    def transition(self, state, action, rng):
        force = 20.0 * action.float() - 10.0
        cos, sin = th.cos(state.angle), th.sin(state.angle)
        push = (force + 0.05 * state.angular_velocity**2 * sin) / 1.1
        angular_acceleration = (9.8 * sin - cos * push) / (0.5 * (4 / 3 - 0.1 / 1.1 * cos**2))
        acceleration = push - 0.05 / 1.1 * angular_acceleration * cos
        return State(
            state.position + 0.02 * state.velocity,
            state.velocity + 0.02 * acceleration,
            state.angle + 0.02 * state.angular_velocity,
            state.angular_velocity + 0.02 * angular_acceleration,
        )

    def observation(self, state, rng):
        return th.stack(state, dim=1)

    def reward(self, state, action, next_state, rng):
        return th.ones(len(action), device=action.device)

    def terminal(self, state, rng):
        return (state.position.abs() > 2.4) | (state.angle.abs() > math.radians(12))


if __name__ == "__main__":
    env = FunctionalVecEnv(CartPole(), n_envs=8, seed=0)  # device="cuda" on a GPU
    model = HybridGRPO("MlpPolicy", env, n_steps=64, n_samples=2, seed=0, verbose=1)
    model.learn(20_000)
