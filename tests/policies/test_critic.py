"""The critic's last layer, solved by least squares."""

import copy

import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3.common.policies import ActorCriticPolicy

from sb3_hybrid_grpo import HybridGRPO
from sb3_hybrid_grpo.hybrid_grpo import clipped_update
from sb3_hybrid_grpo.policies.critic import least_squares_change, made_a_difference, refit_value_head
from sb3_hybrid_grpo.rollout.buffers import MultiSampleDictRolloutBuffer, MultiSampleRolloutBuffer


def test_change_by_hand():
    """φ has mean 0 and variance 1, y has mean 1 and covariance 2 with φ: Δw = 2 / (1 + ρ)."""
    features, residuals = np.array([[-1.0], [1.0]]), np.array([-1.0, 3.0])
    for ridge, expected in ((0.0, 2.0), (1.0, 1.0), (3.0, 0.5)):
        weight, bias = least_squares_change(features, residuals, ridge)
        np.testing.assert_allclose((*weight, bias), (expected, 1.0))


def test_change_minimises_its_objective():
    rng = np.random.default_rng(0)
    features, residuals, ridge = rng.normal(size=(50, 3)) + 2, rng.normal(size=50), 0.1

    def objective(change):
        errors = residuals - [sum(f * w for f, w in zip(row, change[:3], strict=True)) for row in features] - change[3]
        return (errors**2).sum() + 50 * ridge * features.var(axis=0).mean() * sum(w**2 for w in change[:3])

    weight, bias = least_squares_change(features, residuals, ridge)
    best = np.array([*weight, bias])
    for direction in (*np.eye(4), *rng.normal(size=(20, 4))):
        assert objective(best + 1e-3 * direction) > objective(best)


@pytest.mark.parametrize("features", [np.ones((4, 2)), np.zeros((4, 2))])
def test_features_that_tell_nothing_move_the_bias_only(features):
    weight, bias = least_squares_change(features, np.array([1.0, 2.0, 3.0, 4.0]))
    np.testing.assert_array_equal(weight, [0, 0])
    assert bias == pytest.approx(2.5)


def rollout(space, buffer_class, n_steps=256, n_envs=2):
    buffer = buffer_class(n_steps, space, spaces.Discrete(2), device="cpu", n_envs=n_envs)
    for _ in range(n_steps):
        states = [space.sample() for _ in range(n_envs)]
        obs = {key: np.stack([state[key] for state in states]) for key in space} if isinstance(space, spaces.Dict) else states
        zeros = np.zeros((n_envs, 1), dtype=np.float32)
        starts, values = np.zeros(n_envs), th.zeros(n_envs)
        buffer.add(obs, zeros, zeros, starts, values, values[:, None], next_value=zeros, terminated=zeros)
    buffer.compute_returns_and_advantage(th.zeros(n_envs), np.zeros(n_envs))
    return buffer


@pytest.mark.parametrize(
    ("space", "buffer_class", "policy"),
    [
        (spaces.Box(-1, 1, (3,)), MultiSampleRolloutBuffer, "MlpPolicy"),
        (spaces.Dict(a=spaces.Box(-1, 1, (3,)), b=spaces.Discrete(2)), MultiSampleDictRolloutBuffer, "MultiInputPolicy"),
    ],
)
def test_refit_explains_returns_and_leaves_the_rest(space, buffer_class, policy):
    space.seed(0)
    buffer = rollout(space, buffer_class)
    policy = HybridGRPO.policy_aliases[policy](space, spaces.Discrete(2), lambda _: 1e-3)
    observed = space["a"] if isinstance(space, spaces.Dict) else space
    stored = buffer.observations["a"] if isinstance(space, spaces.Dict) else buffer.observations
    assert stored.shape[-1:] == observed.shape
    buffer.returns = 100 + 50 * stored[..., 0]
    before = copy.deepcopy(policy.state_dict())
    refit_value_head(policy, buffer)
    errors = [
        data.returns - policy.predict_values(data.observations).detach().numpy().ravel() for data in buffer.get(batch_size=64)
    ]
    assert np.square(errors).mean() < 0.1 * buffer.returns.var()
    assert abs(np.mean(errors)) < 1e-3
    changed = {name for name, tensor in policy.state_dict().items() if not th.equal(tensor, before[name])}
    assert changed == {"value_net.weight", "value_net.bias"}


@pytest.mark.parametrize("refit_critic", [False, True])
def test_refit_follows_the_update(refit_critic):
    plain, refitted = (
        HybridGRPO("MlpPolicy", "CartPole-v1", n_steps=256, seed=0, refit_critic=refit).learn(256).policy.state_dict()
        for refit in (False, refit_critic)
    )
    changed = {name for name, tensor in plain.items() if not th.equal(tensor, refitted[name])}
    assert changed == ({"value_net.weight", "value_net.bias"} if refit_critic else set())


def test_policy_without_linear_head():
    class OwnValues(ActorCriticPolicy):
        def predict_values(self, obs):
            return super().predict_values(obs) ** 2

    with pytest.warns(UserWarning, match="`refit_critic` has no effect: the values of OwnValues"):
        model = HybridGRPO(OwnValues, "CartPole-v1", n_steps=64, n_epochs=1, refit_critic=True)
    model.learn(64)


@pytest.mark.parametrize(("n_states", "is_refitted"), [(256, True), (255, False)])
def test_rollouts_of_few_states_are_left_alone(n_states, is_refitted):
    """64 units need 256 states."""
    space = spaces.Box(-1, 1, (3,), seed=0)
    buffer = rollout(space, MultiSampleRolloutBuffer, n_states, n_envs=1)
    policy = HybridGRPO.policy_aliases["MlpPolicy"](space, spaces.Discrete(2), lambda _: 1e-3)
    buffer.returns = 100 + buffer.observations[..., 0]
    before = policy.value_net.bias.item()
    refit_value_head(policy, buffer)
    assert (policy.value_net.bias.item() != before) == is_refitted


def test_a_frozen_last_layer_is_left_alone():
    model = HybridGRPO("MlpPolicy", "Pendulum-v1", n_steps=260, batch_size=260, n_epochs=1, n_samples=1, seed=0)
    model.policy.value_net.requires_grad_(False)
    before = model.policy.value_net.weight.clone()
    model.learn(260)
    assert model.refit_critic and th.equal(model.policy.value_net.weight, before)


@pytest.mark.parametrize(
    ("env_id", "kwargs", "is_refitted"),
    [
        ("Acrobot-v1", {}, False),
        ("Acrobot-v1", {"n_samples": 3, "branch_horizon": 1}, False),
        ("Acrobot-v1", {"n_samples": 1}, True),
        ("CartPole-v1", {}, True),
        ("Pendulum-v1", {}, True),
        ("Pendulum-v1", {"branch_fraction": 0.05}, True),
    ],
    ids=str,
)
def test_critic_is_refitted_where_actions_make_a_difference(env_id, kwargs, is_refitted):
    """None does on Acrobot before the goal is reached: each step costs one."""
    biases = []
    for refit_critic in (True, False):
        model = HybridGRPO("MlpPolicy", env_id, n_steps=256, n_epochs=1, seed=0, refit_critic=refit_critic, **kwargs)
        biases.append(model.learn(256).policy.value_net.bias.item())
        assert made_a_difference(model.rollout_buffer) == is_refitted
    assert (biases[0] != biases[1]) == is_refitted


class DroppingPolicy(ActorCriticPolicy):
    def _build_mlp_extractor(self):
        super()._build_mlp_extractor()
        self.mlp_extractor.value_net.append(th.nn.Dropout(0.5))


def test_layer_is_solved_for_the_inputs_that_rollouts_give_it(monkeypatch):
    modes = []
    model = HybridGRPO(DroppingPolicy, "Pendulum-v1", n_steps=512, n_epochs=1, branch_horizon=1, seed=0, device="cpu")
    model.policy.mlp_extractor.value_net[-1].register_forward_hook(lambda module, *_: modes.append(module.training))
    refit = clipped_update.refit_value_head
    monkeypatch.setattr(clipped_update, "refit_value_head", lambda *arguments: modes.clear() or refit(*arguments))
    model.learn(512)
    assert modes and not any(modes)


def test_a_last_layer_without_bias_is_left_alone():
    class WithoutBias(ActorCriticPolicy):
        def _build(self, lr_schedule):
            super()._build(lr_schedule)
            self.value_net = th.nn.Linear(self.mlp_extractor.latent_dim_vf, 1, bias=False)
            self.optimizer = self.optimizer_class(self.parameters(), lr=lr_schedule(1))

    with pytest.warns(UserWarning, match="`refit_critic` has no effect"):
        model = HybridGRPO(WithoutBias, "Pendulum-v1", n_steps=32, batch_size=32, branch_horizon=1, device="cpu")
    assert model.learn(32).num_timesteps == 32
