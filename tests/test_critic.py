"""The critic's last layer, solved by least squares."""

import copy

import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3.common.policies import ActorCriticPolicy

from sb3_hybrid_grpo import HybridGRPO
from sb3_hybrid_grpo.common.buffers import MultiSampleDictRolloutBuffer, MultiSampleRolloutBuffer
from sb3_hybrid_grpo.common.critic import held_out_errors, least_squares_changes, made_a_difference, refit_value_head


def test_changes_by_hand():
    """φ and the constant are uncorrelated with mean square 1; y has products 2 and 1 with them: Δw = (2, 1) / (1 + ρ)."""
    inputs, residuals = np.array([[-1.0, 1.0], [1.0, 1.0]]), np.array([-1.0, 3.0])
    changes = least_squares_changes(inputs, residuals, [0.0, 1.0, 3.0, np.inf])
    np.testing.assert_allclose(changes, [[2.0, 1.0], [1.0, 0.5], [0.5, 0.25], [0.0, 0.0]])


def test_change_minimises_its_objective():
    rng = np.random.default_rng(0)
    inputs, residuals, ridge = np.column_stack((rng.normal(size=(50, 3)) + 2, np.ones(50))), rng.normal(size=50), 0.1

    def objective(change):
        errors = [y - sum(f * w for f, w in zip(row, change, strict=True)) for row, y in zip(inputs, residuals, strict=True)]
        return np.square(errors).sum() + 50 * ridge * np.square(inputs).mean() * sum(w**2 for w in change)

    (best,) = least_squares_changes(inputs, residuals, [ridge])
    for direction in (*np.eye(4), *rng.normal(size=(20, 4))):
        assert objective(best + 1e-3 * direction) > objective(best)


@pytest.mark.parametrize("inputs", [np.ones((4, 2)), np.eye(4)[:, :2] * 0 + [0, 1]], ids=["ones", "zeros"])
def test_features_that_tell_nothing_explain_the_mean(inputs):
    (change,) = least_squares_changes(inputs, np.array([1.0, 2.0, 3.0, 4.0]), [1e-9])
    np.testing.assert_allclose(inputs @ change, 2.5)


def test_values_of_states_unlike_those_of_the_rollout_stay():
    """What the bias would give up everywhere, features that only the visited states have take over."""
    visited, unvisited = np.array([[1.0, 1.0, 0.0, 1.0]]), np.array([0.0, 0.0, 1.0, 1.0])
    (change,) = least_squares_changes(visited.repeat(10, axis=0), np.full(10, -30.0), [1e-6])
    assert visited[0] @ change == pytest.approx(-30, rel=1e-3)
    assert unvisited @ change == pytest.approx(-10, rel=1e-3)


def test_held_out_errors_are_those_of_a_loop():
    rng = np.random.default_rng(0)
    inputs, residuals = rng.normal(size=(53, 4)), rng.normal(size=53)
    ridges = [np.inf, 0.1, 0.01]
    expected = np.zeros(3)
    for fold in range(5):
        held_out = [s for s in range(53) if int(s * 5 / 53) == fold]
        others = [s for s in range(53) if s not in held_out]
        for r, ridge in enumerate(ridges):
            (change,) = least_squares_changes(inputs[others], residuals[others], [ridge])
            expected[r] += sum((residuals[s] - inputs[s] @ change) ** 2 for s in held_out) / 53
    np.testing.assert_allclose(held_out_errors(inputs, residuals, ridges), expected)
    assert expected[0] == pytest.approx(np.square(residuals).mean())


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
    assert abs(np.mean(errors)) < 1
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


def test_noise_is_not_fitted():
    """Each trajectory has returns of its own, of which nothing carries over to the others."""
    space = spaces.Box(-1, 1, (3,), seed=0)
    buffer = rollout(space, MultiSampleRolloutBuffer, n_steps=64, n_envs=10)
    policy = HybridGRPO.policy_aliases["MlpPolicy"](space, spaces.Discrete(2), lambda _: 1e-3)
    centres = np.random.default_rng(0).uniform(-1, 1, (1, 10, 3))
    buffer.observations = np.clip(centres + 0.05 * buffer.observations, -1, 1)
    signs = np.resize([1.0, -1.0], 10)
    buffer.returns = np.random.default_rng(1).permutation(signs)[None].repeat(64, axis=0).astype(np.float32)
    before = copy.deepcopy(policy.state_dict())
    refit_value_head(policy, buffer)
    assert all(th.equal(tensor, before[name]) for name, tensor in policy.state_dict().items())


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
