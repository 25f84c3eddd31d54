import numpy as np
import pytest
import torch as th
from torch.nn import functional as F

from sb3_hybrid_grpo.estimation.losses import (
    approximate_kl,
    clip_gradients,
    clipped_policy_loss,
    entropy_loss,
    fuse,
    normalize,
    value_loss,
    weighted_mean,
)

WEIGHTS = np.array([[0.5, 0.5], [0.5, 0.5]])


def test_weighted_mean():
    assert weighted_mean(np.array([[1.0, 3.0], [0.0, 6.0]]), WEIGHTS) == 2.5
    assert weighted_mean(np.array([[1.0, 3.0], [0.0, 6.0]]), np.eye(2)) == 3.5


def test_clipped_policy_loss_is_the_mean_of_n_clipped_terms():
    ratio = np.array([[1.5, 0.5], [1.5, 0.5]])
    advantages = np.array([[1.0, 1.0], [-1.0, -1.0]])
    # min(1.5, 1.2), min(0.5, 0.8) | min(-1.5, -1.2), min(-0.5, -0.8)
    loss = clipped_policy_loss(ratio, advantages, WEIGHTS, clip_range=0.2)
    assert loss.value == pytest.approx(-np.mean([1.2, 0.5, -1.5, -0.8]))
    np.testing.assert_allclose(loss.gradient, [[0, -0.125], [0.375, 0]])


def test_at_the_old_policy_the_objective_is_the_mean_advantage():
    advantages = np.array([[1.0, 2.0], [-4.0, 0.5]])
    loss = clipped_policy_loss(np.ones((2, 2)), advantages, WEIGHTS, 0.2)
    assert loss.value == pytest.approx(0.125)
    np.testing.assert_allclose(loss.gradient, -advantages / 4)


def batch(rng, n_states=16, n_samples=4):
    """Advantages, weights, and log-probabilities before and after, [B, N], as in training."""
    advantages, old_log_prob, change = rng.normal(size=(3, n_states, n_samples)).astype(np.float32)
    return advantages, rng.dirichlet(np.ones(n_samples), n_states).astype(np.float32), old_log_prob, 0.3 * change


def test_gradient_of_the_policy_loss_is_that_of_autograd():
    advantages, weights, old_log_prob, change = batch(np.random.default_rng(0))
    log_prob = th.tensor(old_log_prob + change, requires_grad=True)
    ratio = th.exp(log_prob - th.as_tensor(old_log_prob))
    terms = th.min(ratio * th.as_tensor(advantages), ratio.clamp(0.8, 1.2) * th.as_tensor(advantages))
    expected = -(terms * th.as_tensor(weights)).sum(dim=1).mean()
    expected.backward()
    loss = clipped_policy_loss(ratio.detach().numpy(), advantages, weights, 0.2)
    assert loss.of == "log_prob" and loss.gradient.dtype == np.float32
    assert loss.value == pytest.approx(expected.item(), rel=1e-5)
    np.testing.assert_allclose(loss.gradient, log_prob.grad, rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize("clip_range", [None, 0.5])
def test_gradient_of_the_value_loss_is_that_of_autograd(clip_range):
    old_values, returns, change = np.random.default_rng(1).normal(size=(3, 16)).astype(np.float32)
    values = th.tensor(old_values + change, requires_grad=True)
    old = th.as_tensor(old_values)
    predicted = values if clip_range is None else old + th.clamp(values - old, -clip_range, clip_range)
    expected = F.mse_loss(th.as_tensor(returns), predicted)
    expected.backward()
    loss = value_loss(values.detach().numpy(), old_values, returns, clip_range).scaled(0.25)
    assert loss.of == "values" and loss.gradient.dtype == np.float32
    assert loss.value == pytest.approx(0.25 * expected.item(), rel=1e-5)
    np.testing.assert_allclose(loss.gradient, 0.25 * values.grad, rtol=1e-5, atol=1e-8)


def test_entropy_loss():
    log_prob, entropy = np.array([[-1.0, -3.0], [0.0, -2.0]]), np.array([1.0, 2.0])
    loss = entropy_loss(entropy, log_prob, WEIGHTS)
    assert loss.of == "entropy" and loss.value == -1.5
    np.testing.assert_array_equal(loss.gradient, [-0.5, -0.5])


def test_entropy_without_closed_form_is_estimated_from_the_samples():
    log_prob = np.array([[-1.0, -3.0], [0.0, -2.0]])
    loss = entropy_loss(None, log_prob, WEIGHTS)
    assert loss.of == "log_prob" and loss.value == -1.5
    np.testing.assert_array_equal(loss.gradient, np.full((2, 2), 0.25))


def test_normalize_gives_mean_zero_and_unit_weighted_variance():
    normalized = normalize(np.array([[1.0, 2.0], [-4.0, 0.5]]), WEIGHTS)
    assert weighted_mean(normalized, WEIGHTS) == pytest.approx(0.0, abs=1e-6)
    assert (WEIGHTS * normalized**2).sum() == pytest.approx(1.0, rel=1e-5)  # B - 1 = 1


def test_normalize_measures_spread_by_squared_weights():
    advantages, weights = np.array([[12.0, -1.0], [0.0, -2.0]]), np.array([[0.25, 0.75], [0.5, 0.5]])
    # mean (3 - 0.75 - 1) / 2 = 0.625; squared weights 1/16 and 9/16 of 10/16
    variance = 0.1 * 11.375**2 + 0.9 * 1.625**2 + 0.5 * 0.625**2 + 0.5 * 2.625**2
    np.testing.assert_allclose(normalize(advantages, weights), (advantages - 0.625) / variance**0.5)


def test_normalize_of_single_samples_is_ppos():
    advantages = np.array([[1.0], [2.0], [-4.0]])
    expected = (advantages - advantages.mean()) / (advantages.std(ddof=1) + 1e-8)
    np.testing.assert_allclose(normalize(advantages, np.ones((3, 1))), expected)


def test_normalize_ignores_samples_without_weight():
    committed = np.array([[1.0, 0.0], [1.0, 0.0], [1.0, 0.0]])
    advantages = np.array([[1.0, 50.0], [2.0, -70.0], [-4.0, 3.0]])
    expected = normalize(advantages[:, :1], np.ones((3, 1)))
    np.testing.assert_allclose(normalize(advantages, committed)[:, :1], expected)


def test_approximate_kl():
    log_ratio = np.array([[0.1, -0.2], [0.0, 0.3]])
    assert approximate_kl(log_ratio, WEIGHTS) == pytest.approx(np.mean(np.exp(log_ratio) - 1 - log_ratio))
    assert approximate_kl(np.zeros((2, 2)), WEIGHTS) == 0.0


@pytest.mark.parametrize("max_norm", [0.5, 100.0])
def test_gradients_are_clipped_as_by_pytorch(max_norm):
    groups = [[th.nn.Parameter(th.ones(3, 4)), th.nn.Parameter(th.ones(5)), th.nn.Parameter(th.ones(()))] for _ in range(2)]
    for group in groups:
        (group[0] ** 2).sum().add(group[1].cumsum(0).sum()).backward()
    clip_gradients(groups[0], max_norm)
    th.nn.utils.clip_grad_norm_(groups[1], max_norm)
    for ours, expected in zip(groups[0][:2], groups[1][:2], strict=True):
        th.testing.assert_close(ours.grad, expected.grad)
    assert groups[0][2].grad is None
    assert clip_gradients(groups[0][2:], max_norm) == 0.0


def test_fused_adam_is_adam():
    parameters = [[th.nn.Parameter(th.linspace(-1, 1, 20)), th.nn.Parameter(th.ones(3, 4))] for _ in range(2)]
    optimizers = [th.optim.Adam(group, lr=1e-2, eps=1e-5) for group in parameters]
    for step in range(20):
        if step == 5:  # may be switched on in the middle, as after a checkpoint was loaded
            fuse(optimizers[0])
        for group, optimizer in zip(parameters, optimizers, strict=True):
            optimizer.zero_grad()
            sum((parameter**3 * (1 + step)).sum() for parameter in group).backward()
            optimizer.step()
    assert optimizers[0].param_groups[0]["fused"]
    for fused, plain in zip(*parameters, strict=True):
        th.testing.assert_close(fused, plain)


def test_other_optimizers_are_left_alone():
    optimizer = th.optim.SGD([th.nn.Parameter(th.ones(2))], lr=0.1)
    before = dict(optimizer.param_groups[0])
    fuse(optimizer)
    assert optimizer.param_groups[0] == before
