"""Variants that were tried: each does what its name says."""

import numpy as np
import pytest
import torch as th
from stable_baselines3.common.env_util import make_vec_env
from torch.nn.utils import parameters_to_vector

from benchmarks.learning.variants import VARIANTS
from sb3_hybrid_grpo import HybridGRPO
from tests.envs import limited

SETTINGS = {"n_steps": 32, "batch_size": 32, "n_epochs": 2, "seed": 0, "device": "cpu", "learning_rate": 1e-3}


def make(name, **kwargs):
    return VARIANTS[name]("MlpPolicy", make_vec_env(limited(), 2, seed=0), **{"n_samples": 2, **SETTINGS, **kwargs})


def test_updates_that_are_too_long_are_scaled_back_on_a_straight_line():
    settings = {"learning_rate": 0.05, "learning_rate_bounds": (0.05, 0.05 + 1e-9)}
    start = parameters_to_vector(make("ScaledBack", desired_kl=0.01, **settings).policy.parameters()).detach()
    free, limited = (make("ScaledBack", desired_kl=desired_kl, **settings).learn(64) for desired_kl in (1e9, 0.01))
    kl = free._divergence()
    assert limited.logger.name_to_value["train/kl_after_update"] == pytest.approx(kl) and kl > 0.1
    moved, moved_freely = (parameters_to_vector(model.policy.parameters()).detach() - start for model in (limited, free))
    th.testing.assert_close(moved, (0.02 / kl) ** 0.5 * moved_freely, rtol=1e-3, atol=1e-6)
    assert limited._divergence() < 0.02


def test_recomputing_with_the_same_critic_changes_nothing():
    model = make("RecomputedAdvantages", n_samples=1)
    buffer, before = model.rollout_buffer, []

    def recompute_only():
        before.extend((buffer.advantages[..., 0].copy(), buffer.returns.copy()))
        next(buffer.get())
        model._recompute()

    model.train = recompute_only
    model.learn(64)
    for recomputed, once in zip((buffer.advantages, buffer.returns), before, strict=True):
        np.testing.assert_allclose(recomputed, buffer.swap_and_flatten(once), atol=1e-5)


def test_advantages_are_recomputed_in_later_epochs_only():
    calls = []
    model = make("RecomputedAdvantages", n_samples=1, n_epochs=3)
    model._recompute = lambda: calls.append(model.num_timesteps)
    model.learn(128)
    assert calls == [64, 64, 128, 128] and "get" not in vars(model.rollout_buffer)


def test_rollouts_are_as_long_as_the_noise_scale():
    model = make("NoiseScaledRollouts", n_steps=64)
    model._measure = lambda: None
    model.signal = 1.0
    lengths = []
    for noise in (300.0, 1e9, 1e9, 1e9, 0.0):
        model.noise = noise
        model.learn(model.n_steps * model.n_envs, reset_num_timesteps=False)
        lengths.append(model.n_steps * model.n_envs)
    assert lengths == [256, 512, 1024, 1024, 512]
    assert model.rollout_buffer.rewards.shape[:2] == (512, 2)


def test_noise_scale_of_known_gradients():
    model = make("NoiseScaledRollouts").learn(64)
    model.signal = model.noise = 0.0
    gradients = iter([th.tensor([3.0, 1.0]), th.tensor([1.0, 1.0])])
    model._gradient = lambda half: next(gradients)
    model._measure()
    # |G|² is estimated by 3·1 + 1·1, the trace by 32 states of a half times (2² + 0²) / 2.
    assert (model.signal, model.noise) == pytest.approx((0.1 * 4, 0.1 * 64))


def test_the_horizon_grows():
    model = make("GrowingHorizon", branch_horizon=4, tail_coef=1.0)
    horizons = []
    model.train = lambda: horizons.append((model.rollout_buffer.branch_horizon, model.rollout_buffer.branch_alive.shape[-1]))
    model.learn(4 * 64)
    assert horizons == [(1, 1), (2, 2), (3, 3), (4, 4)]


def test_states_are_chosen_by_what_is_expected():
    model = make("InformativeStates", branch_horizon=2, branch_fraction=0.25).learn(64)
    model._coef, model._threshold = np.array([0.0, 1.0, 0.0, 0.0, 0.0]), 0.0
    states = []
    model.train = lambda: states.append((model.rollout_buffer.observations[..., 0], model.rollout_buffer.branched))
    model.learn(64, reset_num_timesteps=False)
    observations, branched = states[0]
    np.testing.assert_array_equal(branched, observations >= 0)
    assert 0 < branched.mean() < 1 and model._coef.any()


def test_a_critic_learns_from_what_branches_have_seen():
    settings = {"branch_horizon": 2, "tail_coef": 1.0, "refit_critic": False, "max_actor_grad_norm": None, "n_epochs": 1}
    plain = HybridGRPO("MlpPolicy", make_vec_env(limited(), 2, seed=0), n_samples=2, **{**SETTINGS, **settings}).learn(64)
    model = make("BranchCritic", **settings)
    train, seen = model.train, []

    def look_and_train():
        buffer, kept = model.rollout_buffer, model._kept.joined()
        first = buffer.branch_alive[:, :, 1, 0]
        with th.no_grad():
            values = model.policy.predict_values(th.as_tensor(kept[buffer.branch_observation_ids[:, :, 1, 0][first]]))
        seen.append((values.numpy().ravel(), buffer.branch_next_values[:, :, 1, 0][first]))
        train()

    model.train = look_and_train
    model.learn(64)
    np.testing.assert_allclose(*seen[0], atol=1e-5)
    ours, others = model.policy.state_dict(), plain.policy.state_dict()
    assert {name for name in ours if not th.equal(ours[name], others[name])} == {name for name in ours if "value_net" in name}


def test_gradients_are_averaged_over_rollouts(monkeypatch):
    gradients = iter([th.tensor([1.0, -2.0]), th.tensor([0.0, 10.0]), th.tensor([4.0, 0.0])])
    monkeypatch.setattr(HybridGRPO, "_gradient", lambda model, parameters: next(gradients))
    model = make("AveragedGradient", trust_region=0.01)
    found = [model._gradient(()) for _ in range(3)]
    th.testing.assert_close(th.stack(found), th.tensor([[1.0, -2.0], [0.7 / 1.7, 8.6 / 1.7], [4.49 / 2.19, 6.02 / 2.19]]))


@pytest.mark.parametrize(("n_rollouts", "are_same"), [(1, True), (2, False)])
def test_steps_follow_averaged_gradients(n_rollouts, are_same):
    policies = []
    for algorithm in HybridGRPO, VARIANTS["AveragedGradient"]:
        model = algorithm("MlpPolicy", make_vec_env(limited(), 2, seed=0), n_samples=2, trust_region=0.01, **SETTINGS)
        policies.append(model.learn(64 * n_rollouts).policy.parameters())
    assert all(th.equal(*pair) for pair in zip(*policies, strict=True)) is are_same


@pytest.mark.parametrize(("n_reused", "n_rollouts", "are_same"), [(1, 3, True), (2, 1, True), (2, 2, False)])
def test_earlier_rollouts_are_reused(n_reused, n_rollouts, are_same, monkeypatch):
    monkeypatch.setattr(VARIANTS["ReusedRollouts"], "n_reused", n_reused)
    policies, evaluations = [], []
    for algorithm in HybridGRPO, VARIANTS["ReusedRollouts"]:
        model = algorithm("MlpPolicy", make_vec_env(limited(), 2, seed=0), n_samples=2, trust_region=0.01, **SETTINGS)
        losses = model._policy_losses

        def record(data, log_prob, entropy, metrics, losses=losses, model=model):
            terms = losses(data, log_prob, entropy, metrics)
            evaluations.append((model.num_timesteps, len(data.actions), metrics["approx_kl"][-1]))
            return terms

        model._policy_losses = record
        policies.append(model.learn(64 * n_rollouts).policy.parameters())
    assert all(th.equal(*pair) for pair in zip(*policies, strict=True)) is are_same
    assert "get" not in vars(model.rollout_buffer)
    of_last_step = [evaluation for evaluation in evaluations if evaluation[0] == 64 * n_rollouts]
    before, *_, after = of_last_step[len(of_last_step) // 2 :]
    assert before[1] == 64 * min(n_reused, n_rollouts)
    # Before the step there is no divergence, whichever policies have sampled.
    assert before[2] == 0 < after[2] <= 0.015


def test_steps_are_shorter_where_little_is_at_stake(monkeypatch):
    model = make("Stakes", trust_region=0.02).learn(64)
    assert 0 < model.logger.name_to_value["train/trust_region"] <= 0.02
    model.largest, divergences = 0.0, []
    monkeypatch.setattr(HybridGRPO, "train", lambda self: divergences.append(self.trust_region))
    for spread in 1.0, 2.0, 0.6, 0.3, 0.0:
        model.rollout_buffer.advantages = np.array([spread, -spread])
        model.train()
    assert divergences == pytest.approx([0.02, 0.02, 0.02, 0.005, 0.0]) and model.trust_region == 0.02
