"""One natural-gradient step of the policy per rollout."""

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from sb3_contrib import TRPO
from sb3_contrib.common.wrappers import ActionMasker
from stable_baselines3 import PPO
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.policies import ActorCriticPolicy
from torch import nn
from torch.nn.utils import parameters_to_vector

from sb3_hybrid_grpo import GRPO, DivergedPolicyError, HybridGRPO, InvalidArgumentError
from sb3_hybrid_grpo.estimation import AutogradScores, approximate_kl, fisher_product
from sb3_hybrid_grpo.hybrid_grpo.natural_step import DAMPING, Spread, natural_step, search_line, spread_step
from sb3_hybrid_grpo.policies.evaluators import Evaluator, MlpEvaluator
from tests.envs import limited

SMALL = {"n_steps": 64, "batch_size": 32, "n_epochs": 2, "seed": 0, "device": "cpu", "trust_region": 0.02}
B, N = 7, 3


def evaluation(action_space, kind):
    th.manual_seed(0)
    obs_space = spaces.Box(-1, 1, (3,))
    policy = ActorCriticPolicy(obs_space, action_space, lambda _: 1e-3, net_arch=[5, 4], ortho_init=False)
    obs = th.randn(B, 3)
    with th.no_grad():
        actions = th.stack([policy.get_distribution(obs).sample() for _ in range(N)], dim=1).reshape(B, N, -1).float()
    evaluator = kind(policy)
    evaluator.evaluate_actions(obs, actions)
    return policy, obs, actions, evaluator.scores()


def jacobian(policy, obs, actions, parameters):
    """One row of partial derivatives for each action, by autograd."""
    if isinstance(policy.action_space, spaces.Discrete):
        actions = actions.squeeze(-1).long()
    rows = [
        th.autograd.grad(policy.get_distribution(obs).log_prob(actions[:, i])[b], parameters)
        for b in range(B)
        for i in range(N)
    ]
    return th.stack([parameters_to_vector(row) for row in rows]).reshape(B, N, -1)


@pytest.mark.parametrize("kind", [Evaluator, MlpEvaluator])
@pytest.mark.parametrize("action_space", [spaces.Box(-1, 1, (2,)), spaces.Discrete(3)], ids=str)
def test_scores_are_the_jacobian(action_space, kind):
    policy, obs, actions, scores = evaluation(action_space, kind)
    names = {id(parameter): name for name, parameter in policy.named_parameters()}
    assert not any("value" in names[id(parameter)] for parameter in scores.parameters)
    expected = jacobian(policy, obs, actions, scores.parameters)
    direction, weights = th.randn(expected.shape[-1]), th.rand(B, N)
    th.testing.assert_close(scores.along(direction), expected @ direction, rtol=1e-4, atol=1e-5)
    th.testing.assert_close(scores.combine(weights), th.einsum("bn,bnp->p", weights, expected), rtol=1e-4, atol=1e-5)


def test_fisher_product_of_literal_numbers():
    # One state, two actions, scores (1, 2) and (0, 3), weights a quarter and three: F = [[.25, .5], [.5, 7.75]].
    theta = th.tensor([1.0, 1.0], requires_grad=True)
    parameter = th.nn.Parameter(theta.detach().clone())
    scores = AutogradScores(th.stack([parameter[0] + 2 * parameter[1], 3 * parameter[1]])[None], [parameter])
    product = fisher_product(scores, th.tensor([[0.25, 0.75]]), th.tensor([2.0, 1.0]), damping=0.5)
    th.testing.assert_close(product, th.tensor([1.0 + 1.0, 8.75 + 0.5]))


@pytest.mark.parametrize("kind", [Evaluator, MlpEvaluator])
def test_step_solves_the_damped_system_and_has_its_length(kind):
    policy, obs, actions, scores = evaluation(spaces.Box(-1, 1, (1,)), kind)
    rows, weights = jacobian(policy, obs, actions, scores.parameters), th.full((B, N), 1 / N)
    fisher = th.einsum("bn,bnp,bnq->pq", weights / B, rows, rows) + DAMPING * th.eye(rows.shape[-1])
    gradient = scores.combine(th.randn(B, N))
    step = natural_step(scores, weights, gradient, kl=0.03)
    assert 0.5 * step @ fisher @ step == pytest.approx(0.03, rel=1e-3)
    expected = -th.linalg.solve(fisher, gradient)
    assert th.cosine_similarity(step, expected, dim=0) > 0.999
    # A gradient a million times smaller says the same, and one of zero nothing.
    th.testing.assert_close(natural_step(scores, weights, 1e-6 * gradient, kl=0.03), step, rtol=0.02, atol=1e-3)
    assert not natural_step(scores, weights, 0 * gradient, kl=0.03).any()


@pytest.mark.parametrize("kind", [Evaluator, MlpEvaluator])
def test_the_spread_moves_no_further_than_its_gradient_tells(kind):
    policy, obs, actions, scores = evaluation(spaces.Box(-1, 1, (2,)), kind)
    rows, weights = jacobian(policy, obs, actions, scores.parameters), th.full((B, N), 1 / N)
    fisher = th.einsum("bn,bnp,bnq->pq", weights / B, rows, rows) + DAMPING * th.eye(rows.shape[-1])
    gradient = scores.combine(1e-3 * th.randn(B, N))
    is_spread = th.cat([th.full((parameter.numel(),), parameter is policy.log_std) for parameter in scores.parameters])
    assert is_spread.sum() == 2
    spread = Spread(policy.log_std, log_std_init=0.0)
    full = natural_step(scores, weights, gradient, kl=0.03)
    step = natural_step(scores, weights, gradient, kl=0.03, spread=spread)
    th.testing.assert_close(step[~is_spread], full[~is_spread])
    th.testing.assert_close(step[is_spread], -0.3 * th.linalg.solve(fisher, gradient)[is_spread], rtol=0.02, atol=1e-6)
    # However much the gradient tells, it is two percent per update,
    far = natural_step(scores, weights, 1e6 * gradient, kl=100.0, spread=spread)
    assert far[is_spread].abs().tolist() == pytest.approx([0.02, 0.02])
    # and no more than the trust region allows.
    short = natural_step(scores, weights, 1e6 * gradient, kl=1e-6, spread=spread)
    th.testing.assert_close(short, natural_step(scores, weights, 1e6 * gradient, kl=1e-6))


@pytest.mark.parametrize(
    ("log_std_init", "least"),
    [(-1.0, -1.6931), (-3.0, -3.6931), (0.0, -1.6094)],
    ids=["half of e^-1", "half of e^-3", "a fifth, which is enough"],
)
def test_the_spread_falls_to_half_or_a_fifth_at_most(log_std_init, least):
    log_std = nn.Parameter(th.tensor([1.0, 0.2, 0.0031, -1.3, -1.3]) + least)
    step, natural_gradient = th.tensor([-1.0, -1.0, -1.0, -1.0, 1.0]), th.tensor([-0.05, -9.0, -9.0, -9.0, 9.0])
    expected = [-0.015, -0.02, -0.0031, 0.0, 0.02]
    spread = Spread(log_std, log_std_init)
    assert spread_step(step, natural_gradient, spread).tolist() == pytest.approx(expected, abs=1e-4)


@pytest.mark.filterwarnings("ignore:.* updates in a row show useless critic")
@pytest.mark.parametrize("kwargs", [{}, {"use_sde": True, "sde_sample_freq": 1}], ids=["gaussian", "gsde"])
def test_a_policy_that_is_rewarded_for_holding_still_keeps_some_spread(kwargs):
    class Still(gym.Env):
        observation_space, action_space = spaces.Box(-1, 1, (1,)), spaces.Box(-9, 9, (2,))

        def reset(self, *, seed=None, options=None):
            super().reset(seed=seed)
            return np.ones(1, dtype=np.float32), {}

        def step(self, action):
            return np.ones(1, dtype=np.float32), -float(action @ action), False, False, {}

    env = make_vec_env(lambda: gym.wrappers.TimeLimit(Still(), 8), seed=0)
    model = HybridGRPO("MlpPolicy", env, n_samples=1, gamma=0.0, **{**SMALL, "trust_region": 0.1, **kwargs})
    least = []
    for _ in range(90):
        model.learn(64, reset_num_timesteps=False)
        least.append(model.policy.log_std.min().item())
    assert min(least) == pytest.approx(np.log(0.2))


def test_a_step_is_shortened_until_it_helps_and_is_not_taken_if_none_does():
    _, _, _, scores = evaluation(spaces.Box(-1, 1, (1,)), MlpEvaluator)
    start = parameters_to_vector(scores.parameters).detach().clone()
    storages = [parameter.data_ptr() for parameter in scores.parameters]
    step = th.ones_like(start)

    def evaluate(limit):
        length = float((parameters_to_vector(scores.parameters).detach() - start).mean())
        return (-1.0 if length < limit else 1.0), 0.0

    assert search_line(scores.parameters, step, 0.01, lambda: evaluate(0.7), loss=0.0)
    th.testing.assert_close(parameters_to_vector(scores.parameters).detach(), start + 0.64 * step)
    with th.no_grad():
        for parameter in scores.parameters:
            parameter -= 0.64
    assert not search_line(scores.parameters, step, 0.01, lambda: evaluate(0.0), loss=0.0)
    assert not search_line(scores.parameters, step, 0.01, lambda: (-1.0, 0.0151), loss=0.0)
    assert not search_line(scores.parameters, step, 0.01, lambda: (float("nan"), 0.0), loss=0.0)
    th.testing.assert_close(parameters_to_vector(scores.parameters).detach(), start)
    assert [parameter.data_ptr() for parameter in scores.parameters] == storages


def test_an_update_has_the_wanted_divergence_and_trains_the_critic():
    model = HybridGRPO("MlpPolicy", make_vec_env("Pendulum-v1", 4), n_samples=2, branch_horizon=2, **{**SMALL, "n_steps": 128})
    before = {name: parameter.detach().clone() for name, parameter in model.policy.named_parameters()}
    model.learn(512)
    logged = model.logger.name_to_value
    assert 0.01 < logged["train/approx_kl"] <= 0.03
    assert logged["train/is_line_search_success"] == 1
    assert logged["train/policy_gradient_loss"] < 0
    for name, parameter in model.policy.named_parameters():
        assert not th.equal(parameter, before[name]), name


def test_steps_become_shorter_by_a_schedule(tmp_path):
    model = HybridGRPO("MlpPolicy", "Pendulum-v1", **{**SMALL, "trust_region": "lin_0.02"})
    regions = []
    train = model.train

    def recording():
        train()
        regions.append(model.logger.name_to_value["train/trust_region"])

    model.train = recording
    model.learn(256)
    assert regions == pytest.approx([0.015, 0.01, 0.005, 0.0])
    assert "train/is_line_search_success" not in model.logger.name_to_value
    del model.train
    model.save(tmp_path / "model")
    assert HybridGRPO.load(tmp_path / "model", device="cpu").trust_region(0.5) == pytest.approx(0.01)


def test_the_closed_form_and_autograd_agree(monkeypatch):
    def moved():
        model = HybridGRPO("MlpPolicy", make_vec_env("Pendulum-v1", 2, seed=0), n_samples=2, **SMALL)
        before = {name: parameter.detach().clone() for name, parameter in model.policy.named_parameters()}
        model.learn(128)
        return {name: parameter.detach() - before[name] for name, parameter in model.policy.named_parameters()}

    fast = moved()
    monkeypatch.setattr(MlpEvaluator, "is_plain", staticmethod(lambda policy: False))
    for name, step in moved().items():
        # Conjugate gradients enlarge what processors round in their own ways.
        assert (step - fast[name]).norm() < 0.03 * step.norm(), name


def test_one_action_per_state_gives_the_step_of_trpo():
    """The same rollout, the same direction: TRPO's Fisher matrix is exact, ours is an estimate that many states make good."""
    settings = {"n_steps": 4096, "batch_size": 4096, "seed": 0, "device": "cpu", "policy_kwargs": {"net_arch": [4]}}
    trpo = TRPO("MlpPolicy", "Pendulum-v1", n_critic_updates=1, target_kl=0.02, **settings)
    ours = HybridGRPO(
        "MlpPolicy", "Pendulum-v1", n_samples=1, n_epochs=1, reward_transform="identity", refit_critic=False,
        trust_region=0.02, clip_range=10.0, **settings,
    )  # fmt: skip
    start = dict(ours.policy.named_parameters())
    start = {name: parameter.detach().clone() for name, parameter in start.items() if "value" not in name}
    steps = []
    for model in (trpo, ours):
        model.set_random_seed(0)
        model.learn(4096)
        steps.append(parameters_to_vector([dict(model.policy.named_parameters())[name] - start[name] for name in start]))
    assert th.cosine_similarity(*steps, dim=0) > 0.95


@pytest.mark.parametrize(
    "policy, env, kwargs",
    [
        ("MlpPolicy", limited(), {"n_samples": 1}),
        ("MlpPolicy", limited(action_space=spaces.MultiDiscrete([2, 3])), {}),
        ("MlpPolicy", limited(action_space=spaces.MultiBinary(3)), {}),
        ("MlpPolicy", "CartPole-v1", {"ent_coef": 0.01}),
        ("MlpPolicy", "Pendulum-v1", {"use_sde": True}),
        ("MlpPolicy", "Pendulum-v1", {"use_sde": True, "policy_kwargs": {"squash_output": True}}),
        ("MultiInputPolicy", limited(observation="dict"), {}),
        ("CnnPolicy", limited(observation="image"), {"policy_kwargs": {"features_extractor_kwargs": {"features_dim": 16}}}),
        ("MlpLstmPolicy", "Pendulum-v1", {"policy_kwargs": {"lstm_hidden_size": 8}}),
    ],
    ids=["one-sample", "multidiscrete", "multibinary", "entropy", "gsde", "squashed", "dict", "image", "recurrent"],
)
def test_every_policy_steps(policy, env, kwargs):
    vec_env = make_vec_env(env, 2, seed=0)
    model = HybridGRPO(policy, vec_env, **{**SMALL, **kwargs})
    before = {name: parameter.detach().clone() for name, parameter in model.policy.named_parameters()}
    model.learn(256)
    assert any(
        not th.equal(parameter, before[name]) for name, parameter in model.policy.named_parameters() if "action_net" in name
    )


class SharedTrunk(nn.Module):
    """An ``mlp_extractor`` whose actor and critic have one layer in common."""

    def __init__(self, feature_dim):
        super().__init__()
        self.latent_dim_pi = self.latent_dim_vf = 4
        self.trunk = nn.Sequential(nn.Linear(feature_dim, 4), nn.Tanh())

    def forward(self, features):
        return self.trunk(features), self.trunk(features)

    def forward_actor(self, features):
        return self.trunk(features)

    def forward_critic(self, features):
        return self.trunk(features)


class TrunkPolicy(ActorCriticPolicy):
    def _build_mlp_extractor(self):
        self.mlp_extractor = SharedTrunk(self.features_dim)


class DroppingPolicy(ActorCriticPolicy):
    def _build_mlp_extractor(self):
        super()._build_mlp_extractor()
        self.mlp_extractor.policy_net.append(nn.Dropout(0.5))


class OwnCriticPolicy(ActorCriticPolicy):
    """Its values come from a network of its own."""

    def _build(self, lr_schedule):
        super()._build(lr_schedule)
        self.own_critic = nn.Linear(self.features_dim, 1)
        self.optimizer = self.optimizer_class(self.parameters(), lr=lr_schedule(1), **self.optimizer_kwargs)

    def predict_values(self, obs):
        return self.own_critic(self.extract_features(obs, self.vf_features_extractor))

    def forward(self, obs, deterministic=False):
        actions, _, log_prob = super().forward(obs, deterministic)
        return actions, self.predict_values(obs), log_prob


def test_the_critic_moves_nothing_of_the_policy():
    model = HybridGRPO(TrunkPolicy, limited()(), **SMALL)
    after_step = []
    take = model._take_natural_step

    def recording(*args):
        actor = take(*args)
        after_step.extend((parameter, parameter.detach().clone()) for parameter in actor)
        return actor

    model._take_natural_step = recording
    before = model.policy.value_net.weight.detach().clone()
    model.learn(64)
    assert len(after_step) == 5 and all(th.equal(parameter, then) for parameter, then in after_step)
    assert not th.equal(model.policy.value_net.weight, before)


def test_a_critic_of_the_users_own_is_trained():
    model = HybridGRPO(OwnCriticPolicy, limited()(), n_samples=1, **{**SMALL, "refit_critic": False})
    before = model.policy.own_critic.weight.detach().clone()
    unused = model.policy.value_net.weight.detach().clone()
    model.learn(64)
    assert not th.equal(model.policy.own_critic.weight, before)
    assert th.equal(model.policy.value_net.weight, unused)


def test_dropout_is_as_in_the_rollout():
    """The divergence that is logged is that of the policy that acts, without dropout."""
    model = HybridGRPO(DroppingPolicy, limited()(), **SMALL).learn(64)
    rollout_data = next(model.rollout_buffer.get())
    model.policy.set_training_mode(False)
    _, log_prob, _ = Evaluator(model.policy).evaluate_actions(rollout_data.observations, rollout_data.actions)
    expected = approximate_kl(log_prob - rollout_data.old_log_prob, rollout_data.weights)
    assert model.logger.name_to_value["train/is_line_search_success"] == 1
    assert model.logger.name_to_value["train/approx_kl"] == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize(
    "frozen, n_steps", [("log_std", 1), ("mlp_extractor.policy_net.0", 1), ("", 0)], ids=["std", "layer", "all"]
)
def test_frozen_parameters_stay(frozen, n_steps):
    model = HybridGRPO("MlpPolicy", "Pendulum-v1", **SMALL)
    for name, parameter in model.policy.named_parameters():
        if name.startswith(frozen) and "value" not in name:
            parameter.requires_grad_(False)
    before = {name: p.detach().clone() for name, p in model.policy.named_parameters() if not p.requires_grad}
    model.learn(64)
    assert model.logger.name_to_value["train/is_line_search_success"] == n_steps
    for name, then in before.items():
        assert th.equal(dict(model.policy.named_parameters())[name], then)


@pytest.mark.parametrize("trust_region", [None, 0.02])
@pytest.mark.parametrize("algorithm", [HybridGRPO, GRPO])
def test_advantages_that_are_nan_are_an_error(algorithm, trust_region, monkeypatch):
    model = algorithm("MlpPolicy", limited()(), **{**SMALL, "trust_region": trust_region})
    compute = type(model.rollout_buffer).compute_returns_and_advantage

    def with_nan(buffer, last_values, dones):
        compute(buffer, last_values, dones)
        buffer.advantages[0] = np.nan

    monkeypatch.setattr(type(model.rollout_buffer), "compute_returns_and_advantage", with_nan)
    message = r"a loss is NaN.*`target_kl`" if trust_region is None else r"a loss is NaN.*smaller `trust_region`"
    with pytest.raises(DivergedPolicyError, match=message):
        model.learn(64)


def test_a_gradient_that_is_infinite_is_an_error(monkeypatch):
    model = HybridGRPO("MlpPolicy", "Pendulum-v1", **SMALL)
    backward = MlpEvaluator.backward

    def overflowing(*args):
        norm = backward(*args)
        model.policy.log_std.grad = th.full_like(model.policy.log_std, th.inf)
        return norm

    monkeypatch.setattr(MlpEvaluator, "backward", overflowing)
    with pytest.raises(DivergedPolicyError, match="its gradient is NaN or infinite"):
        model.learn(64)


def test_masked_actions():
    env = make_vec_env(
        lambda: ActionMasker(limited(action_space=spaces.Discrete(3))(), lambda env: np.array([True, True, False]))
    )
    model = HybridGRPO("MaskableMlpPolicy", env, n_samples=3, **SMALL).learn(64)
    assert model.logger.name_to_value["train/is_line_search_success"] == 1
    assert model.logger.name_to_value["train/approx_kl"] > 0.001


def test_without_a_critic():
    model = GRPO("MlpPolicy", limited()(), **SMALL).learn(128)
    assert model._n_updates == 2
    assert model.logger.name_to_value["train/is_line_search_success"] == 1
    assert model.logger.name_to_value["train/approx_kl"] > 0


def test_checkpoints_go_on_and_load_into_ppo(tmp_path):
    model = HybridGRPO("MlpPolicy", "Pendulum-v1", **SMALL).learn(64)
    model.save(tmp_path / "model")
    loaded = HybridGRPO.load(tmp_path / "model", env=model.get_env(), device="cpu")
    assert loaded.trust_region == 0.02
    loaded.learn(64)
    ppo = PPO.load(tmp_path / "model", device="cpu")
    th.testing.assert_close(ppo.policy.state_dict(), model.policy.state_dict(), rtol=0, atol=0)


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"trust_region": 0.0}, "trust_region.*above 0"),
        ({"trust_region": "0.1"}, "trust_region.*'lin_'.*'0.1'"),
        ({"trust_region": "lin_0"}, "trust_region.*above 0"),
        ({"trust_region": 0.01, "target_kl": 0.02}, "target_kl.*Leave one of them out"),
        ({"trust_region": 0.01, "desired_kl": 0.02}, "desired_kl.*Leave one of them out"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(InvalidArgumentError, match=message):
        HybridGRPO("MlpPolicy", limited()(), **{**SMALL, **arguments})


def test_advantages_of_zero_leave_the_policy(monkeypatch):
    model = HybridGRPO("MlpPolicy", limited()(), n_samples=1, normalize_advantage=False, **SMALL)
    compute = type(model.rollout_buffer).compute_returns_and_advantage

    def without_advantages(buffer, last_values, dones):
        compute(buffer, last_values, dones)
        buffer.advantages = np.zeros_like(buffer.advantages)

    monkeypatch.setattr(type(model.rollout_buffer), "compute_returns_and_advantage", without_advantages)
    before = {name: parameter.detach().clone() for name, parameter in model.policy.named_parameters()}
    model.learn(64)
    for name, parameter in model.policy.named_parameters():
        assert "value" in name or th.equal(parameter, before[name]), name
    assert model.logger.name_to_value["train/is_line_search_success"] == 0
