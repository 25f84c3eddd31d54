"""Schedules of the entropy coefficient, and a learning rate that follows the KL divergence."""

import csv
import math
from itertools import pairwise

import numpy as np
import pytest
from stable_baselines3 import PPO
from stable_baselines3.common.logger import configure

from sb3_hybrid_grpo import GRPO, HybridGRPO, InvalidArgumentError
from sb3_hybrid_grpo.common.schedules import kl_adapted_factor, parse_schedule, value_at
from tests.envs import Walk, limited

SMALL = {"n_steps": 32, "batch_size": 16, "n_epochs": 2, "branch_horizon": 1, "seed": 0, "device": "cpu"}


def make(algorithm=HybridGRPO, **kwargs):
    return algorithm("MlpPolicy", limited()(), **{**SMALL, **kwargs})


@pytest.mark.parametrize(
    "kl, rate, expected",
    [
        (0.021, 1e-3, 2 / 1.5),
        (0.02, 1e-3, 2),
        (0.005, 1e-3, 2),
        (0.0049, 1e-3, 3),
        (math.nan, 1e-3, 2 / 1.5),
        (math.inf, 1e-3, 2 / 1.5),
        (0.0, 7e-3, 2),  # 1.05e-2 is beyond the upper bound
        (1.0, 1.4e-6, 2),
        (1.0, 1.6e-6, 2 / 1.5),
    ],
)
def test_rule(kl, rate, expected):
    assert kl_adapted_factor(2.0, rate, kl, desired_kl=0.01, bounds=(1e-6, 1e-2)) == pytest.approx(expected)


def learning_rates(model, updates):
    rates = []
    train = model.train

    def recorded():
        train()
        rates.append((model.policy.optimizer.param_groups[0]["lr"], model.logger.name_to_value["train/approx_kl"]))

    model.train = recorded
    model.learn(updates * SMALL["n_steps"], log_interval=1000)
    return rates


@pytest.mark.parametrize("start", [1e-2, 1e-5])
def test_learning_rate_follows_the_logged_divergence(start):
    rates = learning_rates(make(learning_rate=start, desired_kl=0.002, learning_rate_bounds=(1e-5, 1e-2)), 6)
    assert rates[0][0] == start
    assert rates[-1][0] < start if start == 1e-2 else rates[-1][0] > 4 * start
    for (rate, kl), (following, _) in pairwise(rates):
        factor = 1 / 1.5 if kl > 0.004 else 1.5 if kl < 0.001 else 1
        assert following == pytest.approx(factor * rate)


def test_factor_multiplies_a_schedule():
    model = make(learning_rate=lambda progress: 1e-5 * progress, desired_kl=0.1)
    rates = [rate for rate, _ in learning_rates(model, 4)]
    # The schedule is at 3/4, 2/4, 1/4 and 0 when the four updates begin.
    np.testing.assert_allclose(rates, 1e-5 * np.array([0.75, 0.5 * 1.5, 0.25 * 1.5**2, 0]))


def test_the_bounds_hold_when_a_schedule_that_has_fallen_begins_again():
    model = make(learning_rate=lambda progress: 2e-3 * progress, desired_kl=0.5, learning_rate_bounds=(1e-6, 3e-3))
    first, second = ([rate for rate, _ in learning_rates(model, 12)] for _ in range(2))
    assert first[-1] == 0
    # The divergence is never half of what is desired, so that only the bound limits the rates: 1.5^11 would be 86.
    assert max(first + second) <= 3e-3 * (1 + 1e-9)
    assert model.learning_rate_factor < 20
    # What the bound took is not kept for later.
    model = make(learning_rate=lambda progress: 2e-3 * progress, desired_kl=0.5, learning_rate_bounds=(1e-6, 3e-3))
    model.set_logger(configure(None, []))
    model.learning_rate_factor = 80.0
    model._current_progress_remaining = 1.0
    model._adapt_learning_rate(100.0)
    assert model._learning_rate() == pytest.approx(2e-3)


def test_what_the_lower_bound_gives_is_not_kept():
    model = make(learning_rate=lambda progress: 1e-3 * progress, desired_kl=0.01, learning_rate_bounds=(1e-6, 1e-2))
    model.set_logger(configure(None, []))
    model.learning_rate_factor = 0.01
    model._current_progress_remaining = 2e-3
    assert model._learning_rate() == pytest.approx(1e-6)
    model._adapt_learning_rate(0.01)
    model._current_progress_remaining = 1.0
    assert model._learning_rate() == pytest.approx(1e-5)


def test_a_learning_rate_may_begin_outside_the_bounds():
    for rate in 0.05, 1e-8:
        model = make(learning_rate=rate, desired_kl=0.01)
        assert model._learning_rate() == rate
    model.set_logger(configure(None, []))
    model._adapt_learning_rate(0.0)
    assert model._learning_rate() == pytest.approx(1.5e-8)


def test_off_by_default():
    model = make(learning_rate=1e-2)
    assert [rate for rate, _ in learning_rates(model, 3)] == [1e-2] * 3
    assert "train/learning_rate_factor" not in model.logger.name_to_value


def test_factor_survives_a_checkpoint(tmp_path):
    model = make(learning_rate=1e-5, desired_kl=0.1).learn(96)
    model.save(tmp_path / "model")
    loaded = HybridGRPO.load(tmp_path / "model", env=limited()())
    assert loaded.learning_rate_factor == model.learning_rate_factor == pytest.approx(1.5**3)
    assert [rate for rate, _ in learning_rates(loaded, 1)] == [pytest.approx(1e-5 * 1.5**3)]
    assert PPO.load(tmp_path / "model", env=limited()()).learn(32).num_timesteps == 32


def test_factor_is_logged(tmp_path):
    model = make(learning_rate=1e-5, desired_kl=0.1)
    model.set_logger(configure(str(tmp_path), ["csv"]))
    model.learn(64)
    model.logger.close()
    with (tmp_path / "progress.csv").open(newline="") as file:
        factors = [row["train/learning_rate_factor"] for row in csv.DictReader(file)]
    assert factors == ["", "1.5"]


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"desired_kl": 0.0}, "desired_kl.*above 0"),
        ({"desired_kl": 0.1, "target_kl": 0.05}, "`target_kl`=0.05 would stop updates"),
        ({"desired_kl": 0.1, "learning_rate_bounds": (0, 1)}, r"learning_rate_bounds\[0\].*above 0"),
        ({"desired_kl": 0.1, "learning_rate_bounds": (1e-3, 1e-4)}, r"learning_rate_bounds\[1\].*above 0.001"),
        ({"ent_coef": "lin"}, "`ent_coef` must be a number, a schedule or 'lin_' and a number, not 'lin'"),
        ({"ent_coef": "exp_0.1"}, "not 'exp_0.1'"),
    ],
)
def test_refusals(arguments, message):
    with pytest.raises(InvalidArgumentError, match=message):
        make(**arguments)


@pytest.mark.parametrize(
    "value, at_one, at_half, at_zero",
    [(0.5, 0.5, 0.5, 0.5), ("lin_0.5", 0.5, 0.25, 0), (lambda progress: np.float32(1 - progress), 0, 0.5, 1)],
)
def test_schedules(value, at_one, at_half, at_zero):
    parsed = parse_schedule("ent_coef", value)
    assert [value_at(parsed, progress) for progress in (1.0, 0.5, 0.0)] == [at_one, at_half, at_zero]


@pytest.mark.parametrize("algorithm", [HybridGRPO, GRPO])
def test_entropy_coefficient_falls(algorithm, tmp_path):
    settings = {"branch_horizon": 1} if algorithm is HybridGRPO else {}
    kwargs = {name: value for name, value in SMALL.items() if name != "branch_horizon"}
    model = algorithm("MlpPolicy", limited()(), ent_coef="lin_0.1", **kwargs, **settings)
    logged = []
    train = model.train

    def recorded():
        train()
        values = model.logger.name_to_value
        logged.append((values["train/ent_coef"], values["train/loss"]))

    model.train = recorded
    model.learn(128, log_interval=1000)
    np.testing.assert_allclose([value for value, _ in logged], [0.075, 0.05, 0.025, 0])
    model.train = train
    model.save(tmp_path / "model")
    loaded = algorithm.load(tmp_path / "model", env=limited()())
    assert loaded.ent_coef(0.5) == pytest.approx(0.05)
    assert PPO.load(tmp_path / "model", env=limited()(), ent_coef=0.0).learn(32).num_timesteps == 32


def test_entropy_coefficient_acts():
    """A schedule does what setting PPO's number before each update does, to the spread of a Gaussian policy."""
    as_ppo = {"n_samples": 1, "reward_transform": "identity", "refit_critic": False, "max_actor_grad_norm": None}
    scheduled = make(ent_coef="lin_0.3", **as_ppo).learn(96)
    kwargs = {name: value for name, value in SMALL.items() if name != "branch_horizon"}
    by_hand, constant = (PPO("MlpPolicy", limited()(), ent_coef=0.2, **kwargs) for _ in range(2))
    train, following = by_hand.train, iter((0.1, 0.0, 0.0))

    def then_less():
        train()
        by_hand.ent_coef = next(following)

    by_hand.train = then_less
    weights = [model.policy.log_std.detach().numpy() for model in (scheduled, by_hand.learn(96), constant.learn(96))]
    np.testing.assert_allclose(weights[0], weights[1], atol=1e-5)
    assert not np.allclose(weights[0], weights[2], atol=1e-5)


def test_soft_values_follow_the_schedule(monkeypatch):
    model = HybridGRPO("MlpPolicy", Walk(), soft_values=True, ent_coef="lin_0.1", **SMALL)
    seen = []
    compute = model.rollout_buffer.compute_returns_and_advantage

    def recorded(**kwargs):
        seen.append(model.rollout_buffer.ent_coef)
        compute(**kwargs)

    monkeypatch.setattr(model.rollout_buffer, "compute_returns_and_advantage", recorded)
    model.learn(96)
    np.testing.assert_allclose(seen, [0.1, 0.1 * 2 / 3, 0.1 / 3])
    model.learn(32, reset_num_timesteps=False)
    assert seen[3] == 0 and model.num_timesteps == 128


def test_without_desired_kl_the_learning_rate_follows_its_schedule_alone(tmp_path):
    model = make(desired_kl=1e-9, learning_rate=1e-3).learn(96)
    assert model.learning_rate_factor < 1
    model.save(tmp_path / "model")
    loaded = HybridGRPO.load(tmp_path / "model", env=limited()(), desired_kl=None, learning_rate=1e-3).learn(32)
    assert loaded.policy.optimizer.param_groups[0]["lr"] == 1e-3
