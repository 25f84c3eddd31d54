import numpy as np
import pytest
import torch as th

from sb3_hybrid_grpo.common.losses import approximate_kl, clip_gradients, clipped_policy_loss, fuse, normalize, weighted_mean

WEIGHTS = th.tensor([[0.5, 0.5], [0.5, 0.5]])


def test_weighted_mean():
    assert weighted_mean(th.tensor([[1.0, 3.0], [0.0, 6.0]]), WEIGHTS).item() == 2.5
    assert weighted_mean(th.tensor([[1.0, 3.0], [0.0, 6.0]]), th.tensor([[1.0, 0.0], [0.0, 1.0]])).item() == 3.5


def test_clipped_policy_loss_is_the_mean_of_n_clipped_terms():
    ratio = th.tensor([[1.5, 0.5], [1.5, 0.5]])
    advantages = th.tensor([[1.0, 1.0], [-1.0, -1.0]])
    # min(1.5, 1.2), min(0.5, 0.8) | min(-1.5, -1.2), min(-0.5, -0.8)
    expected = -np.mean([1.2, 0.5, -1.5, -0.8])
    assert clipped_policy_loss(ratio, advantages, WEIGHTS, clip_range=0.2).item() == pytest.approx(expected, rel=1e-5)


def test_at_the_old_policy_the_objective_is_the_mean_advantage():
    advantages = th.tensor([[1.0, 2.0], [-4.0, 0.5]])
    assert clipped_policy_loss(th.ones(2, 2), advantages, WEIGHTS, 0.2).item() == pytest.approx(0.125)


def test_normalize_gives_mean_zero_and_unit_weighted_variance():
    normalized = normalize(th.tensor([[1.0, 2.0], [-4.0, 0.5]]), WEIGHTS)
    assert weighted_mean(normalized, WEIGHTS).item() == pytest.approx(0.0, abs=1e-6)
    assert (WEIGHTS * normalized**2).sum().item() == pytest.approx(1.0, rel=1e-5)  # B - 1 = 1


def test_normalize_measures_spread_by_squared_weights():
    advantages, weights = th.tensor([[12.0, -1.0], [0.0, -2.0]]), th.tensor([[0.25, 0.75], [0.5, 0.5]])
    # mean (3 - 0.75 - 1) / 2 = 0.625; squared weights 1/16 and 9/16 of 10/16
    variance = 0.1 * 11.375**2 + 0.9 * 1.625**2 + 0.5 * 0.625**2 + 0.5 * 2.625**2
    th.testing.assert_close(normalize(advantages, weights), (advantages - 0.625) / variance**0.5)


def test_normalize_of_single_samples_is_ppos():
    advantages = th.tensor([[1.0], [2.0], [-4.0]])
    expected = (advantages - advantages.mean()) / (advantages.std() + 1e-8)
    th.testing.assert_close(normalize(advantages, th.ones(3, 1)), expected)


def test_normalize_ignores_samples_without_weight():
    committed = th.tensor([[1.0, 0.0], [1.0, 0.0], [1.0, 0.0]])
    advantages = th.tensor([[1.0, 50.0], [2.0, -70.0], [-4.0, 3.0]])
    expected = normalize(advantages[:, :1], th.ones(3, 1))
    th.testing.assert_close(normalize(advantages, committed)[:, :1], expected)


def test_approximate_kl():
    log_ratio = th.tensor([[0.1, -0.2], [0.0, 0.3]])
    expected = np.mean(np.exp(log_ratio.numpy()) - 1 - log_ratio.numpy())
    assert approximate_kl(log_ratio, WEIGHTS).item() == pytest.approx(expected, rel=1e-5)
    assert approximate_kl(th.zeros(2, 2), WEIGHTS).item() == 0.0


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
