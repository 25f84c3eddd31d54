"""The check compares every step of a branch with what the environment does later, not the first alone."""

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces
from stable_baselines3.common.vec_env import DummyVecEnv

from sb3_hybrid_grpo.branching import make_brancher
from sb3_hybrid_grpo.check.laws import LawBrokenError, Saboteur, run
from sb3_hybrid_grpo.check.pace import FixedPace


class Walk(gym.Env):
    observation_space = spaces.Box(-np.inf, np.inf, (1,))
    action_space = spaces.Discrete(3)

    def __init__(self, is_masked=False):
        if is_masked:
            self.action_masks = self._masks

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.t, self.position = 0, 0.0
        return self._obs(), {}

    def step(self, action):
        self.t += 1
        self.position += int(action) - 1 + self.np_random.normal()
        return self._obs(), self.position, self.t == 11, False, {}

    def _obs(self):
        return np.array([self.position], dtype=np.float32)

    def _masks(self):
        return np.array([True, self.position > 0, self.position < 1])


def made(*make_envs):
    venv = DummyVecEnv([lambda make=make: Saboteur(make()) for make in make_envs])
    venv.seed(0)
    venv.reset()
    return venv


class Liar:
    """Foretells the first step of a branch as it is, and another reward for one of the later steps."""

    def __init__(self, brancher, lie_at):
        self._brancher, self._lie_at, self._n_steps = brancher, lie_at, 0

    def __getattr__(self, name):
        return getattr(self._brancher, name)

    def open(self, actions, alive, horizon):
        self._n_steps = 1
        return self._brancher.open(actions, alive, horizon)

    def advance(self, actions, alive):
        self._n_steps += 1
        outcome = self._brancher.advance(actions, alive)
        if self._n_steps == self._lie_at:
            outcome.rewards[0, 0] += 1
        return outcome


@pytest.mark.parametrize("lie_at", [2, 5])
def test_wrong_later_steps_are_found(lie_at):
    venv = made(Walk)
    with pytest.raises(LawBrokenError, match=rf"another reward than the step .*, number {lie_at} of the branch\)"):
        run(venv, FixedPace(20), Liar(make_brancher("snapshot", venv), lie_at))


@pytest.mark.parametrize("make_envs", [[Walk], [Walk, Walk], [lambda: Walk(True)]], ids=["one", "two", "masks"])
def test_right_steps_are_not_found_fault_with(make_envs):
    venv = made(*make_envs)
    branched = run(venv, FixedPace(40), make_brancher("snapshot", venv))
    expected = run(made(*make_envs), FixedPace(40))
    assert branched.ends == expected.ends and len(branched.ends) == 3 * len(make_envs)
    assert branched.n_branched == 40
    for row, expected_row in zip(branched.results, expected.results, strict=True):
        for part, expected_part in zip(row, expected_row, strict=True):
            np.testing.assert_array_equal(part, expected_part)
