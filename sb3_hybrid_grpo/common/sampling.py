"""N actions per state from SB3's policies, and their log-probabilities from one actor pass."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch as th
from gymnasium import spaces
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
from stable_baselines3.common.utils import obs_as_tensor

from sb3_hybrid_grpo.common.buffers import MultiSampleMixin
from sb3_hybrid_grpo.common.type_aliases import InvalidArgumentError, Observations

_CHUNK_BYTES = 2**24
_MAX_CHUNK = 4096


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


def draw_noise(distribution: Distribution, n_states: int) -> th.Tensor:
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
        matrices = distribution.exploration_matrices
        return matrices.reshape(n_states, -1, *matrices.shape[1:])[:, 0]
    if type(distribution) is DiagGaussianDistribution:
        return th.randn(n_states, distribution.action_dim)
    if isinstance(distribution, CategoricalDistribution):
        return th.rand(n_states)
    if isinstance(distribution, MultiCategoricalDistribution):
        return th.rand(n_states, len(distribution.action_dims))
    if isinstance(distribution, BernoulliDistribution):
        return th.rand(n_states, distribution.action_dims)
    raise InvalidArgumentError(
        f"Branches of several steps share the policy's noise, and how {type(distribution).__name__} turns noise into actions "
        "is unknown: use a policy with one of SB3's distributions, or branch_horizon=1."
    )


def check_common_noise(policy: ActorCriticPolicy) -> None:
    """
    Check that branches can share the policy's noise.

    :param policy: the policy
    :raises InvalidArgumentError: if it turns noise into actions in a way of its own
    """
    draw_noise(policy.action_dist, 1)
    if overrides_forward(policy):
        raise InvalidArgumentError(
            f"Branches of several steps share the policy's noise, but {type(policy).__name__} samples in a `forward` of its "
            "own: override `get_distribution` instead, or use branch_horizon=1."
        )


def actions_from_noise(distribution: Distribution, noise: th.Tensor) -> th.Tensor:
    """
    Sample the policy at B states with given noise: equal noise gives equal actions at equal states.

    :param distribution: the policy's distribution at B states
    :param noise: what ``draw_noise`` returned for the states, [B, \\*noise_dims]
    :return: actions, [B, \\*action_dims]
    """
    noise = noise.to(_parameters_of(distribution).device)
    if isinstance(distribution, StateDependentNoiseDistribution):
        actions = distribution.distribution.mean + th.einsum("bf,bfa->ba", distribution._latent_sde, noise)
        return actions if distribution.bijector is None else distribution.bijector.forward(actions)
    if isinstance(distribution, DiagGaussianDistribution):
        return distribution.distribution.mean + distribution.distribution.stddev * noise
    if isinstance(distribution, CategoricalDistribution):
        return _inverse_cdf(distribution.distribution.probs, noise)
    if isinstance(distribution, MultiCategoricalDistribution):
        parts = zip(distribution.distribution, noise.unbind(dim=1), strict=True)
        return th.stack([_inverse_cdf(part.probs, part_noise) for part, part_noise in parts], dim=1)
    assert isinstance(distribution, BernoulliDistribution)
    return (noise < distribution.distribution.probs).float()


def _parameters_of(distribution: Any) -> th.Tensor:
    inner = distribution.distribution
    parameters = inner[0].probs if isinstance(inner, list) else inner.mean
    return parameters  # type: ignore[no-any-return]


def _inverse_cdf(probs: th.Tensor, uniforms: th.Tensor) -> th.Tensor:
    """Return the class at which the cumulative probability passes the uniform number, [B]."""
    passed = probs.cumsum(dim=-1) <= uniforms[:, None]
    return passed.sum(dim=-1).clamp(max=probs.shape[-1] - 1)


def overrides_forward(policy: ActorCriticPolicy) -> bool:
    """
    Tell whether a policy brings a ``forward`` of its own, which SB3 lets decide about actions, values and log-probabilities.

    :param policy: the policy
    :return: whether rollouts must call it
    """
    return type(policy).forward is not ActorCriticPolicy.forward


def forward_samples(policy: ActorCriticPolicy, obs: PyTorchObs, n_samples: int) -> tuple[th.Tensor, th.Tensor, th.Tensor]:
    """
    Sample actions at each of E states by ``policy.forward``, with every state repeated N times.

    :param policy: the policy
    :param obs: states
    :param n_samples: number of samples N
    :return: actions [E, N, \\*action_dims], values [E] and log-probabilities [E, N]
    """
    if isinstance(obs, dict):
        repeated: PyTorchObs = {key: part.repeat_interleave(n_samples, dim=0) for key, part in obs.items()}
    else:
        repeated = obs.repeat_interleave(n_samples, dim=0)
    actions, values, log_prob = policy(repeated)
    actions = actions.reshape(-1, n_samples, *actions.shape[1:])
    return actions, values.reshape(-1, n_samples)[:, 0], log_prob.reshape(-1, n_samples)


def log_probs(distribution: Distribution, actions: th.Tensor) -> th.Tensor:
    """
    Evaluate N actions at each of B states.

    :param distribution: the policy's distribution at B states
    :param actions: actions, [B, N, \\*action_dims]
    :return: log-probabilities, [B, N]
    """
    samples = actions.transpose(0, 1)
    if type(distribution) is DiagGaussianDistribution:
        log_prob: th.Tensor = distribution.distribution.log_prob(samples)  # type: ignore[no-untyped-call]
        return log_prob.sum(dim=-1).T
    if type(distribution) is CategoricalDistribution:
        log_prob = distribution.distribution.log_prob(samples)  # type: ignore[no-untyped-call]
        return log_prob.T
    return th.stack([distribution.log_prob(sample) for sample in samples], dim=1)


def evaluate_actions(
    policy: ActorCriticPolicy, obs: PyTorchObs, actions: th.Tensor
) -> tuple[th.Tensor, th.Tensor, th.Tensor | None]:
    """
    Evaluate N actions at each of B states with the current policy, from one actor and one critic pass where possible.

    :param policy: the policy
    :param obs: states
    :param actions: actions as the buffer keeps them, [B, N, action_dim]
    :return: values [B], log-probabilities [B, N] and entropies [B] (``None`` if they have no closed form)
    """
    if isinstance(policy.action_space, spaces.Discrete):
        actions = actions.long().squeeze(dim=-1)
    values, log_prob, entropy = policy.evaluate_actions(obs, actions[:, 0])
    if actions.shape[1] == 1:
        return values.flatten(), log_prob[:, None], entropy
    if _keeps_distribution(policy):
        return values.flatten(), log_probs(policy.action_dist, actions), entropy
    others = [policy.evaluate_actions(obs, sample)[1] for sample in actions.transpose(0, 1)[1:]]
    return values.flatten(), th.stack([log_prob, *others], dim=1), entropy


def _keeps_distribution(policy: ActorCriticPolicy) -> bool:
    """Tell whether ``evaluate_actions`` leaves the distribution in ``action_dist``, as SB3's own policies do."""
    return all(
        getattr(type(policy), name) is getattr(ActorCriticPolicy, name)
        for name in ("evaluate_actions", "_get_action_dist_from_latent")
    )


def predict_values_only(policy: ActorCriticPolicy, obs: PyTorchObs) -> th.Tensor:
    """
    Predict values such that a gradient step on them leaves the actor as it is: shared features are constants.

    :param policy: the policy
    :param obs: states
    :return: values, [B]
    """
    if not policy.share_features_extractor:
        return policy.predict_values(obs).flatten()
    features = policy.extract_features(obs)
    assert isinstance(features, th.Tensor)
    return policy.value_net(policy.mlp_extractor.forward_critic(features.detach())).flatten()  # type: ignore[no-any-return]


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


def evaluate_rollout(policy: ActorCriticPolicy, buffer: MultiSampleMixin, with_values: bool = True) -> None:
    """
    Fill the buffer's log-probabilities and values, in few large batches.

    :param policy: the policy that collected the rollout
    :param buffer: a rollout whose ``values`` and ``log_probs`` are still missing
    :param with_values: whether values are needed
    """
    for rows in _chunks(buffer):
        obs = obs_as_tensor(flatten_observations(buffer.observations, rows), policy.device)  # type: ignore[arg-type]
        actions = buffer.to_torch(buffer.actions[rows].astype(np.float32, copy=False)).flatten(end_dim=1)
        with th.no_grad():
            values, log_prob, _ = evaluate_actions(policy, obs, actions)
        if with_values:
            buffer.values[rows] = values.cpu().numpy().reshape(-1, buffer.n_envs)
        buffer.log_probs[rows] = log_prob.cpu().numpy().reshape(-1, buffer.n_envs, buffer.n_samples)


def _chunks(buffer: MultiSampleMixin) -> Iterator[slice]:
    size = max(chunk_size(buffer.observation_space) // buffer.n_envs, 1)
    return (slice(start, start + size) for start in range(0, buffer.buffer_size, size))


def chunk_size(space: spaces.Space[Any]) -> int:
    """
    Return how many observations the networks get at once.

    :param space: observation space
    :return: a number of observations that fit into a few megabytes
    """
    return int(np.clip(_CHUNK_BYTES // (4 * spaces.flatdim(space)), 1, _MAX_CHUNK))


def flatten_observations(observations: Observations, rows: slice = slice(None)) -> Observations:
    """
    Merge the first two axes of observations.

    :param observations: observations, [T, E, \\*obs_shape] or a dict of such arrays
    :param rows: rows to select first
    :return: observations, [T · E, \\*obs_shape] or a dict of such arrays
    """
    if isinstance(observations, dict):
        return {key: flatten_observations(part, rows) for key, part in observations.items()}  # type: ignore[misc]
    assert isinstance(observations, np.ndarray)
    selected = observations[rows]
    return selected.reshape(-1, *selected.shape[2:])


class DeferredValues:
    """
    Values of next observations, computed in large batches so that none is kept for long.

    :param policy: the policy whose critic is asked
    """

    def __init__(self, policy: ActorCriticPolicy) -> None:
        self.policy = policy
        self._chunk_size = chunk_size(policy.observation_space)
        self._observations: list[Observations] = []
        self._destinations: list[np.ndarray] = []
        self._n_pending = 0

    def write(self, observations: Observations, destination: np.ndarray) -> None:
        """
        Ask for values.

        :param observations: observations, [E, n, \\*obs_shape] or a dict of such arrays
        :param destination: array that gets their values, at the latest on ``flush``, [E, n]
        """
        self._observations.append(observations)
        self._destinations.append(destination)
        self._n_pending += destination.size
        if self._n_pending >= self._chunk_size:
            self.flush()

    def flush(self) -> None:
        """Write all values that are still due."""
        if not self._destinations:
            return
        obs = obs_as_tensor(_join(self._observations), self.policy.device)  # type: ignore[arg-type]
        with th.no_grad():
            values = self.policy.predict_values(obs).cpu().numpy().ravel()
        start = 0
        for destination in self._destinations:
            destination[...] = values[start : start + destination.size].reshape(destination.shape)
            start += destination.size
        self._observations, self._destinations, self._n_pending = [], [], 0


def _join(parts: list[Observations]) -> Observations:
    first = parts[0]
    if isinstance(first, dict):
        return {key: _join([part[key] for part in parts]) for key in first}  # type: ignore[misc, call-overload]
    return np.concatenate([part.reshape(-1, *part.shape[2:]) for part in parts])  # type: ignore[union-attr]
