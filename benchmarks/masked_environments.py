"""Environments with invalid actions, under ids of Gymnasium."""

import gymnasium as gym

gym.register(
    "InvalidActions-v0",
    "sb3_contrib.common.envs:InvalidActionEnvDiscrete",
    kwargs={"dim": 40, "n_invalid_actions": 30},
)
