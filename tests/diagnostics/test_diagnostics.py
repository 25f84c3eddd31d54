"""Metrics of the seed's failure signatures, and warnings about those that stay."""

import warnings

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.env_util import make_vec_env

from sb3_hybrid_grpo import GRPO, HybridGRPO
from sb3_hybrid_grpo.diagnostics.statistics import advantage_variance, coincident_share, disagreement, saturated_share
from sb3_hybrid_grpo.diagnostics.symptoms import SYMPTOMS, Watch
from sb3_hybrid_grpo.estimation.reward_transforms import Identity, Tanh
from tests.envs import limited


def test_advantage_variance_by_hand():
    advantages, weights = np.array([[2.0, -2.0], [4.0, 0.0]]), np.array([[0.5, 0.5], [1.0, 0.0]])
    assert advantage_variance(advantages, weights) == ((1 + 1) + 16) / 2


def test_saturated_share_by_hand():
    """tanh' is 1 at 0, 0.42 at 1, 0.0099 at 3: two of four rewards are beyond its reach."""
    rewards = np.array([0.0, 1.0, 3.0, -50.0])
    assert saturated_share(Tanh(), rewards) == 0.5
    assert saturated_share(Identity(), rewards) == 0.0
    assert saturated_share(Tanh(), np.full(3, 50.0)) == 1.0
    assert saturated_share(Identity(), np.full(3, 50.0)) == 0.0


def test_coincident_share_by_hand():
    box = spaces.Box(-1, 1, (2,))
    same, apart = [[0.5, 1.0], [0.51, 1.0]], [[0.5, 1.0], [0.53, 1.0]]
    assert coincident_share(np.array([same, apart]), box) == 0.5
    assert coincident_share(np.array([same, apart]), spaces.Box(-np.inf, np.inf, (2,))) == 0.0
    assert coincident_share(np.array([[[1], [1]], [[1], [0]], [[0], [0]]]), spaces.Discrete(2)) == pytest.approx(2 / 3)


def test_disagreement_by_hand():
    """d = 1, 3: mean 2, std 1, two states."""
    assert disagreement(np.array([[1.0, 0.0, 0.0], [5.0, 1.0, 3.0]])) == pytest.approx(2 / (1 / np.sqrt(2)))
    assert disagreement(np.ones((4, 2))) == 0.0


def test_disagreement_is_that_of_chance_where_samples_are_alike():
    rng = np.random.default_rng(0)
    found = [disagreement(rng.normal(size=(200, 1)) + rng.normal(size=(200, 4))) for _ in range(200)]
    assert max(found) < 4
    assert np.mean(np.array(found) > 1.96) == pytest.approx(0.05, abs=0.04)


PATIENCE = 5


class Keep(BaseCallback):
    def __init__(self):
        super().__init__()
        self.logged = []

    def _on_step(self):
        return True

    def _on_rollout_end(self):
        self.logged.append(dict(self.logger.name_to_value))


def learn(env="Pendulum-v1", n_updates=PATIENCE + 1, **kwargs):
    keep = Keep()
    settings = {"n_steps": 64, "n_epochs": 4, "seed": 0, "device": "cpu", "gamma": 0.9, **kwargs}
    model = HybridGRPO("MlpPolicy", make_vec_env(env, 2, seed=0), **settings)
    model.learn(n_updates * 128, callback=keep, log_interval=1000)
    return model, keep.logged


@pytest.mark.parametrize("kwargs", [{}, {"action_sampling": "antithetic"}, {"branch_fraction": 0.5}], ids=str)
def test_all_metrics_are_logged(kwargs):
    model, logged = learn(n_updates=2, trust_region=0.01, **kwargs)
    metrics = {**logged[-1], **model.logger.name_to_value}
    of_minibatches = {"train/learning_rate_factor"}
    assert {symptom.metric for symptom in SYMPTOMS} - of_minibatches <= set(metrics)
    ours, ppos = metrics["diagnostics/advantage_variance"], metrics["diagnostics/ppo_advantage_variance"]
    assert metrics["diagnostics/advantage_variance_ratio"] == pytest.approx(ours / ppos)
    assert 0 < ours
    if not kwargs:
        assert ours < ppos


def test_committed_actions_of_gsde_are_not_compared_with_the_others():
    _, logged = learn(n_updates=2, use_sde=True)
    assert "diagnostics/coincident_actions" in logged[-1]
    assert "diagnostics/branch_disagreement" not in logged[-1]


def test_squashed_actions_are_compared_as_the_environment_takes_them():
    """In [-1, 1] they would all be within 1 % of a range of 2000."""
    wide = limited(action_space=spaces.Box(-1000, 1000, (2,)))
    _, logged = learn(env=wide, n_updates=1, use_sde=True, policy_kwargs={"squash_output": True})
    assert logged[-1]["diagnostics/coincident_actions"] < 0.1


def test_grpo_has_no_variance_to_compare_with_ppos():
    model = GRPO("MlpPolicy", "Pendulum-v1", n_steps=64, seed=0)
    keep = Keep()
    model.learn(64, callback=keep, log_interval=1000)
    assert "diagnostics/groups_without_signal" in keep.logged[-1]
    assert "diagnostics/advantage_variance_ratio" not in keep.logged[-1]


def test_a_users_transform_sees_the_environments_rewards_only():
    def positive(rewards):
        assert (rewards >= 0).all()
        return np.sqrt(rewards)

    _, logged = learn(env="CartPole-v1", n_updates=1, reward_transform=positive)
    assert "diagnostics/saturated_rewards" not in logged[-1]


def test_what_is_shared_with_ppo_is_logged_without_branches():
    model, logged = learn(n_updates=2, n_samples=1)
    assert "diagnostics/saturated_rewards" in logged[-1]
    assert "diagnostics/advantage_variance" not in logged[-1]
    assert "train/grad_norm" in model.logger.name_to_value


def test_a_symptom_is_reported_once_and_only_if_it_stays():
    (symptom,) = (symptom for symptom in SYMPTOMS if symptom.name == "unstable updates")
    watch = Watch()
    for approx_kl in [1.0] * (PATIENCE - 1) + [0.0] + [1.0] * (PATIENCE - 1):
        watch.look({symptom.metric: approx_kl})
    watch.look({"train/another": 1.0})
    with pytest.warns(UserWarning, match=r"unstable updates \(train/approx_kl = 1, threshold 0.1\): .*`learning_rate`"):
        watch.look({symptom.metric: 1.0})
    for _ in range(2 * PATIENCE):
        watch.look({symptom.metric: 1.0})


def test_a_good_run_has_no_warning():
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        learn(n_updates=2 * PATIENCE)
    assert not caught


def test_training_warns():
    with pytest.warns(UserWarning, match="saturated rewards"):
        learn(
            reward_transform="tanh", env=lambda: gym.wrappers.TransformReward(gym.make("Pendulum-v1"), lambda r: 10 * r - 50)
        )
