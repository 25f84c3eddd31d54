import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3.common.distributions import DiagGaussianDistribution
from stable_baselines3.common.policies import ActorCriticPolicy

from sb3_hybrid_grpo import InvalidArgumentError
from sb3_hybrid_grpo.policies import networks
from sb3_hybrid_grpo.policies.evaluators import evaluate_actions, log_probs
from sb3_hybrid_grpo.policies.plain_mlp import inverse_cdf
from sb3_hybrid_grpo.policies.sampling import actions_from_noise, draw_noise, first_occurrences, sample_actions, to_env_actions
from sb3_hybrid_grpo.rollout import values as evaluation

OBS = spaces.Box(-1, 1, (3,))
SPACES = [spaces.Box(-1, 1, (2,)), spaces.Discrete(3), spaces.MultiDiscrete([2, 4]), spaces.MultiBinary(3)]
B, N = 5, 4


def make_policy(action_space, **kwargs):
    th.manual_seed(0)
    policy = ActorCriticPolicy(OBS, action_space, lambda _: 1e-3, ortho_init=False, **kwargs)
    obs = th.as_tensor(np.random.default_rng(0).normal(size=(B, 3)), dtype=th.float32)
    return policy, obs


def test_no_class_of_probability_zero_is_drawn():
    probs, uniforms = np.array([[0.99999988, 0.0, 0.0]], dtype=np.float32), np.array([0.99999994], dtype=np.float32)
    assert inverse_cdf(probs, uniforms).tolist() == [0]
    assert inverse_cdf(np.array([[0.2, 0.3, 0.5]] * 3), np.array([0.1, 0.2, 0.99])).tolist() == [0, 1, 2]


GSDE = [{"use_sde": True, "log_std_init": -1.0}, {"use_sde": True, "squash_output": True, "log_std_init": -1.0}]
POLICIES = [(space, {}) for space in SPACES] + [(SPACES[0], kwargs) for kwargs in GSDE]


@pytest.mark.parametrize("action_space, kwargs", POLICIES, ids=str)
def test_log_probs_are_those_of_single_samples(action_space, kwargs):
    policy, obs = make_policy(action_space, **kwargs)
    if kwargs:
        policy.reset_noise(B * N)
    distribution = policy.get_distribution(obs)
    actions = sample_actions(distribution, N)
    assert actions.shape[:2] == (B, N)
    expected = th.stack([distribution.log_prob(actions[:, i]) for i in range(N)], dim=1)
    th.testing.assert_close(log_probs(distribution, actions), expected)

    flat = actions.reshape(B, N, -1).float()
    values, evaluated, entropy = evaluate_actions(policy, obs, flat)
    th.testing.assert_close(evaluated, expected)
    th.testing.assert_close(values, policy.predict_values(obs).flatten())
    if entropy is not None:
        th.testing.assert_close(entropy, distribution.entropy())
    assert (entropy is None) == bool(kwargs.get("squash_output"))


@pytest.mark.parametrize("action_space, kwargs", POLICIES, ids=str)
def test_gradients_are_those_of_the_straightforward_path(action_space, kwargs):
    """One actor pass for N samples against one pass per sample."""
    policy, obs = make_policy(action_space, **kwargs)
    if kwargs:
        policy.reset_noise(B * N)
    actions = sample_actions(policy.get_distribution(obs), N).detach().reshape(B, N, -1).float()
    gradients = []
    for straightforward in (False, True):
        policy.zero_grad()
        if straightforward:
            integer = isinstance(action_space, spaces.Discrete)
            samples = actions.long().squeeze(-1) if integer else actions
            log_prob = th.stack([policy.evaluate_actions(obs, samples[:, i])[1] for i in range(N)], dim=1)
        else:
            _, log_prob, _ = evaluate_actions(policy, obs, actions)
        (log_prob * th.arange(B * N).reshape(B, N)).sum().backward()
        gradients.append({name: p.grad.clone() for name, p in policy.named_parameters() if p.grad is not None})
    assert gradients[0].keys() == gradients[1].keys()
    for name, gradient in gradients[0].items():
        th.testing.assert_close(gradient, gradients[1][name], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("action_space, kwargs", POLICIES, ids=str)
def test_equal_noise_gives_equal_actions_at_equal_states(action_space, kwargs):
    policy, obs = make_policy(action_space, **kwargs)
    if kwargs:
        policy.reset_noise(2 * N)
    noise = draw_noise(policy.action_dist, 2)
    states = obs[:1].expand(2 * N, -1)
    actions = actions_from_noise(policy.get_distribution(states), noise.repeat(N, axis=0)).reshape(2, N, -1)
    # gSDE's product of noise and features may round by the place in the batch.
    tolerance = 1e-6 if kwargs else 0
    for group in actions:
        th.testing.assert_close(group, group[:1].expand_as(group), rtol=tolerance, atol=tolerance)
    if not kwargs and isinstance(action_space, spaces.Box):
        assert (actions[0] != actions[1]).all()


@pytest.mark.parametrize("action_space", SPACES, ids=str)
def test_actions_from_noise_follow_the_policy(action_space):
    """Means over many draws are the distribution's."""
    policy, obs = make_policy(action_space)
    n_draws = 20_000
    distribution = policy.get_distribution(obs[:1].expand(n_draws, -1))
    actions = actions_from_noise(distribution, draw_noise(policy.action_dist, n_draws)).reshape(n_draws, -1).float()
    reference = distribution.sample().reshape(n_draws, -1).float()
    error = 5 * (reference.std(dim=0) / n_draws**0.5)
    assert ((actions.mean(dim=0) - reference.mean(dim=0)).abs() < 2 * error + 1e-6).all()
    assert ((actions.std(dim=0) - reference.std(dim=0)).abs() < 0.05).all()


def test_gsde_noise_is_that_of_the_first_sample():
    policy, obs = make_policy(SPACES[0], use_sde=True)
    policy.reset_noise(B * N)
    first = sample_actions(policy.get_distribution(obs), N)[:, 0]
    noise = draw_noise(policy.action_dist, B)
    th.testing.assert_close(actions_from_noise(policy.get_distribution(obs), noise), first)


def test_distribution_of_another_kind_has_no_common_noise():
    class Own(DiagGaussianDistribution):
        pass

    with pytest.raises(InvalidArgumentError, match="Own turns noise into actions"):
        draw_noise(Own(2), 3)


def test_to_env_actions_clips_or_unscales():
    space = spaces.Box(-2, 4, (2,))
    policy, _ = make_policy(space)
    actions = np.array([[[5.0, -1.0], [0.5, -3.0]]])
    np.testing.assert_array_equal(to_env_actions(policy, actions), [[[4.0, -1.0], [0.5, -2.0]]])
    squashing, _ = make_policy(space, use_sde=True, squash_output=True)
    np.testing.assert_allclose(to_env_actions(squashing, np.array([[[1.0, -1.0], [0.0, 0.5]]])), [[[4, -2], [1, 2.5]]])


@pytest.mark.parametrize("chunk", [1, 3, 100])
def test_deferred_values_do_not_depend_on_the_chunks(monkeypatch, chunk):
    monkeypatch.setattr(networks, "_MAX_CHUNK", chunk)
    policy, _ = make_policy(SPACES[0])
    observations = np.random.default_rng(1).normal(size=(7, 2, 3, 3)).astype(np.float32)
    values = np.full((7, 2, 3), np.nan, dtype=np.float32)
    wanted = np.arange(42).reshape(7, 2, 3) % 5 > 0
    deferred = evaluation.DeferredValues(policy)
    for obs, destination, mask in zip(observations, values, wanted, strict=True):
        deferred.write(evaluation.select_observations(obs, mask), destination, mask)
    deferred.flush()
    with th.no_grad():
        expected = policy.predict_values(th.as_tensor(observations.reshape(-1, 3))).numpy().reshape(values.shape)
    np.testing.assert_allclose(values[wanted], expected[wanted], rtol=1e-5, atol=1e-6)
    assert np.isnan(values[~wanted]).all()


def test_first_occurrences():
    np.testing.assert_array_equal(first_occurrences(np.array([[2, 0, 2, 0], [1, 1, 1, 3]])), [[0, 1, 0, 1], [0, 0, 0, 3]])
    pairs = np.array([[[0, 1], [1, 0], [0, 1]]])
    np.testing.assert_array_equal(first_occurrences(pairs), [[0, 1, 0]])
