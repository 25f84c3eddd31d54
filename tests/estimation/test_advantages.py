import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from sb3_hybrid_grpo.estimation.advantages import (
    ESTIMATORS,
    RELATIVE_ADVANTAGES,
    Advantages,
    averaged_advantages,
    exact_advantages,
    group_normalized_advantages,
    hybrid_advantages,
    importance_weighted_advantages,
    leave_one_out_advantages,
    leave_pair_out_advantages,
    relative_precision,
)
from sb3_hybrid_grpo.estimation.estimates import (
    branch_estimates,
    committed_estimates,
    gae_tails,
    generalized_advantages,
    value_boosted_estimates,
)

# Three macro-steps, one environment, two samples. Sample 1 of step 0 terminates, the committed action of step 1 too.
REWARDS = np.array([[[1.0, 2.0]], [[0.5, -1.0]], [[3.0, 0.0]]], dtype=np.float32)
VALUES = np.array([[0.5], [1.0], [2.0]], dtype=np.float32)
NEXT_VALUES = np.array([[[1.0, 4.0]], [[9.0, 2.0]], [[4.0, 1.0]]], dtype=np.float32)
TERMINATED = np.array([[[False, True]], [[True, False]], [[False, False]]])
DONES = np.array([[False], [True], [False]])
GAMMA = 0.5
# 1 + 0.5 - 0.5, 2 - 0.5 | 0.5 - 1, -1 + 1 - 1 | 3 + 2 - 2, 0 + 0.5 - 2
ESTIMATES = np.array([[[1.0, 1.5]], [[-0.5, -1.0]], [[3.0, -1.5]]], dtype=np.float32)


def test_value_boosted_estimates():
    np.testing.assert_array_equal(value_boosted_estimates(REWARDS, VALUES, NEXT_VALUES, TERMINATED, GAMMA), ESTIMATES)


def test_truncation_keeps_the_next_value():
    truncated = value_boosted_estimates(REWARDS, VALUES, NEXT_VALUES, np.zeros_like(TERMINATED), GAMMA)
    np.testing.assert_array_equal(truncated[0, 0], [1.0, 3.5])


def test_all_terminated_leaves_reward_minus_value():
    estimates = value_boosted_estimates(REWARDS, VALUES, NEXT_VALUES, np.ones_like(TERMINATED), GAMMA)
    np.testing.assert_array_equal(estimates, REWARDS - VALUES[..., None])


def test_zero_gamma_leaves_reward_minus_value():
    estimates = value_boosted_estimates(REWARDS, VALUES, NEXT_VALUES, TERMINATED, gamma=0.0)
    np.testing.assert_array_equal(estimates, REWARDS - VALUES[..., None])


# One state of value 2 with two branches of three steps; the second one terminates in its second step.
BRANCH = dict(
    rewards=np.array([[[[1.0, 2.0, 3.0], [4.0, 5.0, 99.0]]]]),
    values=np.array([[2.0]]),
    next_values=np.array([[[[8.0, 4.0, 16.0], [2.0, 99.0, 99.0]]]]),
    terminated=np.array([[[[False, False, False], [False, True, True]]]]),
    alive=np.array([[[[True, True, True], [True, True, False]]]]),
    gamma=0.5,
)


def test_branch_estimates_are_k_step_returns():
    # 1 + 2/2 + 3/4 + 16/8 - 2, 4 + 5/2 - 2
    np.testing.assert_allclose(branch_estimates(**BRANCH), [[[2.75, 4.5]]])


def test_branch_lambda_mixes_the_prefixes():
    # Returns of the prefixes: 5, 3, 4.75 and 5, 6.5, weighted 1/2, 1/4, 1/4
    expected = [[[5 / 2 + 3 / 4 + 4.75 / 4 - 2, 5 / 2 + 6.5 / 2 - 2]]]
    np.testing.assert_allclose(branch_estimates(**BRANCH, branch_lambda=0.5), expected)


def test_branch_lambda_zero_is_one_step():
    np.testing.assert_allclose(branch_estimates(**BRANCH, branch_lambda=0.0), [[[3.0, 3.0]]])


def test_truncated_branch_keeps_its_last_value():
    cut = {**BRANCH, "terminated": np.zeros((1, 1, 2, 3), dtype=bool)}
    np.testing.assert_allclose(branch_estimates(**cut)[0, 0, 1], 4 + 5 / 2 + 99 / 4 - 2)


def test_branches_of_one_step_are_value_boosted_estimates():
    def longer(array):
        return array[..., None]

    estimates = branch_estimates(
        longer(REWARDS), VALUES, longer(NEXT_VALUES), longer(TERMINATED), np.ones_like(longer(TERMINATED)), GAMMA, 0.3
    )
    np.testing.assert_array_equal(estimates, ESTIMATES)


def test_committed_estimates_follow_the_trajectory_to_the_end_of_the_episode():
    steps, dones = np.array([[1.0], [2.0], [4.0], [8.0]]), np.array([[False], [True], [False], [False]])
    np.testing.assert_allclose(committed_estimates(steps, dones, 0.5, 1.0, horizon=3), [[2.0], [2.0], [8.0], [8.0]])
    np.testing.assert_allclose(committed_estimates(steps, dones, 0.5, 0.5, horizon=2), [[1.5], [2.0], [6.0], [8.0]])
    np.testing.assert_array_equal(committed_estimates(steps, dones, 0.5, 1.0, horizon=1), steps)


@pytest.mark.parametrize("horizon", [1, 2, 3, 5, 9])
def test_committed_estimate_and_tail_sum_to_gae(horizon):
    rng = np.random.default_rng(0)
    steps, dones = rng.normal(size=(6, 2)), rng.random((6, 2)) < 0.3
    gae = generalized_advantages(steps, dones, 0.9, 0.8)
    parts = committed_estimates(steps, dones, 0.9, 0.8, horizon) + gae_tails(gae, dones, 0.9, 0.8, horizon)
    np.testing.assert_allclose(parts, gae, rtol=1e-6, atol=1e-9)


def relative(estimates):
    return RELATIVE_ADVANTAGES["iid"](estimates, *np.zeros((2, *estimates.shape)))


def test_averaged_advantages_are_the_papers_formula():
    """A_T = 1/N Σ [R̃ + γ V(s') - V(s)], written out."""
    np.testing.assert_array_equal(averaged_advantages(ESTIMATES), [[1.25], [-0.75], [0.75]])


def test_averaged_estimator_credits_the_committed_action_only():
    advantages, weights = ESTIMATORS["averaged"](REWARDS, ESTIMATES, relative(ESTIMATES), np.zeros((3, 1)), 1.0)
    np.testing.assert_array_equal(advantages, [[[1.25, 0.0]], [[-0.75, 0.0]], [[0.75, 0.0]]])
    np.testing.assert_array_equal(weights, [[[1.0, 0.0]]] * 3)


def test_leave_one_out_advantages():
    np.testing.assert_array_equal(leave_one_out_advantages(ESTIMATES), [[[-0.5, 0.5]], [[0.5, -0.5]], [[4.5, -4.5]]])
    three = np.array([[[1.0, 2.0, 6.0]]], dtype=np.float32)
    np.testing.assert_allclose(leave_one_out_advantages(three), [[[-3.0, -1.5, 4.5]]], rtol=1e-6)


def test_leave_one_out_of_a_single_sample_is_its_estimate():
    np.testing.assert_array_equal(leave_one_out_advantages(ESTIMATES[..., :1]), ESTIMATES[..., :1])


def test_generalized_advantages_and_tails():
    gae = generalized_advantages(ESTIMATES[..., 0], DONES, GAMMA, gae_lambda=0.8)
    # Backwards: 3 | -0.5, the episode ends | 1 + 0.4 · -0.5
    np.testing.assert_allclose(gae, [[0.8], [-0.5], [3.0]], rtol=1e-6)
    np.testing.assert_allclose(gae_tails(gae, DONES, GAMMA, 0.8), [[-0.2], [0.0], [0.0]], rtol=1e-6)


@pytest.mark.parametrize("gae_lambda", [0.0, 1.0])
def test_limits_of_lambda(gae_lambda):
    estimates, dones = ESTIMATES[..., 0], np.zeros_like(DONES)
    gae = generalized_advantages(estimates, dones, GAMMA, gae_lambda)
    expected = estimates if gae_lambda == 0 else [[1 + 0.5 * (-0.5 + 0.5 * 3)], [-0.5 + 0.5 * 3], [3.0]]
    np.testing.assert_allclose(gae, expected, rtol=1e-6)


def test_hybrid_advantages():
    tails = np.array([[-0.2], [0.0], [0.8]], dtype=np.float32)
    # Tails centred by their mean 0.2, times N · tail_coef = 2 · 0.5
    expected = [[[-0.5 - 0.4, 0.5]], [[0.5 - 0.2, -0.5]], [[4.5 + 0.6, -4.5]]]
    np.testing.assert_allclose(hybrid_advantages(relative(ESTIMATES), tails, tail_coef=0.5).advantages, expected, rtol=1e-5)


def test_hybrid_advantage_without_tail_is_per_action():
    tails = np.array([[-0.2], [0.0], [0.8]], dtype=np.float32)
    advantages, weights = hybrid_advantages(relative(ESTIMATES), tails, tail_coef=0.0)
    np.testing.assert_array_equal(advantages, leave_one_out_advantages(ESTIMATES))
    np.testing.assert_array_equal(weights, np.full((3, 1, 2), 0.5))


def test_hybrid_advantage_of_a_single_sample_is_gae():
    committed = ESTIMATES[..., :1]
    gae = generalized_advantages(committed[..., 0], DONES, GAMMA, 0.9)
    tails = gae_tails(gae, DONES, GAMMA, 0.9)
    np.testing.assert_array_equal(hybrid_advantages(relative(committed), tails).advantages[..., 0], gae)


def test_tail_of_an_enumerated_action_counts_once():
    log_probs = np.log(np.array([[[0.25, 0.75]]]))
    relative_advantages = RELATIVE_ADVANTAGES["enumerate"](np.array([[[2.0, 4.0]]]), log_probs, np.zeros((1, 1, 2)))
    np.testing.assert_allclose(relative_advantages.advantages, [[[-1.5, 0.5]]])
    np.testing.assert_allclose(relative_advantages.weights, [[[0.25, 0.75]]])
    both = Advantages(*(np.repeat(part, 2, axis=0) for part in relative_advantages))
    # Tails 1 and 3, centred to -1 and 1, over the weight 0.25 of the committed action
    advantages, _ = hybrid_advantages(both, np.array([[1.0], [3.0]]), tail_coef=0.5)
    np.testing.assert_allclose(advantages, [[[-1.5 - 2.0, 0.5]], [[-1.5 + 2.0, 0.5]]])


def test_leave_pair_out_advantages():
    # Pairs (1, 6) and (2, 4): each action minus the mean of the other pair
    estimates = np.array([[[1.0, 2.0, 6.0, 4.0]]])
    np.testing.assert_allclose(leave_pair_out_advantages(estimates), [[[1 - 3.0, 2 - 3.5, 6 - 3.0, 4 - 3.5]]])
    np.testing.assert_array_equal(leave_pair_out_advantages(estimates[..., :2]), estimates[..., :2])


def test_importance_weighted_advantages():
    estimates = np.array([[[2.0, 4.0, 1.0]]])
    importance = np.array([[[1.0, 2.0, 0.5]]])
    advantages, weights = importance_weighted_advantages(estimates, np.log(importance))
    # Baselines: (2·4 + 0.5·1)/2.5, (1·2 + 0.5·1)/1.5 and (1·2 + 2·4)/3
    np.testing.assert_allclose(advantages, [[[2 - 3.4, 4 - 5 / 3, 1 - 10 / 3]]])
    np.testing.assert_allclose(weights, [[[1 / 3, 2 / 3, 0.5 / 3]]])


def test_importance_of_any_size_is_borne():
    estimates = np.array([[[2.0, 4.0]]], dtype=np.float32)
    advantages, weights = importance_weighted_advantages(estimates, np.array([[[0.0, -20.0]]], dtype=np.float32))
    np.testing.assert_allclose(advantages, [[[-2.0, 2.0]]])
    advantages, weights = importance_weighted_advantages(estimates, np.array([[[0.0, -2000.0]]], dtype=np.float32))
    np.testing.assert_allclose(weights * advantages, [[[1.0, 0.0]]])


def test_equal_importance_leaves_one_out():
    advantages, weights = importance_weighted_advantages(ESTIMATES, np.zeros_like(ESTIMATES))
    np.testing.assert_allclose(advantages, leave_one_out_advantages(ESTIMATES), rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(weights, 1 / ESTIMATES.shape[-1])


def test_importance_weighted_advantages_match_a_loop():
    rng = np.random.default_rng(0)
    estimates, log_weights = rng.normal(size=(2, 4, 3, 5))
    advantages, _ = importance_weighted_advantages(estimates, log_weights)
    for t, e, i in np.ndindex(estimates.shape):
        others = [j for j in range(5) if j != i]
        omega = np.exp(log_weights[t, e, others])
        baseline = sum(omega * estimates[t, e, others]) / sum(omega)
        assert advantages[t, e, i] == pytest.approx(estimates[t, e, i] - baseline)


def test_relative_precision():
    branched = Advantages(np.array([[1.0, -1.0], [3.0, -3.0]]), np.full((2, 2), 0.5))
    assert relative_precision(branched, np.array([5.0, -5.0, 0.0])) == pytest.approx(2.5 / (50 / 3))
    assert relative_precision(branched, np.zeros(3)) == 1
    assert relative_precision(branched._replace(advantages=np.zeros((2, 2))), np.array([1.0, -1.0])) == 1


def test_group_normalized_advantages():
    rewards = np.array([[[1.0, 3.0]], [[2.0, 2.0]]], dtype=np.float32)
    np.testing.assert_allclose(group_normalized_advantages(rewards), [[[-1.0, 1.0]], [[0.0, 0.0]]], rtol=1e-6)


@pytest.mark.parametrize("n_samples", range(1, 9))
def test_groups_of_equal_rewards_give_no_signal(n_samples):
    rewards = np.full((1, 1, n_samples), np.float32(0.99999))
    np.testing.assert_array_equal(group_normalized_advantages(rewards), np.zeros((1, 1, n_samples)))


def naive(rewards, values, next_values, terminated, dones, gamma, gae_lambda, tail_coef):
    """All estimators again, one number at a time."""
    n_steps, n_envs, n_samples = rewards.shape
    results = {name: np.zeros(rewards.shape) for name in ("hybrid", "per_action", "averaged", "group_normalized")}
    estimates = np.zeros(rewards.shape)
    tails = np.zeros((n_steps, n_envs))
    for e in range(n_envs):
        following_gae = 0.0
        for t in reversed(range(n_steps)):
            for i in range(n_samples):
                bootstrap = 0.0 if terminated[t, e, i] else gamma * next_values[t, e, i]
                estimates[t, e, i] = rewards[t, e, i] + bootstrap - values[t, e]
            tails[t, e] = 0.0 if dones[t, e] else gamma * gae_lambda * following_gae
            following_gae = estimates[t, e, 0] + tails[t, e]
    mean_tail = sum(tails.flat) / tails.size if n_samples > 1 else 0.0
    for t in range(n_steps):
        for e in range(n_envs):
            results["averaged"][t, e, 0] = sum(estimates[t, e]) / n_samples
            mean_reward = sum(rewards[t, e]) / n_samples
            std_reward = (sum((r - mean_reward) ** 2 for r in rewards[t, e]) / n_samples) ** 0.5
            for i in range(n_samples):
                others = [estimates[t, e, j] for j in range(n_samples) if j != i]
                baseline = sum(others) / len(others) if others else 0.0
                results["per_action"][t, e, i] = estimates[t, e, i] - baseline
                tail = n_samples * tail_coef * (tails[t, e] - mean_tail) if i == 0 else 0.0
                results["hybrid"][t, e, i] = results["per_action"][t, e, i] + tail
                results["group_normalized"][t, e, i] = (rewards[t, e, i] - mean_reward) / (std_reward + 1e-8)
    return estimates, tails, results


finite = st.floats(-10, 10, width=32)


@settings(max_examples=60, deadline=None)
@given(data=st.data(), shape=st.tuples(st.integers(1, 5), st.integers(1, 3), st.integers(1, 4)), gamma=st.floats(0, 1))
def test_estimators_against_a_naive_loop(data, shape, gamma):
    def draw(shape, elements=finite, dtype=np.float64):
        return data.draw(hnp.arrays(dtype, shape, elements=elements))

    rewards, next_values, values = draw(shape), draw(shape), draw(shape[:2])
    terminated, truncated = draw(shape, st.booleans(), bool), draw(shape[:2], st.booleans(), bool)
    dones = terminated[..., 0] | truncated
    gae_lambda, tail_coef = data.draw(st.sampled_from([0.0, 0.5, 0.95, 1.0])), data.draw(st.sampled_from([0.0, 0.3, 1.0]))
    naive_estimates, naive_tails, expected = naive(
        rewards, values, next_values, terminated, dones, gamma, gae_lambda, tail_coef
    )

    estimates = value_boosted_estimates(rewards, values, next_values, terminated, gamma)
    np.testing.assert_allclose(estimates, naive_estimates, atol=1e-9)
    gae = generalized_advantages(estimates[..., 0], dones, gamma, gae_lambda)
    tails = gae_tails(gae, dones, gamma, gae_lambda)
    np.testing.assert_allclose(tails, naive_tails, atol=1e-6)
    np.testing.assert_allclose(gae, estimates[..., 0] + tails, atol=1e-6)
    for name, values_of_name in expected.items():
        advantages, weights = ESTIMATORS[name](rewards, estimates, relative(estimates), tails, tail_coef)
        np.testing.assert_allclose(advantages, values_of_name, atol=1e-6, rtol=1e-6, err_msg=name)
        np.testing.assert_allclose(weights.sum(axis=-1), np.ones(shape[:2]))


@pytest.mark.parametrize("name", ["hybrid", "per_action"])
def test_first_order_gradient_is_unbiased_by_the_baseline(name):
    """The leave-one-out mean must not change the expected gradient: exact check over all samples of a two-armed bandit."""
    probabilities = np.array([0.3, 0.7])
    rewards = np.array([1.0, 2.0])
    score = np.array([1.0 / 0.3, -1.0 / 0.7])  # derivative of log π by the first probability
    exact = (probabilities * score * rewards).sum()
    expected = 0.0
    for first in range(2):
        for second in range(2):
            sampled = np.array([[rewards[[first, second]]]])
            advantages, weights = ESTIMATORS[name](sampled, sampled, relative(sampled), np.zeros((1, 1)), 1.0)
            gradient = (weights * advantages * score[[first, second]]).sum()
            expected += probabilities[first] * probabilities[second] * gradient
    assert expected == pytest.approx(exact)


@pytest.mark.parametrize("n_samples", range(2, 9))
def test_equal_estimates_have_no_advantage(n_samples):
    """Not even what rounding leaves: normalised advantages would make a full update of it."""
    rng = np.random.default_rng(0)
    estimates = np.repeat(rng.normal(scale=100, size=(50, 2, 1)).astype(np.float32), n_samples, axis=-1)
    probs = rng.dirichlet(np.ones(n_samples), size=(50, 2)).astype(np.float32)
    log_weights = rng.normal(size=estimates.shape).astype(np.float32)
    assert not leave_one_out_advantages(estimates).any()
    assert not exact_advantages(estimates, probs).any()
    assert not importance_weighted_advantages(estimates, log_weights).advantages.any()
    if n_samples > 2 and n_samples % 2 == 0:
        assert not leave_pair_out_advantages(estimates).any()
