import pickle

import numpy as np
import pytest

from sb3_hybrid_grpo import HybridGRPO, InvalidArgumentError, RewardTransformError
from sb3_hybrid_grpo.estimation.reward_transforms import (
    REWARD_TRANSFORMS,
    RewardTransform,
    ScaledTanh,
    make_reward_transform,
)

REWARDS = np.array([[[-1.0, 0.5]], [[2.0, 100.0]]], dtype=np.float32)
DONES = np.array([[False], [False]])


def test_identity():
    np.testing.assert_array_equal(make_reward_transform("identity")(REWARDS), REWARDS)


def test_tanh_is_the_papers():
    expected = [[[-0.7615942, 0.4621172]], [[0.9640276, 1.0]]]
    np.testing.assert_allclose(make_reward_transform("tanh")(REWARDS), expected, rtol=1e-6)


def test_zscore_uses_all_samples_of_the_rollout():
    transform = make_reward_transform("zscore")
    transform.fit(REWARDS, DONES, gamma=0.9)
    # mean 25.375, population std sqrt(7429.6875 / 4)
    np.testing.assert_allclose(transform(REWARDS), (REWARDS - 25.375) / np.sqrt(7429.6875 / 4), rtol=1e-5)


def test_zscore_of_constant_rewards_is_zero():
    transform = make_reward_transform("zscore")
    transform.fit(np.ones((4, 1, 2), dtype=np.float32), np.zeros((4, 1)), gamma=0.9)
    np.testing.assert_array_equal(transform(np.ones(3, dtype=np.float32)), np.zeros(3))


def test_scaled_tanh_scale_is_ten_stds_of_the_discounted_committed_return():
    transform = make_reward_transform("scaled_tanh")
    transform.fit(REWARDS, DONES, gamma=0.5)
    # Returns -1 and -0.5 + 2 = 1.5: std 1.25, scale 12.5
    np.testing.assert_allclose(transform(REWARDS), 12.5 * np.tanh(REWARDS / 12.5), rtol=1e-6)
    assert transform(REWARDS)[1, 0, 1] == pytest.approx(12.5)


def test_scaled_tanh_return_restarts_with_the_episode_and_runs_over_rollouts():
    transform = make_reward_transform("scaled_tanh", {"scale": 1.0})
    rewards = np.array([[[1.0]], [[1.0]], [[1.0]]], dtype=np.float32)
    transform.fit(rewards, np.array([[False], [True], [False]]), gamma=0.5)  # returns 1, 1.5 | 1
    transform.fit(rewards[:1], np.array([[False]]), gamma=0.5)  # goes on with 0.5 + 1
    bound = np.std([1.0, 1.5, 1.0, 1.5])
    np.testing.assert_allclose(transform(np.array([1e3])), bound, rtol=1e-6)


def test_scaled_tanh_is_the_identity_while_the_return_is_constant():
    transform = make_reward_transform("scaled_tanh")
    np.testing.assert_array_equal(transform(REWARDS), REWARDS)
    transform.fit(np.zeros((5, 1, 2), dtype=np.float32), np.zeros((5, 1)), gamma=0.9)
    np.testing.assert_array_equal(transform(REWARDS), REWARDS)


def test_scaled_tanh_does_not_depend_on_the_unit_of_reward():
    small, large = make_reward_transform("scaled_tanh"), make_reward_transform("scaled_tanh")
    small.fit(REWARDS, DONES, 0.9)
    large.fit(100 * REWARDS, DONES, 0.9)
    np.testing.assert_allclose(large(100 * REWARDS), 100 * small(REWARDS), rtol=1e-5)


def test_normalized_rewards_are_in_stds_of_the_discounted_committed_return():
    transform = make_reward_transform("normalized", {"scale": 4.0})
    np.testing.assert_array_equal(transform(REWARDS), REWARDS)
    transform.fit(REWARDS, DONES, gamma=0.5)
    # Returns -1 and -0.5 + 2 = 1.5: std 1.25
    np.testing.assert_allclose(transform(REWARDS), 4 * np.tanh(REWARDS / 5), rtol=1e-6)
    scaled = make_reward_transform("scaled_tanh", {"scale": 4.0})
    scaled.fit(REWARDS, DONES, gamma=0.5)
    np.testing.assert_allclose(1.25 * transform(REWARDS), scaled(REWARDS), rtol=1e-6)


def test_normalized_rewards_have_no_unit():
    small, large = make_reward_transform("normalized"), make_reward_transform("normalized")
    small.fit(REWARDS, DONES, 0.9)
    large.fit(100 * REWARDS, DONES, 0.9)
    np.testing.assert_allclose(large(100 * REWARDS), small(REWARDS), rtol=1e-5)


@pytest.mark.parametrize("name", ["scaled_tanh", "normalized"])
def test_statistics_survive_pickling(name):
    transform = make_reward_transform(name)
    transform.fit(REWARDS, DONES, gamma=0.5)
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(transform))(REWARDS), transform(REWARDS))


def test_callable_and_instance():
    np.testing.assert_array_equal(make_reward_transform(lambda r: 2 * r)(REWARDS), 2 * REWARDS)
    instance = make_reward_transform("tanh")
    assert make_reward_transform(instance) is instance


def test_own_class_by_name(monkeypatch):
    class Halve(RewardTransform):
        def transform(self, rewards):
            return rewards / 2

    monkeypatch.setitem(REWARD_TRANSFORMS, "halve", Halve)
    np.testing.assert_array_equal(make_reward_transform("halve")(REWARDS), REWARDS / 2)


def test_unknown_name_lists_the_valid_ones():
    with pytest.raises(InvalidArgumentError, match="'identity', 'tanh', 'scaled_tanh', 'normalized', 'zscore'"):
        make_reward_transform("sigmoid")


@pytest.mark.parametrize(
    "name, kwargs, message",
    [
        ("tanh", {"scale": 2}, "do not fit reward_transform='tanh'"),
        ("scaled_tanh", {"scale": -1.0}, "`scale` must be positive"),
        ("normalized", {"scale": 0.0}, "`scale` must be positive"),
    ],
)
def test_bad_keyword(name, kwargs, message):
    with pytest.raises(InvalidArgumentError, match=message):
        make_reward_transform(name, kwargs)


def test_wrong_shape_is_found_at_construction():
    with pytest.raises(RewardTransformError, match="returned shape"):
        make_reward_transform(lambda rewards: rewards.mean())


def test_nan_is_named_with_the_reward_that_caused_it():
    def logarithm(rewards):
        with np.errstate(all="ignore"):
            return np.log(rewards + 1)

    transform = make_reward_transform(logarithm)
    with pytest.raises(RewardTransformError, match=r"logarithm returned NaN or infinity.*reward -1\.0"):
        transform(REWARDS)


def test_returns_of_episodes_that_were_given_up_do_not_go_on():
    transform = ScaledTanh()
    transform.fit(np.ones((3, 2, 1)), np.zeros((3, 2)), 1.0)
    np.testing.assert_array_equal(transform.returns, [3, 3])
    transform.begin(np.array([1.0, 0.0]))
    np.testing.assert_array_equal(transform.returns, [0, 3])
    transform.begin(np.zeros(5))
    np.testing.assert_array_equal(transform.returns, [0, 3])


def test_a_second_run_begins_without_the_returns_of_the_first():
    model = HybridGRPO("MlpPolicy", "Pendulum-v1", n_steps=64, branch_horizon=1, seed=0, device="cpu")
    seen = []

    class Kept(ScaledTanh):
        def fit(self, rewards, dones, gamma):
            seen.append(self.returns.copy())
            super().fit(rewards, dones, gamma)

    model.rollout_buffer.reward_transform = Kept()
    model.learn(64).learn(64)
    assert [returns.tolist() for returns in seen[1:]] == [[0.0]]
