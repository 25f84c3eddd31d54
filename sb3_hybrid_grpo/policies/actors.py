"""The policy of a rollout, which stands still: what only the actor does at each step, and as fast as it can be done."""

import copy
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import torch as th
from gymnasium import spaces
from sb3_contrib.common.recurrent.type_aliases import RNNStates
from stable_baselines3.common.distributions import CategoricalDistribution, DiagGaussianDistribution, Distribution
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.preprocessing import is_image_space
from stable_baselines3.common.torch_layers import FlattenExtractor, MlpExtractor
from stable_baselines3.common.type_aliases import PyTorchObs
from stable_baselines3.common.utils import obs_as_tensor

from sb3_hybrid_grpo.common import InvalidArgumentError, Observations, Sequences
from sb3_hybrid_grpo.policies.maskable import class_of, is_maskable, masking, overrides_forward, uncompiled
from sb3_hybrid_grpo.policies.plain_mlp import PlainMlp, Replica, inverse_cdf, softmax
from sb3_hybrid_grpo.policies.row_by_row import RowByRow
from sb3_hybrid_grpo.policies.sampling import (
    actions_from_noise,
    forward_samples,
    sample_actions,
    sample_tempered,
    to_env_actions,
)


class Samples(NamedTuple):
    """
    Actions sampled at E states.

    :param actions: sampled actions, index 0 is the committed one, [E, N, \\*action_shape]
    :param values: values of the states, [E], if the policy decides about them in a ``forward`` of its own
    :param log_probs: log-probabilities of the actions, [E, N], likewise
    :param means: mean actions of a Gaussian policy, [E, \\*action_shape]
    :param log_weights: logarithms of the importance weights of actions that are no samples of the policy, [E, N]
    """

    actions: np.ndarray
    values: th.Tensor | None = None
    log_probs: th.Tensor | None = None
    means: np.ndarray | None = None
    log_weights: np.ndarray | None = None


class Actor:
    """
    Samples from any policy.

    :param policy: the policy
    """

    present: Sequences | None = None
    """The present states as the beginnings of sequences, if the policy remembers what came before."""

    memory: RNNStates | None = None
    """What it remembers after them."""

    def __init__(self, policy: ActorCriticPolicy) -> None:
        self.policy = policy

    @cached_property
    def _row_by_row(self) -> RowByRow:
        return RowByRow(self.policy)

    def observe(self, obs: Observations, episode_starts: np.ndarray) -> None:
        """
        Take in the present states, before ``sample``: a policy without memory does nothing.

        :param obs: states
        :param episode_starts: whether an episode starts with a state, [E]
        """

    def next_values(self, obs: PyTorchObs, envs: slice = slice(None), episode_starts: np.ndarray | None = None) -> th.Tensor:
        """
        Predict values of states that follow the present ones.

        :param obs: the states
        :param envs: the environments that they are in; all by default
        :param episode_starts: whether an episode starts with a state, [E]; with none by default
        :return: values, [E, 1]
        """
        with self._row_by_row:
            return self.policy.predict_values(obs)

    def in_branches(self, memory: RNNStates | None, alive: np.ndarray) -> "Actor":
        """
        Return who goes on in branches: this actor, if there is nothing to remember of each.

        :param memory: what is remembered after the S states that they leave, [layers, S, units] each
        :param alive: which branches go on, of B / S from each state, [B] or any shape of as many elements
        :return: the actor whose ``act`` is called for the M branches that go on, step by step
        """
        return self

    def keep(self, survivors: np.ndarray) -> None:
        """
        Forget the branches that have ended.

        :param survivors: which of the branches go on, [M]
        """

    def sample(
        self, obs: Observations, n_samples: int, noise: np.ndarray | None = None, action_masks: np.ndarray | None = None
    ) -> Samples:
        """
        Sample N actions at each of E states.

        :param obs: states
        :param n_samples: number of samples N
        :param noise: noise of the committed actions, drawn by the policy if ``None``, [E, \\*noise_dims]
        :param action_masks: which actions are valid, [E, M], for a maskable policy
        :return: the actions
        """
        with th.no_grad():
            obs_tensor = obs_as_tensor(obs, self.policy.device)  # type: ignore[arg-type]
            if overrides_forward(class_of(self.policy)):
                actions, values, log_probs = forward_samples(self.policy, obs_tensor, n_samples, action_masks)
                return Samples(self._shaped(actions, n_samples), values, log_probs)
            distribution = self._distribution(obs_tensor, action_masks)
            actions = sample_actions(distribution, n_samples)
            if noise is not None:
                actions[:, 0] = actions_from_noise(distribution, noise)
            is_gaussian = type(distribution) is DiagGaussianDistribution
            means = self._shaped(distribution.mode()) if is_gaussian else None
        return Samples(self._shaped(actions, n_samples), means=means)

    def sample_tempered(
        self, obs: Observations, n_samples: int, temperature: float, action_masks: np.ndarray | None = None
    ) -> Samples:
        """
        Sample actions at each of E states from the policy with another temperature.

        :param obs: states
        :param n_samples: number of samples
        :param temperature: temperature, see ``sample_tempered`` of ``sb3_hybrid_grpo.policies.sampling``
        :param action_masks: which actions are valid, [E, M], for a maskable policy
        :return: the actions, with ``log_weights``
        """
        with th.no_grad():
            obs_tensor = obs_as_tensor(obs, self.policy.device)  # type: ignore[arg-type]
            distribution = self._distribution(obs_tensor, action_masks)
            actions, log_weights = sample_tempered(distribution, n_samples, temperature)
        return Samples(self._shaped(actions, n_samples), log_weights=log_weights.cpu().numpy())

    def act(self, obs: Observations, noise: np.ndarray, action_masks: np.ndarray | None = None) -> np.ndarray:
        """
        Sample one action at each of B states with given noise: the same, bit for bit, whatever the other states are.

        :param obs: states
        :param noise: noise, [B, \\*noise_dims]
        :param action_masks: which actions are valid, [B, M]
        :return: actions for the environment, [B, \\*action_shape]
        :raises InvalidArgumentError: if the policy is maskable and there are no masks
        """
        masks = self._masks(action_masks)
        with th.no_grad(), self._row_by_row:
            obs_tensor = obs_as_tensor(obs, self.policy.device)  # type: ignore[arg-type]
            distribution = self._distribution(obs_tensor, masks)
            actions = actions_from_noise(distribution, noise)
        return to_env_actions(self.policy, self._shaped(actions))

    def act_on_device(self, obs: PyTorchObs, noise: th.Tensor, action_masks: th.Tensor | None = None) -> th.Tensor:
        """
        Sample one action at each of B states with given noise, without leaving the device, see ``act``.

        :param obs: states
        :param noise: noise, [B, \\*noise_dims]
        :param action_masks: which actions are valid, [B, M]
        :return: actions for the environment, [B, \\*action_shape]
        :raises InvalidArgumentError: if the policy is maskable and there are no masks
        """
        with th.no_grad():
            distribution = self._distribution(obs, self._masks(action_masks))
            actions = actions_from_noise(distribution, noise)
        actions = actions.reshape(-1, *self.policy.action_space.shape)  # type: ignore[misc]
        if not isinstance(self.policy.action_space, spaces.Box):
            return actions
        low, high = (th.as_tensor(getattr(self.policy.action_space, name), device=actions.device) for name in ("low", "high"))
        if self.policy.squash_output:
            return low + 0.5 * (actions + 1.0) * (high - low)
        return actions.clamp(low, high)

    def replica(self) -> Replica:
        """
        Return what acts like this in another process.

        :return: it, picklable if the policy is
        :raises InvalidArgumentError: if another process would not compute the same actions, bit for bit
        """
        return PolicyReplica(sendable(self.policy))

    def _distribution(self, obs: PyTorchObs, action_masks: Any) -> Distribution:
        return self.policy.get_distribution(obs, **masking(action_masks))

    def _masks(self, action_masks: Any) -> Any:
        """Return the masks that the policy takes, if it takes any."""
        if not is_maskable(class_of(self.policy)):
            return None
        if action_masks is None:
            raise InvalidArgumentError(
                "A maskable policy goes on in branches of several steps, but the outcomes of the brancher have no "
                "`action_masks`: return them, or use branch_horizon=1."
            )
        return action_masks

    def _shaped(self, actions: th.Tensor, *n_samples: int) -> np.ndarray:
        return actions.cpu().numpy().reshape(-1, *n_samples, *self.policy.action_space.shape)  # type: ignore[misc]


class PolicyReplica(Actor):
    """
    Acts in a worker. Its small batches are not worth a second thread there.

    :param policy: a copy of the policy
    """

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        th.set_num_threads(1)


class MlpActor(Actor):
    """
    Samples from SB3's ``MlpPolicy`` with Gaussian or categorical actions on the CPU, see ``PlainMlp``.

    The random numbers are those that the policy would draw for itself.

    :param policy: a policy that ``is_plain``
    """

    def __init__(self, policy: ActorCriticPolicy) -> None:
        super().__init__(policy)
        self._mlp = PlainMlp(policy)

    @staticmethod
    def is_plain(policy: ActorCriticPolicy) -> bool:
        """
        Tell whether nothing about a policy's actor is the user's own.

        :param policy: the policy
        :return: whether an ``MlpActor`` does what its ``get_distribution`` and ``sample`` would do
        """
        own = ("forward", "get_distribution", "extract_features", "_get_action_dist_from_latent")
        return (
            policy.device.type == "cpu"
            and not any(_is_overridden(policy, name) for name in own)
            and type(policy.pi_features_extractor) is FlattenExtractor
            and isinstance(policy.observation_space, spaces.Box)
            and not is_image_space(policy.observation_space)
            and type(policy.mlp_extractor) is MlpExtractor
            and PlainMlp.supports([*policy.mlp_extractor.policy_net, policy.action_net])
            and type(policy.action_dist) in (DiagGaussianDistribution, CategoricalDistribution)
            and not any(getattr(module, name) for module in policy.modules() for name in _HOOKS)
        )

    def sample(
        self, obs: Observations, n_samples: int, noise: np.ndarray | None = None, action_masks: np.ndarray | None = None
    ) -> Samples:
        """
        Sample N actions at each of E states, see ``Actor.sample``.

        :param obs: states
        :param n_samples: number of samples N
        :param noise: noise of the committed actions
        :param action_masks: none
        :return: the actions
        """
        parameters = self._mlp.parameters(obs)
        if self._mlp.std is not None:
            own_noise = th.randn(len(parameters), n_samples, parameters.shape[-1]).numpy()
            if noise is not None:
                own_noise[:, 0] = noise
            actions = parameters[:, None] + self._mlp.std * own_noise
        else:
            probs = softmax(parameters)
            actions = th.multinomial(th.from_numpy(probs), n_samples, replacement=True).numpy()
            if noise is not None:
                actions[:, 0] = inverse_cdf(probs, noise)
        shape: tuple[int, ...] = self.policy.action_space.shape  # type: ignore[assignment]
        means = parameters.reshape(-1, *shape) if self._mlp.std is not None else None
        return Samples(actions.reshape(-1, n_samples, *shape), means=means)

    def act(self, obs: Observations, noise: np.ndarray, action_masks: np.ndarray | None = None) -> np.ndarray:
        """
        Sample one action at each of B states with given noise, see ``Actor.act``.

        :param obs: states
        :param noise: noise
        :param action_masks: not looked at
        :return: actions for the environment
        """
        return self._mlp.act(obs, noise)

    def replica(self) -> PlainMlp:
        """
        Return what acts like this in another process, see ``Actor.replica``.

        :return: the network alone
        """
        return self._mlp


def sendable(policy: ActorCriticPolicy) -> ActorCriticPolicy:
    """
    Return what acts like a policy in another process, once it is unpickled there.

    :param policy: the policy
    :return: a shallow copy, without its optimizer
    :raises InvalidArgumentError: if another process would not compute the same actions, bit for bit
    """
    if policy.device.type != "cpu":
        raise InvalidArgumentError(f"the policy is on {policy.device}, whose results differ in the last bits")
    if uncompiled(policy) is not policy:
        raise InvalidArgumentError("the policy is compiled, and would have to be compiled again")
    copied = copy.copy(policy)
    vars(copied)["optimizer"] = None
    return copied


def make_actor(policy: ActorCriticPolicy) -> Actor:
    """
    Make the fastest actor for a policy that stands still.

    :param policy: the policy
    :return: its actor, until the policy is updated
    """
    return MlpActor(policy) if MlpActor.is_plain(policy) else Actor(policy)


def _is_overridden(policy: ActorCriticPolicy, name: str) -> bool:
    return getattr(getattr(uncompiled(policy), name), "__func__", None) is not getattr(ActorCriticPolicy, name)


_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
