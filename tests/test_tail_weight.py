"""The λ-tail counts as much as its signal stands out from its noise."""

import numpy as np
import pytest
import torch as th
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.logger import configure

from sb3_hybrid_grpo import HybridGRPO, InvalidArgumentError
from sb3_hybrid_grpo.common.advantages import shrinkage
from sb3_hybrid_grpo.common.tail_weight import shrunk_tail_coef
from tests.envs import limited

SMALL = {"n_steps": 64, "batch_size": 64, "n_epochs": 1, "seed": 0, "device": "cpu", "n_samples": 3}


@pytest.mark.parametrize(
    ("gradients", "expected"),
    [
        ([[1.0, 0.0], [3.0, 0.0]], 0.75),  # g = 2, V = 2 / 2
        ([[1.0, 1.0], [1.0, -1.0], [1.0, 0.0]], 1 - (2 / 6) / 1),
        ([[2.0, 1.0]] * 4, 1.0),
        ([[1.0, 0.0], [-0.5, 0.0]], 0.0),  # V = 1.125 / 2 > 1 / 16
        ([[1.0, 0.0], [-1.0, 0.0]], 1.0),  # without any signal the weight does not matter
        ([[5.0, 3.0]], 1.0),
    ],
)
def test_shrinkage(gradients, expected):
    assert shrinkage(np.array(gradients)) == pytest.approx(expected)


def test_shrinkage_is_the_best_multiple_on_average():
    """Its squared error is smaller than that of the mean, and nearly that of the best fixed multiple."""
    rng = np.random.default_rng(0)
    truth = rng.normal(size=50)
    samples = truth + rng.normal(size=(2000, 8, 50)) * 3
    means = samples.mean(axis=1)
    shrunk = np.array([shrinkage(parts) for parts in samples])[:, None] * means
    best = (means @ truth).mean() / (means**2).sum(axis=1).mean() * means
    errors = [((estimate - truth) ** 2).sum(axis=1).mean() for estimate in (means, shrunk, best)]
    assert errors[1] < 0.75 * errors[0]
    assert errors[1] < 1.1 * errors[2]


def collect(n_envs=2, **kwargs):
    model = HybridGRPO("MlpPolicy", make_vec_env(limited(), n_envs, seed=0), **{**SMALL, **kwargs})
    _, callback = model._setup_learn(64 * n_envs, None)
    model.set_logger(configure(format_strings=[]))
    model.collect_rollouts(model.env, callback, model.rollout_buffer, model.n_steps)
    return model


@pytest.mark.parametrize("branch_fraction", [1.0, 0.5])
def test_coefficient_is_that_of_a_naive_loop(branch_fraction):
    model = collect(branch_fraction=branch_fraction)
    buffer, policy = model.rollout_buffer, model.policy
    branched = buffer.branched
    mean_tail = np.mean([tail for tail, is_branched in zip(buffer.tails.flat, branched.flat, strict=True) if is_branched])
    gradients = []
    for part in range(8):
        policy.zero_grad()
        for t in range(8 * part, 8 * part + 8):
            for e in range(2):
                if branched[t, e]:
                    distribution = policy.get_distribution(th.as_tensor(buffer.observations[t, e])[None])
                    log_prob = distribution.log_prob(th.as_tensor(buffer.actions[t, e, :1]))
                    (log_prob.sum() * float(buffer.tails[t, e] - mean_tail) / 16).backward()
        gradients.append(np.concatenate([p.grad.numpy().ravel() for p in policy.parameters() if p.grad is not None]))
    expected = shrinkage(np.array(gradients))
    assert shrunk_tail_coef(policy, buffer) == pytest.approx(expected, rel=1e-3, abs=1e-5)
    assert model.logger.name_to_value["rollout/tail_coef"] == pytest.approx(expected, rel=1e-3, abs=1e-5)


def test_measured_weight_is_what_counts():
    model = collect()
    buffer = model.rollout_buffer
    tail_coef = model.logger.name_to_value["rollout/tail_coef"]
    assert 0 <= tail_coef < 1
    measured = buffer.advantages.copy()
    buffer.weigh_tails(1.0)
    np.testing.assert_allclose(buffer.advantages[..., 1:], measured[..., 1:])
    difference = 3 * (1 - tail_coef) * buffer.centred_tails
    np.testing.assert_allclose(buffer.advantages[..., 0] - measured[..., 0], difference, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kwargs", [{"tail_coef": 0.5}, {"advantage": "per_action"}, {"n_samples": 1}])
def test_nothing_is_measured_where_the_weight_is_given(kwargs):
    assert "rollout/tail_coef" not in collect(**kwargs).logger.name_to_value


def test_short_rollouts_and_few_branches():
    for kwargs in ({"n_steps": 3, "batch_size": 6}, {"branch_fraction": 1e-9}):
        assert np.isfinite(collect(**kwargs).rollout_buffer.advantages).all()


def test_unknown_weight_is_refused():
    with pytest.raises(InvalidArgumentError, match="Unknown tail_coef 'full': choose one of 'auto'"):
        HybridGRPO("MlpPolicy", limited()(), tail_coef="full", **SMALL)
