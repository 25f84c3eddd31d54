"""Committing the best of the N actions, and what stays honest about the critic and the gradient."""

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.vec_env import SubprocVecEnv, VecNormalize

from sb3_hybrid_grpo import BranchError, HybridGRPO, InvalidArgumentError
from sb3_hybrid_grpo.branching import RewardFunction
from sb3_hybrid_grpo.rollout.action_selection import choose_best, choose_softmax, select, to_front
from sb3_hybrid_grpo.rollout.branch_paths import reordered
from tests.envs import Walk, limited


def test_best():
    estimates = np.array([[1.0, 3.0, 2.0], [5.0, 5.0, 0.0]])
    np.testing.assert_array_equal(choose_best(estimates, 1.0, np.random.default_rng(0)), [1, 0])


@pytest.mark.parametrize("scale, expected", [(2.0, [1 / 6, 1 / 2, 1 / 3]), (np.inf, [1 / 3] * 3)])
def test_softmax(scale, expected):
    estimates = np.tile(2 * np.log([1.0, 3.0, 2.0]), (20_000, 1))
    chosen = choose_softmax(estimates, scale, np.random.default_rng(0))
    np.testing.assert_allclose(np.bincount(chosen) / len(chosen), expected, atol=0.015)


def test_the_chosen_sample_changes_places_with_the_first():
    order = to_front(np.array([2, 0]), 3)
    np.testing.assert_array_equal(order, [[2, 1, 0], [0, 1, 2]])
    samples = {"a": np.array([[10, 11, 12], [20, 21, 22]])}
    np.testing.assert_array_equal(reordered(samples, order)["a"], [[12, 11, 10], [20, 21, 22]])
    np.testing.assert_array_equal(reordered(reordered(samples, order), order)["a"], samples["a"])


@pytest.mark.parametrize("chosen", range(6))
def test_antithetic_pairs_stay_together(chosen):
    order = to_front(np.array([chosen]), 6, is_paired=True)[0]
    assert order[0] == chosen and sorted(order) == list(range(6))
    assert [abs(i - j) for i, j in zip(order[:3], order[3:], strict=True)] == [3, 3, 3]
    np.testing.assert_array_equal(order[order], range(6))


def test_actions_that_are_never_branched_are_not_chosen():
    estimates, sources = np.array([[1.0, 9.0, 9.0, 2.0]]), np.array([[0, 0, 0, 3]])
    rng = np.random.default_rng(0)
    for scale, expected in (np.inf, [0.5, 0, 0, 0.5]), (1e-9, [0, 0, 0, 1]):
        orders = np.concatenate([select("softmax", estimates, sources, "enumerate", scale, rng) for _ in range(2000)])
        np.testing.assert_allclose(np.bincount(orders[:, 0], minlength=4) / 2000, expected, atol=0.05)
    assert select("best", estimates, sources, "enumerate", 1.0, rng)[0, 0] == 3
    # Of samples that are equal each counts.
    orders = np.concatenate([select("softmax", estimates, sources, "iid", np.inf, rng) for _ in range(2000)])
    np.testing.assert_allclose(np.bincount(orders[:, 0], minlength=4) / 2000, [0.75, 0, 0, 0.25], atol=0.05)


class Bandit(gym.Env):
    """The reward of an action is known, and nothing else happens for ten steps."""

    def __init__(self, action_space):
        self.observation_space, self.action_space = spaces.Box(0, 10, (1,)), action_space

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.n_steps = 0
        return np.zeros(1, dtype=np.float32), {}

    def step(self, action):
        self.n_steps += 1
        noise = self.np_random.normal()
        return np.array([self.n_steps], dtype=np.float32), float(np.sum(action)) + noise, self.n_steps == 10, False, {}


def make_model(env, selection, **kwargs):
    settings = {"n_steps": 64, "n_samples": 4, "branch_horizon": 2, "reward_transform": "identity", "seed": 0}
    return HybridGRPO("MlpPolicy", env, action_selection=selection, **{**settings, "n_epochs": 1, "gamma": 0.0, **kwargs})


@pytest.mark.parametrize("space", [spaces.Box(-1, 1, (2,)), spaces.Discrete(6)], ids=["box", "discrete"])
@pytest.mark.parametrize("vec_env_cls", [None, SubprocVecEnv], ids=["dummy", "subproc"])
@pytest.mark.parametrize("horizon", [1, 2])
@pytest.mark.filterwarnings("ignore:.*use of fork:DeprecationWarning")
def test_the_best_action_is_committed(space, vec_env_cls, horizon):
    vec_env = make_vec_env(Bandit, 2, env_kwargs={"action_space": space}, vec_env_cls=vec_env_cls)
    try:
        model = make_model(vec_env, "best", branch_horizon=horizon)
        model.learn(128)
    finally:
        vec_env.close()
    buffer = model.rollout_buffer
    actions = buffer.actions.reshape(128, 4, -1)
    rewards = (np.clip(actions, -1, 1) if isinstance(space, spaces.Box) else actions).sum(axis=-1)
    assert (rewards[:, 0] >= rewards[:, 1:].max(axis=1) - 1e-6).all()
    assert (rewards[:, 0] > rewards[:, 1:].min(axis=1)).mean() > 0.8
    # All branches are evaluated, whichever sample ended up where.
    estimates = buffer.estimates.swapaxes(0, 1).reshape(128, 4) + buffer.values.reshape(128, 1)
    noise = estimates - rewards
    np.testing.assert_allclose(noise, noise[:, :1].repeat(4, axis=1), atol=1e-4)
    # The critic learns what the policy gets on average, not the best of four.
    np.testing.assert_allclose(buffer.returns.reshape(128), estimates.mean(axis=1), atol=1e-4)


@pytest.mark.parametrize("selection", ["softmax", "best"])
def test_pairs_of_a_rollout_are_reflections(selection):
    model = make_model(Bandit(spaces.Box(-1, 1, (1,))), selection, action_sampling="antithetic", learning_rate=0.0)
    model.learn(64)
    buffer = model.rollout_buffer
    actions = buffer.actions.reshape(64, 4)
    means = model.policy.get_distribution(th.as_tensor(buffer.observations)).mode().detach().numpy()
    np.testing.assert_allclose(actions[:, :2] + actions[:, 2:], 2 * means.reshape(64, 1).repeat(2, axis=1), atol=1e-4)


def test_the_best_action_counts_the_entropies_that_it_leads_to():
    settings = {
        "branch_horizon": 4,
        "n_samples": 3,
        "gamma": 0.9,
        "ent_coef": 0.5,
        "learning_rate": 0.0,
        "refit_critic": False,
    }
    model = make_model("Acrobot-v1", "best", soft_values=True, policy_kwargs={"ortho_init": False}, **settings)
    with th.no_grad():
        for parameter in model.policy.action_net.parameters():
            parameter *= 20
    model.learn(64)
    estimates = model.rollout_buffer.estimates
    assert model.rollout_buffer.entropies.std() > 0.01
    assert (estimates[..., 0] >= estimates.max(axis=-1) - 1e-4).all()


def test_softmax_prefers_good_actions_from_the_second_rollout_on():
    model = make_model(Bandit(spaces.Box(-1, 1, (2,))), "softmax", learning_rate=0.0, n_steps=512)
    ranks = []
    for _ in range(2):
        model.learn(512, reset_num_timesteps=False)
        rewards = np.clip(model.rollout_buffer.actions.reshape(512, 4, 2), -1, 1).sum(axis=-1)
        ranks.append((rewards[:, :1] > rewards[:, 1:]).sum(axis=1).mean())
    assert ranks[0] == pytest.approx(1.5, abs=0.15)
    assert 1.8 < ranks[1] < 2.9


@pytest.mark.parametrize("selection", ["softmax", "best"])
def test_committed_actions_lead_where_their_branches_said(selection):
    """Across resets and with normalised rewards: the branch of the committed action is kept beside the step itself."""
    vec_env = VecNormalize(make_vec_env(limited(max_episode_steps=7, action_space=spaces.Discrete(3)), 2, seed=0))
    model = make_model(vec_env, selection, gamma=0.9, action_sampling="iid", branch_horizon=1, refit_critic=False)
    model.learn(128)
    buffer = model.rollout_buffer
    same = (buffer.actions == buffer.actions[:, :1]).all(axis=-1).reshape(2, 64, 4).swapaxes(0, 1)[..., 1:]
    estimates = buffer.estimates
    duplicates = np.broadcast_to(estimates[..., :1], estimates[..., 1:].shape)[same]
    np.testing.assert_allclose(estimates[..., 1:][same], duplicates, rtol=1e-5, atol=1e-5)
    assert same.mean() > 0.2
    one_step = buffer.rewards[..., 0] + 0.9 * buffer.next_values[..., 0] * ~buffer.terminated[..., 0]
    np.testing.assert_allclose(estimates[..., 0] + buffer.values.reshape(2, 64).T, one_step, rtol=1e-4, atol=1e-4)


def test_it_learns():
    settings = {"n_steps": 256, "learning_rate": 2e-3, "n_samples": 2, "seed": 0}
    model = HybridGRPO("MlpPolicy", "CartPole-v1", action_selection="best", **settings)
    model.learn(2560)
    assert np.mean([info["r"] for info in model.ep_info_buffer]) > 60


class Fragile(Walk):
    def step(self, action):
        if action[0] > 0.99:
            raise ArithmeticError("broken")
        return super().step(action)


def test_an_error_in_a_branch_leaves_the_environment():
    model = HybridGRPO("MlpPolicy", Fragile(), n_steps=64, action_selection="best", brancher="snapshot", seed=0)
    with pytest.raises(BranchError, match="broken"):
        model.learn(1024)


class OwnForward(ActorCriticPolicy):
    def forward(self, obs, deterministic=False):
        return super().forward(obs, deterministic)


@pytest.mark.parametrize(
    "kwargs, message",
    [
        ({"action_selection": "worst"}, "Unknown action_selection 'worst'"),
        ({"n_samples": 1}, "nothing to choose from"),
        ({"advantage": "averaged"}, "as if it had been sampled"),
        ({"branch_fraction": 0.5}, "not all states are branched"),
        ({"policy": OwnForward, "branch_horizon": 1}, "OwnForward samples"),
    ],
)
def test_refusals(kwargs, message):
    with pytest.raises(InvalidArgumentError, match=message):
        HybridGRPO(**{"policy": "MlpPolicy", "env": Walk(), "action_selection": "best", **kwargs})


def test_a_reward_function_knows_too_late():
    with pytest.raises(InvalidArgumentError, match="after it"):
        HybridGRPO("MlpPolicy", Walk(), action_selection="best", brancher=RewardFunction(lambda obs, actions: obs[:, 0]))
