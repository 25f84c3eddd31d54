import gymnasium as gym
import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import VecNormalize

from sb3_hybrid_grpo import HybridGRPO, InvalidArgumentError, InvalidOutcomeError
from sb3_hybrid_grpo.branching import RewardFunction
from tests.envs import limited

SMALL = {"branch_horizon": 1, "n_steps": 32, "batch_size": 16, "n_epochs": 2, "seed": 0, "device": "cpu"}


class Robot(gym.Env):
    """Cannot be copied. The reward is minus the distance of the action from the observation."""

    observation_space = spaces.Box(-1, 1, (1,))
    action_space = spaces.Box(-1, 1, (1,))

    def __init__(self):
        self.connection = (number for number in ())

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.t, self.target = 0, self.np_random.uniform(-1, 1, size=1)
        return self.target.astype(np.float32), {}

    def step(self, action):
        reward = -float(np.abs(action - self.target).sum())
        self.t, self.target = self.t + 1, self.np_random.uniform(-1, 1, size=1)
        return self.target.astype(np.float32), reward, self.t == 7, False, {}


def reward_of(observations, actions):
    return -np.abs(actions - observations).sum(axis=-1)


class Keep(BaseCallback):
    def _on_step(self):
        return True

    def _on_rollout_end(self):
        names = ("observations", "actions", "rewards", "next_values", "terminated", "values", "episode_starts")
        self.arrays = {name: np.copy(getattr(self.model.rollout_buffer, name)) for name in names}


def test_rewards_are_the_functions_and_the_next_value_is_the_committed_one():
    vec_env = make_vec_env(lambda: gym.wrappers.TimeLimit(Robot(), 5), 2, seed=0)
    model = HybridGRPO("MlpPolicy", vec_env, n_samples=4, brancher=RewardFunction(reward_of), **SMALL)
    keep = Keep()
    model.learn(64, callback=keep)
    arrays = keep.arrays
    clipped = np.clip(arrays["actions"], -1, 1)
    expected = -np.abs(clipped - arrays["observations"][:, :, None]).sum(axis=-1)
    np.testing.assert_allclose(arrays["rewards"], expected, rtol=1e-5, atol=1e-6)
    # Also at the ends of episodes, where the next state is the last observation of the episode
    np.testing.assert_allclose(
        arrays["next_values"][..., 1:], np.repeat(arrays["next_values"][..., :1], 3, axis=-1), rtol=1e-4
    )
    np.testing.assert_array_equal(arrays["terminated"][..., 1], arrays["terminated"][..., 0])
    assert arrays["episode_starts"].sum() > 4
    assert model.num_simulator_steps == 64


def test_dict_observations_and_discrete_actions():
    def prefer_zero(observations, actions):
        assert observations["position"].shape == (len(actions), 1)
        return -actions.astype(float)

    vec_env = make_vec_env(limited(observation="dict", action_space=spaces.Discrete(3)), 2, seed=0)
    model = HybridGRPO("MultiInputPolicy", vec_env, brancher=RewardFunction(prefer_zero), **SMALL)
    before = {name: value.clone() for name, value in model.policy.state_dict().items()}
    model.learn(64)
    assert any(not th.equal(before[name], value) for name, value in model.policy.state_dict().items())


def test_rewards_are_normalised_like_the_committed_ones():
    vec_env = VecNormalize(make_vec_env(Robot, 1, seed=0), norm_obs=False, clip_reward=1e-3)
    model = HybridGRPO("MlpPolicy", vec_env, brancher=RewardFunction(reward_of), **SMALL)
    model.learn(32)
    assert 0 < np.abs(model.rollout_buffer.rewards[..., 1:]).max() <= 1e-3 + 1e-9


def test_it_learns_what_the_function_says():
    vec_env = make_vec_env(Robot, 4, seed=0)
    settings = {**SMALL, "n_steps": 128, "batch_size": 64, "n_epochs": 10, "learning_rate": 1e-3}
    model = HybridGRPO("MlpPolicy", vec_env, brancher=RewardFunction(reward_of), n_samples=8, gamma=0.0, **settings)
    model.learn(10 * 512)
    targets = np.linspace(-0.9, 0.9, 7, dtype=np.float32)[:, None]
    error = np.abs(model.predict(targets, deterministic=True)[0] - targets).mean()
    assert error < 0.25


@pytest.mark.parametrize(
    "function, options, error, message",
    [
        (lambda obs, actions: 0.0, {}, InvalidArgumentError, r"shape \(\) for 3 states"),
        (lambda obs, actions: np.full(len(actions), np.nan), {}, InvalidOutcomeError, "reward in a branch"),
        (reward_of, {"branch_horizon": 2}, InvalidArgumentError, "branch_horizon=1"),
    ],
)
def test_bad_functions(function, options, error, message):
    env = Robot()
    model = HybridGRPO("MlpPolicy", env, n_samples=4, brancher=RewardFunction(function), **{**SMALL, **options})
    with pytest.raises(error, match=message):
        model.learn(32)
