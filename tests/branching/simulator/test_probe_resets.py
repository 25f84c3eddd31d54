"""Resets while environments are probed: with the options of the vectorised environment."""

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv

from sb3_hybrid_grpo import BranchError, HybridGRPO
from sb3_hybrid_grpo.branching.copies.child import CAN_FORK
from tests.envs import Walk

BRANCHERS = ["auto", "snapshot", *(["fork"] if CAN_FORK else [])]
SETTINGS = {"n_steps": 16, "batch_size": 16, "n_epochs": 1, "device": "cpu"}


class NeedsOptions(Walk):
    """Its first reset asks for a level."""

    level = None

    def reset(self, *, seed=None, options=None):
        self.level = options["level"] if options else self.level
        if self.level is None:
            raise ValueError("no level")
        return super().reset(seed=seed)

    def step(self, action):
        obs, reward, terminated, truncated, info = super().step(action)
        return obs, reward + 100 * self.level, terminated, truncated, info


def level_of(model):
    buffer = model.rollout_buffer
    assert buffer.branch_alive[..., 1, 0].all()
    return np.rint(buffer.branch_rewards[buffer.branch_alive] / 100)


@pytest.mark.parametrize("brancher", BRANCHERS)
def test_options_that_are_set_before(brancher):
    venv = make_vec_env(NeedsOptions, 2)
    venv.set_options({"level": 3})
    model = HybridGRPO("MlpPolicy", venv, brancher=brancher, **SETTINGS)
    assert venv._options == [{"level": 3}] * 2 and venv.get_attr("level") == [None, None]
    model.train = lambda: None
    model.learn(32)
    assert (level_of(model) == 3).all()


def test_options_of_workers():
    venv = SubprocVecEnv([NeedsOptions] * 2, "fork" if CAN_FORK else None)
    try:
        venv.set_options([{"level": 1}, {"level": 2}])
        model = HybridGRPO("MlpPolicy", venv, **SETTINGS)
        model.train = lambda: None
        model.learn(32)
        assert set(level_of(model).tolist()) == {1, 2}
    finally:
        venv.close()


def test_a_reset_before_the_model_is_made_is_enough():
    venv = DummyVecEnv([NeedsOptions])
    venv.set_options({"level": 4})
    venv.reset()
    model = HybridGRPO("MlpPolicy", venv, **SETTINGS)
    model.train = lambda: None
    model.learn(16)
    assert (level_of(model) == 4).all()


@pytest.mark.parametrize("brancher", BRANCHERS)
def test_a_reset_that_raises(brancher):
    with pytest.raises(BranchError, match=r"ValueError when it was reset with no options.*no level(?s:.*)set_options\(\)"):
        HybridGRPO("MlpPolicy", NeedsOptions(), brancher=brancher, **SETTINGS)


class Simulation:
    """No environment, but what some packages hide behind one."""

    def __init__(self):
        self.walk = Walk()
        self.walk.reset(seed=0)


class OtherUnwrapped(gym.Env):
    """Like robosuite's ``GymWrapper``: its ``unwrapped`` is no ``gym.Env``."""

    def __init__(self):
        self.env = Simulation()
        self.action_space = spaces.Box(-1, 1, (2,))
        self.observation_space = spaces.Box(-10, 10, (2,))

    @property
    def unwrapped(self):
        return self.env

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return self.env.walk.reset(seed=seed)

    def step(self, action):
        return self.env.walk.step(action)


@pytest.mark.parametrize("brancher", ["auto", "snapshot", "fork", "replay", "quickest"])
def test_an_environment_whose_unwrapped_is_none(brancher):
    if brancher in ("fork", "quickest") and not CAN_FORK:
        pytest.skip("needs os.fork")
    model = HybridGRPO("MlpPolicy", OtherUnwrapped(), brancher=brancher, branch_horizon=2, **SETTINGS)
    model.train = lambda: None
    model.learn(16)
    assert model.rollout_buffer.branch_alive[..., 1, 0].all()
