"""What is known about the code of Gymnasium's own environments makes their branches cheap, and changes nothing else."""

import functools
import types

import gymnasium as gym
import mujoco
import numpy as np
import pytest
from gymnasium.envs.classic_control import CartPoleEnv
from gymnasium.envs.mujoco.hopper_v5 import HopperEnv
from stable_baselines3.common.vec_env import DummyVecEnv

from sb3_hybrid_grpo.branching import make_brancher
from sb3_hybrid_grpo.branching.snapshots import known_layers, randomness
from sb3_hybrid_grpo.branching.snapshots.codecs import mujoco as mujoco_codec
from tests.envs import limited
from tests.lockstep import describe, describe_global_generators

HORIZON, N_BRANCHES = 5, 3


class Watching(gym.Wrapper):
    """Holds a view of the positions, so that the data cannot be exchanged for another behind its back."""

    def __init__(self, env):
        super().__init__(env)
        self.positions = env.unwrapped.data.qpos

    def step(self, action):
        obs, reward, *ends = self.env.step(action)
        return obs, reward + self.positions[0], *ends


class Holding(gym.Wrapper):
    def __init__(self, env):
        super().__init__(env)
        self.parts = {"data": env.unwrapped.data}

    def step(self, action):
        obs, reward, *ends = self.env.step(action)
        return obs, reward + self.parts["data"].qpos[0], *ends


class OwnHopper(HopperEnv):
    pass


def change_step():
    env = gym.make("Hopper-v5")
    env.unwrapped.step = types.MethodType(lambda self, action: HopperEnv.step(self, action), env.unwrapped)
    return env


def change_step_partially():
    env = gym.make("Hopper-v5")
    env.unwrapped.step = functools.partial(HopperEnv.step, env.unwrapped)
    return env


MAKERS = {
    "Gymnasium's": (lambda: gym.make("HalfCheetah-v5"), True),
    "with two time limits": (lambda: gym.wrappers.TimeLimit(gym.make("Hopper-v5"), 7), True),
    "with a wrapper": (lambda: gym.wrappers.TransformReward(gym.make("Hopper-v5"), abs), False),
    "changed": (change_step, False),
    "changed by a partial": (change_step_partially, False),
    "view in a wrapper": (lambda: Watching(gym.make("HalfCheetah-v5")), False),
    "reference in a wrapper": (lambda: Holding(gym.make("HalfCheetah-v5")), False),
    "subclass": (OwnHopper, False),
}


def test_functions_of_others_in_a_class_make_it_unknown(monkeypatch):
    env = gym.make("CartPole-v1").unwrapped
    assert known_layers(env)
    monkeypatch.setattr(CartPoleEnv, "step", lambda self, action: None)
    assert known_layers(env) is None


@pytest.mark.parametrize(("make", "is_private"), MAKERS.values(), ids=MAKERS)
def test_data_is_copied_once_per_branch_where_it_is_private(make, is_private, monkeypatch):
    venv = DummyVecEnv([make])
    venv.seed(0)
    venv.reset()
    brancher = make_brancher("snapshot", venv)
    base = venv.envs[0].unwrapped
    committed, before = base.data, describe(venv.envs[0])
    copies = []
    copy_data = mujoco_codec._copy_data
    monkeypatch.setattr(mujoco_codec, "_copy_data", lambda *arguments: copies.append(arguments) or copy_data(*arguments))
    rng = np.random.default_rng(0)
    actions = rng.uniform(-1, 1, size=(HORIZON, 1, N_BRANCHES, *venv.action_space.shape)).astype(np.float32)
    alive = np.ones((1, N_BRANCHES), dtype=bool)
    outcomes = [brancher.open(actions[0], alive, HORIZON), *(brancher.advance(rest, alive) for rest in actions[1:])]
    brancher.close()
    n_copies = len(copies)
    assert describe(venv.envs[0]) == before
    assert base.data is committed
    assert (n_copies == N_BRANCHES) == is_private
    for step, outcome in enumerate(outcomes):
        venv.step(actions[step, :, 0])
        np.testing.assert_array_equal(outcome.observations[0, 0], venv.buf_obs[None][0])
        assert outcome.rewards[0, 0] == venv.buf_rews[0]


def test_model_loaded_anew_gets_data_of_its_own():
    venv = DummyVecEnv([lambda: gym.make("InvertedPendulum-v5")])
    venv.reset()
    brancher = make_brancher("snapshot", venv)
    actions, alive = np.zeros((1, 2, 1), dtype=np.float32), np.ones((1, 2), dtype=bool)
    before = brancher.open(actions, alive, horizon=1)
    brancher.close()
    base = venv.envs[0].unwrapped
    base.model.opt.gravity[2] = -1.0
    base.model = mujoco.MjModel.from_xml_path(base.fullpath)
    base.data = mujoco.MjData(base.model)
    base.set_state(base.init_qpos + 0.1, base.init_qvel)
    outcome = brancher.open(actions, alive, horizon=1)
    brancher.close()
    venv.step(actions[:, 0])
    np.testing.assert_array_equal(outcome.observations[0, 0], venv.buf_obs[None][0])
    assert not np.array_equal(before.observations[0, 0], outcome.observations[0, 0])


@pytest.mark.parametrize(
    ("make", "is_watched"),
    [
        (lambda: gym.make("CartPole-v1"), False),
        (lambda: gym.make("HalfCheetah-v5"), False),
        (lambda: gym.wrappers.TransformReward(gym.make("CartPole-v1"), abs), True),
        (change_step, True),
        (lambda: limited()(), True),
    ],
    ids=["CartPole", "MuJoCo", "with a wrapper", "changed", "user's own"],
)
def test_only_unknown_code_is_watched_for_global_generators(make, is_watched, monkeypatch):
    venv = DummyVecEnv([make])
    venv.reset()
    brancher = make_brancher("snapshot", venv)
    starts = []
    monkeypatch.setattr(randomness.Watch, "start", lambda self: starts.append(1))
    monkeypatch.setattr(randomness.Watch, "noticed", lambda self: False)
    actions = np.array([[venv.action_space.sample()]])
    brancher.open(actions, np.ones((1, 1), dtype=bool), horizon=1)
    brancher.close()
    assert bool(starts) == is_watched


def test_known_environment_that_draws_from_a_global_generator(monkeypatch):
    """As when somebody patched its class: what the probe sees counts for more than the name of a module."""
    step = HopperEnv.step

    def noisy_step(self, action):
        obs, reward, *ends = step(self, action)
        return obs, reward + np.random.normal(), *ends

    monkeypatch.setattr(HopperEnv, "step", noisy_step)
    venv = DummyVecEnv([lambda: gym.make("Hopper-v5")])
    venv.reset()
    brancher = make_brancher("snapshot", venv)
    actions = np.zeros((1, 3, 3), dtype=np.float32)
    before = describe_global_generators()
    outcome = brancher.open(actions, np.ones((1, 3), dtype=bool), horizon=1)
    brancher.close()
    assert describe_global_generators() == before
    venv.step(actions[:, 0])
    np.testing.assert_array_equal(outcome.rewards, np.full((1, 3), venv.buf_rews[0]))
