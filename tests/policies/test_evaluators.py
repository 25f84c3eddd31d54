"""Gradients in closed form are those of autograd through SB3's own distributions."""

import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3.common.policies import ActorCriticPolicy

from sb3_hybrid_grpo.estimation.losses import Loss
from sb3_hybrid_grpo.policies.evaluators import Evaluator, MlpEvaluator, make_evaluator
from tests.envs import SharedLayerPolicy

OBS = spaces.Box(-1, 1, (3,))
B, N = 6, 4
SPACES = [spaces.Box(-1, 1, (2,)), spaces.Discrete(3), spaces.MultiDiscrete([2, 3]), spaces.MultiBinary(2)]


def make_policy(action_space, **kwargs):
    th.manual_seed(0)
    return ActorCriticPolicy(OBS, action_space, lambda _: 1e-3, ortho_init=False, **kwargs)


def minibatch(policy):
    """States, actions as the buffer keeps them, and any gradients of values, log-probabilities and entropies."""
    obs, values, log_prob, entropy = th.randn(B, 3), th.randn(B), th.randn(B, N), th.randn(B)
    with th.no_grad():
        distribution = policy.get_distribution(obs)
        actions = th.stack([distribution.sample() for _ in range(N)], dim=1).reshape(B, N, -1).float()
    return obs, actions, {"values": values, "log_prob": log_prob, "entropy": entropy}


def gradients(policy):
    return {name: p.grad.clone() for name, p in policy.named_parameters() if p.grad is not None}


def straightforward(policy, obs, actions):
    """One pass through the policy for each sample, by SB3's own code."""
    if isinstance(policy.action_space, spaces.Discrete):
        actions = actions.squeeze(-1).long()
    values, _, entropy = policy.evaluate_actions(obs, actions[:, 0])
    log_prob = th.stack([policy.evaluate_actions(obs, actions[:, i])[1] for i in range(N)], dim=1)
    return {"values": values.flatten(), "log_prob": log_prob, "entropy": entropy}


@pytest.mark.parametrize("of", [["log_prob"], ["log_prob", "entropy"], ["log_prob", "entropy", "values"], ["values"]], ids=str)
@pytest.mark.parametrize(
    "kwargs",
    [
        {},
        {"share_features_extractor": False},
        {"activation_fn": th.nn.ReLU, "net_arch": {"pi": [8], "vf": []}},
        {"activation_fn": th.nn.ELU},
    ],
    ids=["default", "apart", "relu", "elu"],
)
@pytest.mark.parametrize("action_space", SPACES, ids=str)
def test_gradients_are_those_of_autograd(action_space, kwargs, of):
    policy = make_policy(action_space, **kwargs)
    obs, actions, loss_gradients = minibatch(policy)
    outputs = straightforward(policy, obs, actions)
    sum((outputs[name] * loss_gradients[name]).sum() for name in of).backward()
    expected = gradients(policy)

    policy.zero_grad()
    evaluator = make_evaluator(policy)
    evaluated = evaluator.evaluate_actions(obs, actions)
    for name, numbers in zip(("values", "log_prob", "entropy"), evaluated, strict=True):
        np.testing.assert_allclose(numbers, outputs[name].detach(), rtol=1e-5, atol=1e-6)
    evaluator.backward([Loss(0.0, name, loss_gradients[name].double().numpy()) for name in of])  # as of rewards in float64
    actual = gradients(policy)
    assert actual.keys() == expected.keys()
    for name, gradient in expected.items():
        th.testing.assert_close(actual[name], gradient, rtol=1e-4, atol=1e-5, msg=lambda msg, name=name: f"{name}: {msg}")


@pytest.mark.parametrize("limits", [(0.05, None), (0.05, 0.01), (100.0, 100.0)], ids=str)
@pytest.mark.parametrize("of", [["log_prob"], ["values"], ["log_prob", "values"]], ids=str)
@pytest.mark.parametrize("action_space", SPACES[:2], ids=str)
def test_gradients_are_clipped_as_by_pytorch(action_space, of, limits):
    policy = make_policy(action_space)
    obs, actions, loss_gradients = minibatch(policy)
    scaled = []
    for evaluator in (Evaluator(policy), make_evaluator(policy)):
        evaluator.evaluate_actions(obs, actions)
        losses = [Loss(0.0, name, loss_gradients[name].numpy()) for name in of]
        norm = evaluator.backward(losses)
        unscaled = th.cat([gradient.flatten() for gradient in gradients(policy).values()]).norm()
        evaluator.evaluate_actions(obs, actions)
        assert [norm, evaluator.backward(losses, *limits)] == pytest.approx([float(unscaled)] * 2, rel=1e-5)
        scaled.append(gradients(policy))
    assert type(evaluator) is MlpEvaluator and scaled[0].keys() == scaled[1].keys()
    for name, expected in scaled[0].items():
        th.testing.assert_close(scaled[1][name], expected, rtol=1e-4, atol=1e-6)


def test_frozen_parameters_stay_without_gradient():
    policy = make_policy(SPACES[0])
    policy.log_std.requires_grad_(False)
    obs, actions, loss_gradients = minibatch(policy)
    evaluator = make_evaluator(policy)
    evaluator.evaluate_actions(obs, actions)
    evaluator.backward([Loss(0.0, name, gradient.numpy()) for name, gradient in loss_gradients.items()])
    assert policy.log_std.grad is None and policy.action_net.weight.grad is not None


class _OwnEvaluation(ActorCriticPolicy):
    def evaluate_actions(self, obs, actions):
        return super().evaluate_actions(obs, actions)


@pytest.mark.parametrize(
    "policy_class, action_space, kwargs, evaluator_class",
    [
        (ActorCriticPolicy, SPACES[0], {}, MlpEvaluator),
        (ActorCriticPolicy, SPACES[1], {}, MlpEvaluator),
        (ActorCriticPolicy, SPACES[0], {"activation_fn": th.nn.ReLU, "net_arch": {"pi": [8], "vf": []}}, MlpEvaluator),
        (ActorCriticPolicy, SPACES[0], {"activation_fn": th.nn.ELU}, Evaluator),
        (ActorCriticPolicy, SPACES[2], {}, Evaluator),
        (ActorCriticPolicy, SPACES[0], {"use_sde": True}, Evaluator),
        (_OwnEvaluation, SPACES[0], {}, Evaluator),
    ],
)
def test_choice_of_evaluator(policy_class, action_space, kwargs, evaluator_class):
    policy = policy_class(OBS, action_space, lambda _: 1e-3, **kwargs)
    assert type(make_evaluator(policy)) is evaluator_class


def actor_of(evaluator, obs, actions):
    evaluator.evaluate_actions(obs, actions)
    found = {id(parameter) for parameter in evaluator.actor_parameters()}
    return {name for name, parameter in evaluator.policy.named_parameters() if id(parameter) in found}


@pytest.mark.parametrize("action_space", SPACES, ids=str)
def test_the_actors_own_parameters(action_space):
    policy = make_policy(action_space)
    obs, actions, _ = minibatch(policy)
    expected = {name for name, _ in policy.named_parameters() if "value_net" not in name}
    assert len(expected) >= 6
    for evaluator in (make_evaluator(policy), Evaluator(policy)):
        assert actor_of(evaluator, obs, actions) == expected


def test_what_both_networks_use_is_not_the_actors_own():
    th.manual_seed(0)
    policy = SharedLayerPolicy(OBS, SPACES[0], lambda _: 1e-3)
    obs, actions, _ = minibatch(policy)
    layers = {f"{layer}.{kind}" for layer in ("mlp_extractor.pi", "action_net") for kind in ("weight", "bias")}
    assert actor_of(make_evaluator(policy), obs, actions) == layers | {"log_std"}
