"""Learning to the end: minutes per test, run with ``-m slow``."""

import pytest
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy

from sb3_hybrid_grpo import HybridGRPO
from sb3_hybrid_grpo.compare.settings import ZOO_HYPERPARAMS

pytestmark = pytest.mark.slow
SEEDS = range(5)


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
    hyperparams = dict(ZOO_HYPERPARAMS["Pendulum-v1"])
    vec_env = make_vec_env("Pendulum-v1", hyperparams.pop("n_envs"), seed=seed)
    model = HybridGRPO("MlpPolicy", vec_env, seed=seed, device="cpu", **hyperparams).learn(19 * 4096)
    assert model.num_timesteps <= 80_000
    assert mean_return(model, "Pendulum-v1", seed) >= -250
