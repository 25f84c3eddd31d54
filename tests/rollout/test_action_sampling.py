"""Every way to choose N actions gives the gradient of the expected reward, checked against its formula."""

import itertools

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3.common.policies import ActorCriticPolicy

from sb3_hybrid_grpo import HybridGRPO, InvalidArgumentError
from sb3_hybrid_grpo.estimation.advantages import ESTIMATORS, RELATIVE_ADVANTAGES
from sb3_hybrid_grpo.estimation.losses import clipped_policy_loss
from sb3_hybrid_grpo.policies.actors import Actor, make_actor
from sb3_hybrid_grpo.rollout.action_sampling import AntitheticPairs, Enumeration, make_action_sampling
from tests.envs import Walk

EQUALLY_LIKELY = [0, 1, 2, 2]
PROBS = np.array([0.25, 0.25, 0.5])
REWARDS = np.array([1.0, -2.0, 0.5])
TAILS = np.array([0.3, -0.4, 2.0])
"""What follows each action beyond its reward."""


def gradient(log_prob, parameters, sampling, estimator, estimates, tails, log_weights=None):
    """Gradient of the objective at the policy that sampled, over a batch of groups [B, N]."""
    log_weights = np.zeros_like(estimates) if log_weights is None else log_weights
    relative = RELATIVE_ADVANTAGES[sampling](estimates[:, None], log_prob.detach().numpy()[:, None], log_weights[:, None])
    advantages, weights = ESTIMATORS[estimator](estimates[:, None], estimates[:, None], relative, tails[:, None], 1.0)
    loss = clipped_policy_loss(np.ones_like(weights[:, 0]), advantages[:, 0], weights[:, 0], clip_range=0.2)
    return [-part.numpy() for part in th.autograd.grad(log_prob, parameters, th.as_tensor(loss.gradient).to(log_prob))]


def softmax_gradient(groups, sampling, estimator):
    logits = th.tensor(np.log(PROBS), requires_grad=True)
    groups = np.array(groups)
    log_prob = th.log_softmax(logits, dim=0)[th.as_tensor(groups)]
    return gradient(log_prob, [logits], sampling, estimator, REWARDS[groups], TAILS[groups[:, 0]])[0]


def analytic_softmax_gradient(returns):
    """∂/∂θ_a Σ_b π_b R_b = π_a (R_a - Σ_b π_b R_b)"""
    return PROBS * (returns - PROBS @ returns)


def everything_from(committed):
    return [(committed + i) % 3 for i in range(3)]


@pytest.mark.parametrize("committed", range(3))
def test_enumeration_gives_the_analytic_gradient_at_every_state(committed):
    result = softmax_gradient([everything_from(committed)], "enumerate", "per_action")
    np.testing.assert_allclose(result, analytic_softmax_gradient(REWARDS), rtol=1e-6)


BATCHES = {
    "enumerate": [everything_from(committed) for committed in EQUALLY_LIKELY],
    **{f"iid, N={n}": list(itertools.product(EQUALLY_LIKELY, repeat=n)) for n in (1, 2, 3)},
}
"""All groups, as often as they are likely: the batch is the expectation."""


@pytest.mark.parametrize("name", BATCHES)
@pytest.mark.parametrize("estimator", ["per_action", "hybrid"])
def test_discrete_sampling_is_unbiased(name, estimator):
    result = softmax_gradient(BATCHES[name], name.partition(",")[0], estimator)
    returns = REWARDS + (TAILS if estimator == "hybrid" else 0)
    np.testing.assert_allclose(result, analytic_softmax_gradient(returns), rtol=1e-6, atol=1e-9)


MEAN, STD = 0.4, 0.7
COEFFICIENTS = np.array([0.5, -1.0, 0.8, 0.3])
"""A reward of the third degree, odd and even parts."""


def gaussian_gradient(n_samples, sampling):
    """Gauss-Hermite quadrature over the independent noises is exact for the polynomials at hand."""
    nodes, node_weights = np.polynomial.hermite_e.hermegauss(8)
    n_free = n_samples // 2 if sampling == "antithetic" else n_samples
    result = np.zeros(2)
    for indices in itertools.product(range(len(nodes)), repeat=n_free):
        noise = nodes[list(indices)]
        chance = np.prod(node_weights[list(indices)] / node_weights.sum())
        noise = np.concatenate((noise, -noise)) if sampling == "antithetic" else noise
        parameters = [th.tensor(MEAN, requires_grad=True), th.tensor(STD, requires_grad=True)]
        actions = MEAN + STD * noise
        log_prob = th.distributions.Normal(*parameters).log_prob(th.as_tensor(actions))[None]
        estimates = np.polynomial.polynomial.polyval(actions, COEFFICIENTS)[None]
        result += chance * np.array(gradient(log_prob, parameters, sampling, "per_action", estimates, np.zeros(1)))
    return result


def analytic_gaussian_gradient():
    """E r(a) = c₀ + c₁ μ + c₂ (μ² + σ²) + c₃ (μ³ + 3 μ σ²)"""
    _, c1, c2, c3 = COEFFICIENTS
    return [c1 + 2 * c2 * MEAN + 3 * c3 * (MEAN**2 + STD**2), 2 * c2 * STD + 6 * c3 * MEAN * STD]


@pytest.mark.parametrize(("sampling", "n_samples"), [("iid", 2), ("antithetic", 2), ("antithetic", 4), ("antithetic", 6)])
def test_gaussian_sampling_is_unbiased(sampling, n_samples):
    np.testing.assert_allclose(gaussian_gradient(n_samples, sampling), analytic_gaussian_gradient(), rtol=1e-5)


@pytest.mark.parametrize("n_samples", [2, 3])
def test_tempered_discrete_sampling_is_unbiased(n_samples):
    proposal = PROBS**0.4 / (PROBS**0.4).sum()
    logits = th.tensor(np.log(PROBS), requires_grad=True)
    result = np.zeros(3)
    for group in map(list, itertools.product(range(3), repeat=n_samples)):
        chance = PROBS[group[0]] * proposal[group[1:]].prod()
        log_weights = np.log(np.append(1.0, (PROBS / proposal)[group[1:]]))
        log_prob = th.log_softmax(logits, dim=0)[group][None]
        estimates = REWARDS[group][None]
        result += chance * gradient(log_prob, [logits], "tempered", "per_action", estimates, np.zeros(1), log_weights[None])[0]
    np.testing.assert_allclose(result, analytic_softmax_gradient(REWARDS), rtol=1e-6, atol=1e-9)


def test_tempered_gaussian_sampling_is_unbiased():
    temperature = 2.5
    nodes, node_weights = np.polynomial.hermite_e.hermegauss(40)
    chances = node_weights / node_weights.sum()
    parameters = [th.tensor(MEAN, dtype=th.float64, requires_grad=True), th.tensor(STD, dtype=th.float64, requires_grad=True)]
    result = np.zeros(2)
    for i, j in itertools.product(range(40), repeat=2):
        actions = MEAN + STD * np.array([nodes[i], temperature**0.5 * nodes[j]])
        log_prob = th.distributions.Normal(*parameters).log_prob(th.as_tensor(actions))[None]
        log_weights = np.array([[0.0, 0.5 * np.log(temperature) - 0.5 * (temperature - 1) * nodes[j] ** 2]])
        estimates = np.polynomial.polynomial.polyval(actions, COEFFICIENTS)[None]
        part = gradient(log_prob, parameters, "tempered", "per_action", estimates, np.zeros(1), log_weights)
        result += chances[i] * chances[j] * np.array(part)
    np.testing.assert_allclose(result, analytic_gaussian_gradient(), rtol=1e-5)


def make_policy(env_id="Pendulum-v1", **kwargs):
    env = gym.make(env_id)
    th.manual_seed(0)
    return ActorCriticPolicy(env.observation_space, env.action_space, lambda _: 1e-3, **kwargs)


@pytest.mark.parametrize("actor_class", [Actor, make_actor])
@pytest.mark.parametrize("has_noise", [False, True])
def test_pairs_are_reflected_at_the_mean(actor_class, has_noise):
    policy = make_policy()
    obs = np.random.default_rng(0).normal(size=(5, 3)).astype(np.float32)
    noise = th.randn(5, 1).numpy() if has_noise else None
    actions = AntitheticPairs(6).sample(actor_class(policy), obs, noise).actions
    means = policy.get_distribution(th.as_tensor(obs)).mode().detach().numpy()
    assert actions.shape == (5, 6, 1)
    np.testing.assert_allclose(actions[:, :3] + actions[:, 3:], np.repeat(2 * means[:, None], 3, axis=1), atol=1e-6)
    assert len(np.unique(actions[:, :3].round(5))) == 15
    if noise is not None:
        np.testing.assert_allclose(actions[:, 0], means + policy.log_std.exp().item() * noise, rtol=1e-5)


@pytest.mark.parametrize("actor_class", [Actor, make_actor])
def test_enumeration_commits_a_sample_of_the_policy(actor_class):
    policy = make_policy("Acrobot-v1")
    obs = np.random.default_rng(0).normal(size=(4000, 6)).astype(np.float32)
    actions = Enumeration(3).sample(actor_class(policy), obs, None).actions
    np.testing.assert_array_equal(np.sort(actions, axis=1), np.tile(np.arange(3), (4000, 1)))
    probs = policy.get_distribution(th.as_tensor(obs)).distribution.probs.mean(dim=0).detach().numpy()
    np.testing.assert_allclose(np.bincount(actions[:, 0]) / 4000, probs, atol=0.03)


def choose(name, n_samples=4, advantage="hybrid", space=None, policy_class=ActorCriticPolicy, use_sde=False, temperature=1.0):
    space = spaces.Discrete(3) if space is None else space
    return make_action_sampling(name, n_samples, advantage, policy_class, space, use_sde, temperature)


class OwnForward(ActorCriticPolicy):
    def forward(self, obs, deterministic=False):
        return super().forward(obs, deterministic)


BOX = spaces.Box(-1, 1, (2,))


@pytest.mark.parametrize(
    ("kwargs", "name", "group_size"),
    [
        ({}, "enumerate", 3),
        ({"n_samples": 3}, "enumerate", 3),
        ({"n_samples": 2}, "iid", 2),
        ({"advantage": "averaged"}, "iid", 4),
        ({"advantage": "group_normalized"}, "iid", 4),
        ({"space": BOX}, "iid", 4),
        ({"space": spaces.MultiBinary(2)}, "iid", 4),
        ({"space": spaces.Discrete(1), "n_samples": 1}, "iid", 1),
        ({"policy_class": OwnForward}, "iid", 4),
        ({"temperature": 2.0}, "tempered", 4),
        ({"temperature": 2.0, "space": BOX, "n_samples": 2}, "tempered", 2),
    ],
)
def test_auto_enumerates_where_that_is_exact(kwargs, name, group_size):
    sampling = choose("auto", **kwargs)
    assert (sampling.name, sampling.group_size) == (name, group_size)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"name": "stratified"}, "Unknown action_sampling 'stratified'"),
        ({"name": "enumerate", "n_samples": 2}, "n_samples=2 does not suffice for 3 actions"),
        ({"name": "enumerate", "space": BOX}, "only the actions of a Discrete space"),
        ({"name": "enumerate", "advantage": "averaged"}, "'averaged' is defined for independent samples"),
        ({"name": "enumerate", "policy_class": OwnForward}, "OwnForward samples in a `forward` of its own"),
        ({"name": "antithetic"}, "mean of a Gaussian policy"),
        ({"name": "antithetic", "space": BOX, "use_sde": True}, "without gSDE"),
        ({"name": "antithetic", "space": BOX, "n_samples": 3}, "even number of samples, not n_samples=3"),
        ({"name": "antithetic", "space": BOX, "advantage": "averaged"}, "'averaged' is defined for independent samples"),
        ({"name": "auto", "temperature": 0.5}, "below 1 the importance weights have no bound"),
        ({"name": "enumerate", "temperature": 2.0}, "action_sampling='enumerate' chooses the actions otherwise"),
        ({"name": "auto", "temperature": 2.0, "n_samples": 1}, "with n_samples=1 there is no other"),
        ({"name": "auto", "temperature": 2.0, "advantage": "averaged"}, "'averaged' is defined for independent samples"),
        ({"name": "auto", "temperature": 2.0, "policy_class": OwnForward}, "OwnForward samples in a `forward` of its own"),
        ({"name": "auto", "temperature": 2.0, "use_sde": True}, "gSDE has no temperature"),
    ],
)
def test_impossible_sampling_is_refused(kwargs, message):
    with pytest.raises(InvalidArgumentError, match=message):
        choose(**kwargs)


@pytest.mark.parametrize("horizon", [1, 3])
def test_enumerated_rollout_branches_every_other_action_once(horizon):
    model = HybridGRPO("MlpPolicy", "CartPole-v1", n_steps=64, n_samples=8, branch_horizon=horizon, seed=0)
    model.learn(64)
    buffer = model.rollout_buffer
    assert buffer.n_samples == 2
    assert model.num_simulator_steps <= 64 * (1 + horizon)
    np.testing.assert_allclose(buffer.weights.sum(axis=-1), 1, rtol=1e-6)
    np.testing.assert_allclose(buffer.weights, np.exp(buffer.log_probs), rtol=1e-5)
    actions = buffer.actions.reshape(-1, 2)
    np.testing.assert_array_equal(actions[:, 1], 1 - actions[:, 0])


@pytest.mark.parametrize(
    "space",
    [BOX, spaces.Discrete(3), spaces.MultiDiscrete([2, 3]), spaces.MultiBinary(3)],
    ids=lambda space: type(space).__name__,
)
def test_tempered_rollout(space):
    """The committed action is the policy's own; the importance weights of the others are π/q."""
    temperature = 2.0
    model = HybridGRPO(
        "MlpPolicy", Walk(action_space=space), n_steps=256, n_samples=3, branch_horizon=2, n_epochs=1, learning_rate=0.0,
        sampling_temperature=temperature, policy_kwargs={"ortho_init": False}, seed=0, device="cpu",
    )  # fmt: skip
    model.learn(256)
    buffer = model.rollout_buffer
    log_weights = buffer.log_weights.reshape(-1, 3)
    assert (log_weights[:, 0] == 0).all()
    np.testing.assert_allclose(np.exp(log_weights).mean(axis=0), 1, atol=0.1)
    np.testing.assert_allclose(buffer.weights, np.exp(log_weights) / 3, rtol=1e-5)
    obs = th.as_tensor(buffer.observations)
    actions = th.as_tensor(buffer.actions.astype(np.float32).reshape(-1, 3, buffer.action_dim))
    distribution = model.policy.get_distribution(obs).distribution
    for i in (1, 2):
        np.testing.assert_allclose(log_weights[:, i], naive_log_weights(distribution, actions[:, i], temperature), atol=1e-4)
    # Farther away from the mean, or less likely, than what the policy would do
    assert buffer.log_probs.reshape(-1, 3)[:, 1:].mean() < buffer.log_probs.reshape(-1, 3)[:, 0].mean()


def naive_log_weights(distribution, actions, temperature):
    if isinstance(distribution, th.distributions.Normal):
        wider = th.distributions.Normal(distribution.mean, distribution.stddev * temperature**0.5)
        return (distribution.log_prob(actions) - wider.log_prob(actions)).sum(dim=-1).detach()
    parts = distribution if isinstance(distribution, list) else [distribution]
    if isinstance(parts[0], th.distributions.Bernoulli):
        parts = [th.distributions.Bernoulli(logits=logits) for logits in parts[0].logits.unbind(dim=1)]
    result = 0
    for part, action in zip(parts, actions.unbind(dim=1), strict=True):
        tempered = type(part)(logits=part.logits / temperature)
        result = result + part.log_prob(action) - tempered.log_prob(action)
    return result.detach()


def test_sampling_survives_a_checkpoint(tmp_path):
    model = HybridGRPO("MlpPolicy", Walk(), n_steps=32, batch_size=32, n_samples=4, sampling_temperature=1.5, seed=0)
    model.learn(32)
    model.save(tmp_path / "model")
    loaded = HybridGRPO.load(tmp_path / "model", env=Walk())
    assert loaded.rollout_buffer.action_sampling == "tempered"
    loaded.learn(32)
    assert loaded.rollout_buffer.n_samples == 4


def test_antithetic_pairs_learn():
    model = HybridGRPO(
        "MlpPolicy", "Pendulum-v1", n_steps=64, n_samples=4, branch_horizon=1, action_sampling="antithetic", seed=0
    )
    model.learn(128)
    assert np.isfinite(model.rollout_buffer.advantages).all()
    assert model.num_simulator_steps == 4 * 128
