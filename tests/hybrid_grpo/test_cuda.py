"""What trains on the CPU trains on a GPU; a checkpoint goes from the one to the other."""

import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3 import PPO
from stable_baselines3.common.env_util import make_vec_env

from sb3_hybrid_grpo import GRPO, PAPER_SETTINGS, HybridGRPO
from tests.envs import limited

pytestmark = [
    pytest.mark.skipif(not th.cuda.is_available(), reason="needs a GPU"),
    # SB3 recommends the CPU for MlpPolicy.
    pytest.mark.filterwarnings("ignore:You are trying to run:UserWarning"),
]

DEVICE = "cuda"
SMALL = {"n_steps": 64, "batch_size": 32, "n_epochs": 2, "seed": 0}
CNN = {"policy_kwargs": {"features_extractor_kwargs": {"features_dim": 16}}}

RUNS = {
    "defaults": ({}, {}),
    "paper": ({}, PAPER_SETTINGS),
    "one step": ({}, {"branch_horizon": 1, "n_samples": 4}),
    "some states": ({}, {"branch_fraction": 0.5, "branch_lambda": 0.9, "tail_coef": 0.5}),
    "images": ({"observation": "image"}, {"policy": "CnnPolicy", **CNN}),
    "dictionaries": ({"observation": "dict"}, {"policy": "MultiInputPolicy"}),
    "discrete actions": ({"action_space": spaces.Discrete(3)}, {"n_samples": 3}),
    "several discrete actions": ({"action_space": spaces.MultiDiscrete([2, 3])}, {"action_sampling": "iid"}),
    "binary actions": ({"action_space": spaces.MultiBinary(3)}, {"action_sampling": "iid"}),
    "gSDE": ({}, {"use_sde": True, "sde_sample_freq": 4}),
    "tempered": ({}, {"sampling_temperature": 2.0}),
    "soft values": ({}, {"soft_values": True, "ent_coef": 0.01}),
    "natural": ({}, {"trust_region": 0.02}),
    "best action": ({"action_space": spaces.Discrete(3)}, {"action_selection": "best", "branch_horizon": 1}),
}


def parameters(model):
    return {name: value.cpu().clone() for name, value in model.policy.state_dict().items()}


@pytest.mark.parametrize("env, settings", RUNS.values(), ids=RUNS)
def test_training(env, settings, tmp_path):
    settings = {"policy": "MlpPolicy", **settings}
    model = HybridGRPO(env=make_vec_env(limited(**env), 2, seed=0), device=DEVICE, **settings, **SMALL)
    before = parameters(model)
    model.learn(256)
    after = parameters(model)
    assert model.policy.device.type == DEVICE and model.num_timesteps == 256
    assert all(value.isfinite().all() for value in after.values())
    assert any(not th.equal(before[name], value) for name, value in after.items())

    model.save(tmp_path / "model")
    moved = HybridGRPO.load(tmp_path / "model", env=make_vec_env(limited(**env), 2, seed=0), device="cpu")
    for name, value in parameters(moved).items():
        th.testing.assert_close(value, after[name], rtol=0, atol=0)
    moved.learn(128, reset_num_timesteps=False)
    assert moved.num_timesteps == 384 and moved.policy.device.type == "cpu"


def test_what_the_buffer_holds_is_what_the_policy_says():
    model = HybridGRPO("MlpPolicy", make_vec_env(limited(), 2, seed=0), device=DEVICE, learning_rate=0.0, **SMALL).learn(128)
    buffer = model.rollout_buffer
    obs = th.as_tensor(buffer.observations, device=DEVICE)
    actions = th.as_tensor(buffer.actions, device=DEVICE).reshape(len(obs), model.n_samples, -1)
    with th.no_grad():
        log_probs = [model.policy.get_distribution(obs).log_prob(actions[:, i]).cpu() for i in range(model.n_samples)]
    np.testing.assert_allclose(buffer.log_probs.reshape(len(obs), -1), th.stack(log_probs, dim=1), rtol=1e-4, atol=1e-4)


def test_learned_branches():
    vec_env = make_vec_env("Pendulum-v1", 2, seed=0)
    settings = {"n_samples": 4, "branch_horizon": 3, "brancher": "learned", "n_steps": 512}
    model = HybridGRPO("MlpPolicy", vec_env, device=DEVICE, seed=0, **settings).learn(6 * 1024, log_interval=None)
    logged = model.logger.name_to_value
    assert logged["rollout/model_error"] < logged["rollout/model_spread"], "the model is not in use"
    assert model.policy.device.type == DEVICE and 0 <= logged["rollout/model_share"] <= 1


def test_grpo():
    model = GRPO("MlpPolicy", make_vec_env(limited(), 2, seed=0), device=DEVICE, n_samples=3, **SMALL)
    before = parameters(model)
    after = parameters(model.learn(128))
    assert any(not th.equal(before[name], value) for name, value in after.items())


@pytest.mark.parametrize("policy, observation, kwargs", [("MlpPolicy", "box", {}), ("CnnPolicy", "image", CNN)])
def test_one_sample_is_ppo(policy, observation, kwargs):
    settings = {"n_samples": 1, "reward_transform": "identity", "refit_critic": False, "max_actor_grad_norm": None}
    trained = [
        algorithm(policy, make_vec_env(limited(observation=observation), 2, seed=0), device=DEVICE, **own, **kwargs, **SMALL)
        for algorithm, own in ((PPO, {}), (HybridGRPO, settings))
    ]
    for model in trained:
        model.set_random_seed(0)
        model.learn(256)
    for name, value in parameters(trained[0]).items():
        th.testing.assert_close(parameters(trained[1])[name], value, rtol=1e-4, atol=1e-5)
