"""N actions per state from SB3's policies, with or without noise that branches share."""

import math
from copy import deepcopy
from typing import Any

import numpy as np
import torch as th
from gymnasium import spaces
from sb3_contrib.common.maskable.distributions import MaskableCategoricalDistribution, MaskableMultiCategoricalDistribution
from stable_baselines3.common.distributions import (
    BernoulliDistribution,
    CategoricalDistribution,
    DiagGaussianDistribution,
    Distribution,
    MultiCategoricalDistribution,
    StateDependentNoiseDistribution,
)
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.type_aliases import PyTorchObs

from sb3_hybrid_grpo.common import InvalidArgumentError
from sb3_hybrid_grpo.policies.maskable import class_of, is_maskable, is_recurrent, masking, overrides_forward, stock_class


def sample_actions(distribution: Distribution, n_samples: int) -> th.Tensor:
    """
    Sample actions at each of E states.

    With gSDE the samples of a state are distinct if the noise was reset for E · N of them.

    :param distribution: the policy's distribution at E states
    :param n_samples: number of samples N
    :return: actions, [E, N, \\*action_dims]
    """
    if not isinstance(distribution, StateDependentNoiseDistribution):
        return th.stack([distribution.sample() for _ in range(n_samples)], dim=1)
    means = distribution.distribution.mean.repeat_interleave(n_samples, dim=0)
    actions = means + distribution.get_noise(distribution._latent_sde.repeat_interleave(n_samples, dim=0))
    if distribution.bijector is not None:
        actions = distribution.bijector.forward(actions)
    return actions.reshape(-1, n_samples, actions.shape[-1])


def sample_tempered(distribution: Distribution, n_samples: int, temperature: float) -> tuple[th.Tensor, th.Tensor]:
    """
    Sample actions at each of E states from the policy with another temperature.

    q(a) ∝ π(a)^(1/T),    ω = π(a) / q(a)

    For a Gaussian policy q has √T times the standard deviation, and log ω = ½ A log T - ½ (T-1) |z|² with the noise z of A
    dimensions; for a discrete one the logits are divided by T. With T > 1 the weights ω are bounded, by T^(A/2) or by the
    ratio of the normalising sums.

    :param distribution: the policy's distribution π at E states
    :param n_samples: number of samples n
    :param temperature: T
    :return: actions, [E, n, \\*action_dims], and log ω, [E, n]
    :raises InvalidArgumentError: if it is unknown how the distribution depends on a temperature
    """
    if type(distribution) is DiagGaussianDistribution:
        normal = distribution.distribution
        noise = th.randn(len(normal.mean), n_samples, distribution.action_dim).to(normal.mean)
        actions = normal.mean[:, None] + temperature**0.5 * normal.stddev[:, None] * noise
        log_weights = 0.5 * (math.log(temperature) - (temperature - 1) * noise.square()).sum(dim=-1)
        return actions, log_weights
    if isinstance(distribution, CategoricalDistribution | MaskableCategoricalDistribution):
        return _temper(distribution.distribution, n_samples, temperature)
    if isinstance(distribution, MultiCategoricalDistribution | MaskableMultiCategoricalDistribution):
        parts = [_temper(part, n_samples, temperature) for part in _parts(distribution)]
        actions, log_weights = (th.stack(tensors, dim=-1) for tensors in zip(*parts, strict=True))
        return actions, log_weights.sum(dim=-1)
    if isinstance(distribution, BernoulliDistribution):
        actions, log_weights = _temper(distribution.distribution, n_samples, temperature)
        return actions, log_weights.sum(dim=-1)
    raise InvalidArgumentError(
        f"How {type(distribution).__name__} depends on a temperature is unknown: use sampling_temperature=1."
    )


def _temper(policy: Any, n_samples: int, temperature: float) -> tuple[th.Tensor, th.Tensor]:
    proposal = type(policy)(logits=policy.logits / temperature)
    actions = proposal.sample((n_samples,))
    log_weights = policy.log_prob(actions) - proposal.log_prob(actions)
    return actions.transpose(0, 1), log_weights.transpose(0, 1)


def draw_noise(distribution: Distribution, n_states: int) -> np.ndarray:
    """
    Draw what ``actions_from_noise`` turns into a sample of the policy at each of E states.

    Standard normal numbers for Gaussian policies, uniform ones for discrete policies. With gSDE the noise is that of the
    first sample of each state, the same until the matrices are reset.

    :param distribution: the policy's ``action_dist``
    :param n_states: number of states E
    :return: noise, [E, \\*noise_dims]
    :raises InvalidArgumentError: if the distribution is none of SB3's
    """
    if isinstance(distribution, StateDependentNoiseDistribution):
        matrices = distribution.exploration_matrices.detach().cpu().numpy()
        return matrices.reshape(n_states, -1, *matrices.shape[1:])[:, 0]
    if type(distribution) is DiagGaussianDistribution:
        return th.randn(n_states, distribution.action_dim).numpy()
    if isinstance(distribution, CategoricalDistribution | MaskableCategoricalDistribution):
        return th.rand(n_states).numpy()
    if isinstance(distribution, MultiCategoricalDistribution | MaskableMultiCategoricalDistribution):
        return th.rand(n_states, len(distribution.action_dims)).numpy()
    if isinstance(distribution, BernoulliDistribution):
        return th.rand(n_states, distribution.action_dims).numpy()
    raise InvalidArgumentError(
        f"Branches of several steps share the policy's noise, and how {type(distribution).__name__} turns noise into actions "
        "is unknown: use a policy with one of SB3's distributions, or branch_horizon=1."
    )


@th.no_grad()
def check_distribution(policy: ActorCriticPolicy) -> None:
    """
    Check, for one observation, that a policy with a ``get_distribution`` of its own is judged by what it samples from.

    :param policy: the policy
    :raises InvalidArgumentError: if its ``evaluate_actions`` has other log-probabilities
    """
    cls = class_of(policy)
    if is_recurrent(cls) or is_maskable(cls) or cls.get_distribution is stock_class(cls).get_distribution:
        return
    space = deepcopy(policy.observation_space)
    space.seed(0)
    was_training = policy.training
    policy.set_training_mode(False)
    obs, _ = policy.obs_to_tensor(space.sample())
    distribution = policy.get_distribution(obs)
    actions = distribution.get_actions(deterministic=True)
    sampled, judged = distribution.log_prob(actions), policy.evaluate_actions(obs, actions)[1]
    policy.set_training_mode(was_training)
    if not th.allclose(sampled, judged, rtol=1e-3, atol=1e-3):
        raise InvalidArgumentError(
            f"{cls.__name__} samples from its own `get_distribution`, and its `evaluate_actions` judges the actions by "
            "another one. Override `_get_action_dist_from_latent` instead, which SB3's own methods use, or `evaluate_actions` "
            "as well."
        )


def check_common_noise(policy: ActorCriticPolicy) -> None:
    """
    Check that branches can share the policy's noise.

    :param policy: the policy
    :raises InvalidArgumentError: if it turns noise into actions in a way of its own
    """
    draw_noise(policy.action_dist, 1)
    if overrides_forward(class_of(policy)):
        raise InvalidArgumentError(
            f"Branches of several steps share the policy's noise, but {class_of(policy).__name__} samples in a `forward` of "
            "its own: override `_get_action_dist_from_latent` instead, or use branch_horizon=1."
        )


def actions_from_noise(distribution: Distribution, given_noise: np.ndarray | th.Tensor) -> th.Tensor:
    """
    Sample the policy at B states with given noise: equal noise gives equal actions at equal states.

    :param distribution: the policy's distribution at B states
    :param given_noise: what ``draw_noise`` returned for the states, [B, \\*noise_dims]
    :return: actions, [B, \\*action_dims]
    """
    noise = th.as_tensor(given_noise, device=_parameters_of(distribution).device)
    if isinstance(distribution, StateDependentNoiseDistribution):
        actions = distribution.distribution.mean + th.einsum("bf,bfa->ba", distribution._latent_sde, noise)
        return actions if distribution.bijector is None else distribution.bijector.forward(actions)
    if isinstance(distribution, DiagGaussianDistribution):
        return distribution.distribution.mean + distribution.distribution.stddev * noise
    if isinstance(distribution, CategoricalDistribution | MaskableCategoricalDistribution):
        return _inverse_cdf(distribution.distribution.probs, noise)
    if isinstance(distribution, MultiCategoricalDistribution | MaskableMultiCategoricalDistribution):
        parts = zip(_parts(distribution), noise.unbind(dim=1), strict=True)
        return th.stack([_inverse_cdf(part.probs, part_noise) for part, part_noise in parts], dim=1)
    assert isinstance(distribution, BernoulliDistribution)
    return (noise < distribution.distribution.probs).float()


def _parts(distribution: Any) -> list[Any]:
    return distribution.distributions if hasattr(distribution, "distributions") else distribution.distribution  # type: ignore[no-any-return]


def _parameters_of(distribution: Any) -> th.Tensor:
    inner = _parts(distribution)
    parameters = inner[0].probs if isinstance(inner, list) else inner.mean
    return parameters  # type: ignore[no-any-return]


def _inverse_cdf(probs: th.Tensor, uniforms: th.Tensor) -> th.Tensor:
    """Return the class at which the cumulative probability passes the uniform number, [B]: none of probability zero."""
    cumulative = probs.cumsum(dim=-1)
    passed = (cumulative <= uniforms[:, None]) & (cumulative < cumulative[:, -1:])
    return passed.sum(dim=-1)


def forward_samples(
    policy: ActorCriticPolicy, obs: PyTorchObs, n_samples: int, action_masks: np.ndarray | None = None
) -> tuple[th.Tensor, th.Tensor, th.Tensor]:
    """
    Sample actions at each of E states by ``policy.forward``, with every state repeated N times.

    :param policy: the policy
    :param obs: states
    :param n_samples: number of samples N
    :param action_masks: which actions are valid, [E, M]
    :return: actions [E, N, \\*action_dims], values [E] and log-probabilities [E, N]
    """
    if isinstance(obs, dict):
        repeated: PyTorchObs = {key: part.repeat_interleave(n_samples, dim=0) for key, part in obs.items()}
    else:
        repeated = obs.repeat_interleave(n_samples, dim=0)
    repeated_masks = None if action_masks is None else action_masks.repeat(n_samples, axis=0)
    actions, values, log_prob = policy(repeated, **masking(repeated_masks))
    actions = actions.reshape(-1, n_samples, *actions.shape[1:])
    return actions, values.reshape(-1, n_samples)[:, 0], log_prob.reshape(-1, n_samples)


def first_occurrences(actions: np.ndarray) -> np.ndarray:
    """
    Find actions that were sampled more than once at a state.

    :param actions: sampled actions of a discrete kind, [E, N, \\*action_shape]
    :return: index of the first equal action of the same state, [E, N]
    """
    flat = actions.reshape(*actions.shape[:2], -1)
    is_equal = (flat[:, :, None] == flat[:, None]).all(axis=-1)
    return np.asarray(is_equal.argmax(axis=-1))


def to_env_actions(policy: ActorCriticPolicy, actions: np.ndarray) -> np.ndarray:
    """
    Bring sampled actions into the bounds of the action space, as SB3 does before a step.

    :param policy: the policy that sampled them
    :param actions: sampled actions, [E, N, \\*action_shape]
    :return: actions for the environment, same shape
    """
    if not isinstance(policy.action_space, spaces.Box):
        return actions
    if policy.squash_output:
        actions = policy.unscale_action(actions)
    else:
        actions = np.clip(actions, policy.action_space.low, policy.action_space.high)
    return actions
