"""CartPole as a functional environment in NumPy: all functions take the states of all environments at once."""

from typing import NamedTuple

import numpy as np
from gymnasium import spaces

from sb3_hybrid_grpo import FunctionalVecEnv, HybridGRPO
from sb3_hybrid_grpo.branching.functional.random import uniform


class State(NamedTuple):
    position: np.ndarray
    velocity: np.ndarray
    angle: np.ndarray
    angular_velocity: np.ndarray


class CartPole:
    arrays = "numpy"
    max_episode_steps = 500
    observation_space = spaces.Box(-np.inf, np.inf, (4,))
    action_space = spaces.Discrete(2)

    def initial(self, rng):
        return State(*uniform(rng, (4,), -0.05, 0.05).T)

    def transition(self, state, action, rng):
        force = np.where(action == 1, np.float32(10), np.float32(-10))
        cos, sin = np.cos(state.angle), np.sin(state.angle)
        push = (force + np.float32(0.05) * state.angular_velocity**2 * sin) / np.float32(1.1)
        angular_acceleration = (np.float32(9.8) * sin - cos * push) / (
            np.float32(0.5) * (np.float32(4 / 3) - np.float32(0.1 / 1.1) * cos**2)
        )
        acceleration = push - np.float32(0.05 / 1.1) * angular_acceleration * cos
        return State(
            state.position + np.float32(0.02) * state.velocity,
            state.velocity + np.float32(0.02) * acceleration,
            state.angle + np.float32(0.02) * state.angular_velocity,
            state.angular_velocity + np.float32(0.02) * angular_acceleration,
        )

    def observation(self, state, rng):
        return np.stack(state, axis=1)

    def reward(self, state, action, next_state, rng):
        return np.ones(len(action), dtype=np.float32)

    def terminal(self, state, rng):
        return (np.abs(state.position) > 2.4) | (np.abs(state.angle) > 12 * np.pi / 180)


if __name__ == "__main__":
    env = FunctionalVecEnv(CartPole(), n_envs=8, seed=0)
    model = HybridGRPO("MlpPolicy", env, n_steps=64, n_samples=2, seed=0, verbose=1)
    model.learn(20_000)
