"""Learning to the end: minutes per test, run with ``-m slow``."""

import pytest
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy

from sb3_hybrid_grpo import HybridGRPO

pytestmark = pytest.mark.slow
SEEDS = range(5)
# Hyperparameters of PPO in the RL Zoo
ZOO_PENDULUM = {
    "n_steps": 1024,
    "gae_lambda": 0.95,
    "gamma": 0.9,
    "n_epochs": 10,
    "ent_coef": 0.0,
    "learning_rate": 1e-3,
    "clip_range": 0.2,
    "use_sde": True,
    "sde_sample_freq": 4,
}


def mean_return(model, env_id, seed):
    mean, _ = evaluate_policy(model, make_vec_env(env_id, seed=1000 + seed), n_eval_episodes=20)
    return mean


@pytest.mark.parametrize("seed", SEEDS)
def test_cartpole_with_the_defaults(seed):
    model = HybridGRPO("MlpPolicy", "CartPole-v1", seed=seed, device="cpu").learn(24 * 2048)
    assert model.num_timesteps <= 50_000
    assert mean_return(model, "CartPole-v1", seed) >= 475


@pytest.mark.parametrize("seed", SEEDS)
def test_pendulum_with_the_zoos_settings(seed):
    vec_env = make_vec_env("Pendulum-v1", 4, seed=seed)
    model = HybridGRPO("MlpPolicy", vec_env, seed=seed, device="cpu", **ZOO_PENDULUM).learn(19 * 4096)
    assert model.num_timesteps <= 80_000
    assert mean_return(model, "Pendulum-v1", seed) >= -250
