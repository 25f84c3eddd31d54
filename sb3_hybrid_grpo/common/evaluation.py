"""Log-probabilities and values from few large passes through SB3's policies."""

from collections.abc import Iterator
from typing import Any, ClassVar

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.distributions import Distribution
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.type_aliases import PyTorchObs
from stable_baselines3.common.utils import obs_as_tensor

from sb3_hybrid_grpo.common.buffers import MultiSampleMixin
from sb3_hybrid_grpo.common.heads import HEADS
from sb3_hybrid_grpo.common.maskable import is_maskable, masking, overrides_forward, stock_class
from sb3_hybrid_grpo.common.type_aliases import InvalidArgumentError, Observations

_CHUNK_BYTES = 2**24
_MAX_CHUNK = 4096


def log_probs(distribution: Distribution, actions: th.Tensor) -> th.Tensor:
    """
    Evaluate N actions at each of B states.

    :param distribution: the policy's distribution at B states
    :param actions: actions, [B, N, \\*action_dims]
    :return: log-probabilities, [B, N]
    """
    return th.stack([distribution.log_prob(sample) for sample in actions.transpose(0, 1)], dim=1)


def evaluate_actions(
    policy: ActorCriticPolicy, obs: PyTorchObs, actions: th.Tensor, action_masks: np.ndarray | th.Tensor | None = None
) -> tuple[th.Tensor, th.Tensor, th.Tensor | None]:
    """
    Evaluate N actions at each of B states with the current policy, from one actor and one critic pass where possible.

    :param policy: the policy
    :param obs: states
    :param actions: actions as the buffer keeps them, [B, N, action_dim]
    :param action_masks: which actions are valid, [B, M], for a maskable policy
    :return: values [B], log-probabilities [B, N] and entropies [B] (``None`` if they have no closed form)
    """
    if keeps_distribution(policy) and type(policy.action_dist) in HEADS:
        values, outputs = _predict_outputs(policy, obs)
        return values, *HEADS[type(policy.action_dist)](policy).evaluate(outputs, actions)
    if isinstance(policy.action_space, spaces.Discrete):
        actions = actions.long().squeeze(dim=-1)
    if not keeps_distribution(policy):
        evaluations = [policy.evaluate_actions(obs, sample, **masking(action_masks)) for sample in actions.transpose(0, 1)]
        values, log_prob, entropy = evaluations[0]
        others = [evaluation[1] for evaluation in evaluations[1:]]
        return values.flatten(), th.stack([log_prob, *others], dim=1), entropy
    values, _, entropy = policy.evaluate_actions(obs, actions[:, 0], **masking(action_masks))
    return values.flatten(), log_probs(policy.action_dist, actions), entropy


def keeps_distribution(policy: ActorCriticPolicy) -> bool:
    """
    Tell whether a policy's ``evaluate_actions`` leaves the distribution in ``action_dist``, as SB3's own policies do.

    :param policy: the policy
    :return: whether it does
    """
    return all(
        getattr(type(policy), name) is getattr(stock_class(type(policy)), name)
        for name in ("evaluate_actions", "_get_action_dist_from_latent")
    )


def _predict_outputs(policy: ActorCriticPolicy, obs: PyTorchObs) -> tuple[th.Tensor, th.Tensor]:
    features: Any = policy.extract_features(obs)
    if policy.share_features_extractor:
        latent_pi, latent_vf = policy.mlp_extractor(features)
    else:
        latent_pi = policy.mlp_extractor.forward_actor(features[0])
        latent_vf = policy.mlp_extractor.forward_critic(features[1])
    return policy.value_net(latent_vf).flatten(), policy.action_net(latent_pi)


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


def evaluate_rollout(policy: ActorCriticPolicy, buffer: MultiSampleMixin, with_values: bool = True) -> None:
    """
    Fill the buffer's log-probabilities, entropies and values, in few large batches.

    :param policy: the policy that collected the rollout
    :param buffer: a rollout whose ``values`` and ``log_probs`` are still missing
    :param with_values: whether values are needed
    """
    for rows in _chunks(buffer):
        obs = obs_as_tensor(flatten_observations(buffer.observations, rows), policy.device)  # type: ignore[arg-type]
        actions = buffer.to_torch(buffer.actions[rows].astype(np.float32, copy=False)).flatten(end_dim=1)
        all_masks = buffer.action_masks
        masks = None if all_masks is None else all_masks[rows].reshape(-1, all_masks.shape[-1])
        with th.no_grad():
            values, log_prob, entropy = evaluate_actions(policy, obs, actions, masks)
        if with_values:
            buffer.values[rows] = values.cpu().numpy().reshape(-1, buffer.n_envs)
        if entropy is not None:
            buffer.entropies[rows] = entropy.cpu().numpy().reshape(-1, buffer.n_envs)
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


def select_observations(observations: Observations, mask: np.ndarray) -> Observations:
    """
    Pick observations.

    :param observations: observations, [E, n, \\*obs_shape] or a dict of such arrays
    :param mask: which of them, [E, n]
    :return: M observations, [M, \\*obs_shape] or a dict of such arrays
    """
    if isinstance(observations, dict):
        return {key: part[mask] for key, part in observations.items()}
    assert isinstance(observations, np.ndarray)
    return np.asarray(observations[mask])


class DeferredValues:
    """
    Values of next observations, computed in large batches so that none is kept for long.

    ``into`` is the buffer's array for them.

    :param policy: the policy that is asked
    """

    into: ClassVar[str] = "branch_next_values"

    def __init__(self, policy: ActorCriticPolicy) -> None:
        self.policy = policy
        self._chunk_size = chunk_size(policy.observation_space)
        self._observations: list[Observations] = []
        self._destinations: list[tuple[np.ndarray, np.ndarray]] = []
        self._n_pending = 0

    def write(self, observations: Observations, destination: np.ndarray, mask: np.ndarray) -> None:
        """
        Ask for values.

        :param observations: M observations, [M, \\*obs_shape] or a dict of such arrays
        :param destination: array that gets their values, at the latest on ``flush``
        :param mask: its M places where they go
        """
        self._observations.append(observations)
        self._destinations.append((destination, mask))
        self._n_pending += int(mask.sum())
        if self._n_pending >= self._chunk_size:
            self.flush()

    def flush(self) -> None:
        """Write all values that are still due."""
        if not self._destinations:
            return
        obs = obs_as_tensor(_join(self._observations), self.policy.device)  # type: ignore[arg-type]
        with th.no_grad():
            values = self.evaluate(obs).cpu().numpy().ravel()
        start = 0
        for destination, mask in self._destinations:
            end = start + int(mask.sum())
            destination[mask] = values[start:end]
            start = end
        self._observations, self._destinations, self._n_pending = [], [], 0

    def evaluate(self, obs: PyTorchObs) -> th.Tensor:
        """
        Evaluate the policy.

        :param obs: observations
        :return: what is asked for, [B] or [B, 1]
        """
        return self.policy.predict_values(obs)


class DeferredEntropies(DeferredValues):
    """Entropies of the policy at next observations, see ``DeferredValues``."""

    into = "branch_next_entropies"

    def evaluate(self, obs: PyTorchObs) -> th.Tensor:
        """
        Evaluate the policy.

        :param obs: observations
        :return: entropies, [B]
        """
        entropies = self.policy.get_distribution(obs).entropy()
        assert entropies is not None
        return entropies


def check_entropies(policy: ActorCriticPolicy, horizon: int) -> None:
    """
    Check that the entropies of a policy are known wherever a branch leads.

    :param policy: the policy
    :param horizon: number of steps of a branch
    :raises InvalidArgumentError: if they are not
    """
    obstacle = None
    if policy.squash_output:
        obstacle = "the entropy of a squashed distribution has no closed form"
    elif overrides_forward(type(policy)):
        obstacle = f"{type(policy).__name__} samples in a `forward` of its own"
    elif horizon > 1 and is_maskable(type(policy)):
        obstacle = "what is valid at the end of a branch is unknown. Use branch_horizon=1"
    if obstacle is not None:
        raise InvalidArgumentError(f"soft_values=True is not possible: {obstacle}.")


def _join(parts: list[Observations]) -> Observations:
    first = parts[0]
    if isinstance(first, dict):
        return {key: _join([part[key] for part in parts]) for key in first}  # type: ignore[misc, call-overload]
    return np.concatenate(parts)  # type: ignore[arg-type]
