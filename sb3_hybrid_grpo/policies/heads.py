"""Policies' heads in closed form: log-probabilities and entropies of N actions at each of B states, and their gradients."""

import math
from typing import Protocol

import numpy as np
import torch as th
from stable_baselines3.common.distributions import CategoricalDistribution, DiagGaussianDistribution, Distribution
from stable_baselines3.common.policies import ActorCriticPolicy
from torch import nn

from sb3_hybrid_grpo.common import InvalidArgumentError
from sb3_hybrid_grpo.policies.maskable import class_of, is_maskable, overrides_forward

_HALF_LOG_TAU = 0.5 * math.log(math.tau)


class Head(Protocol):
    """
    What turns the output of the actor's network into a distribution.

    :param policy: a policy with this distribution
    :ivar parameters: the head's own parameters
    """

    parameters: list[nn.Parameter]

    def __init__(self, policy: ActorCriticPolicy) -> None: ...

    def evaluate(self, outputs: th.Tensor, actions: th.Tensor) -> tuple[th.Tensor, th.Tensor]:
        """
        Evaluate actions.

        :param outputs: what the network made of the states, [B, n]
        :param actions: actions as the buffer keeps them, [B, N, action_dim]
        :return: log-probabilities [B, N] and entropies [B]
        """

    def along(self, outputs: np.ndarray, parameters: np.ndarray) -> np.ndarray:
        """
        Differentiate the latest log-probabilities along a direction.

        :param outputs: how fast the outputs change, [B, n]
        :param parameters: how fast the head's parameters change
        :return: derivatives, [B, N]
        """

    def backward(self, log_prob: np.ndarray, entropy: np.ndarray | None) -> np.ndarray:
        """
        Differentiate the latest evaluation, which was none of autograd's, and set the gradients of the head's parameters.

        :param log_prob: gradient of a loss with respect to the log-probabilities, [B, N]
        :param entropy: its gradient with respect to the entropies, [B]; zero if ``None``
        :return: its gradient with respect to the outputs, [B, n]
        """


class GaussianHead:
    """
    Independent Gaussian distributions around the outputs, as wide at all states.

    log π(a) = -½ Σ z² - Σ log σ - ½ A log 2π,    z = (a - μ)/σ,    H = Σ log σ + ½ A (1 + log 2π)

    ∂ log π/∂μ = z/σ,    ∂ log π/∂log σ = z² - 1,    ∂H/∂log σ = 1

    :param policy: a policy with a ``DiagGaussianDistribution``
    """

    def __init__(self, policy: ActorCriticPolicy) -> None:
        self._log_std = policy.log_std
        self.parameters: list[nn.Parameter] = [policy.log_std]

    def evaluate(self, outputs: th.Tensor, actions: th.Tensor) -> tuple[th.Tensor, th.Tensor]:
        """
        Evaluate actions, see ``Head.evaluate``.

        :param outputs: means
        :param actions: actions
        :return: log-probabilities and entropies
        """
        self._inverse_std = th.exp(-self._log_std)
        self._deviations = (actions - outputs[:, None]) * self._inverse_std
        sum_log_std, n_dims = self._log_std.sum(), outputs.shape[-1]
        log_prob = -0.5 * (self._deviations * self._deviations).sum(dim=-1) - (sum_log_std + _HALF_LOG_TAU * n_dims)
        return log_prob, (sum_log_std + (0.5 + _HALF_LOG_TAU) * n_dims).expand(len(outputs))

    def along(self, outputs: np.ndarray, parameters: np.ndarray) -> np.ndarray:
        """
        Differentiate the latest log-probabilities along a direction, see ``Head.along``.

        :param outputs: how fast the means change
        :param parameters: how fast the logarithms of the standard deviations change
        :return: derivatives
        """
        deviations = self._deviations.numpy()
        of_means = (deviations * (outputs * self._inverse_std.numpy())[:, None]).sum(axis=-1)
        return np.asarray(of_means + (deviations * deviations - 1) @ parameters)

    def backward(self, log_prob: np.ndarray, entropy: np.ndarray | None) -> np.ndarray:
        """
        Differentiate the latest evaluation, see ``Head.backward``.

        :param log_prob: gradient with respect to the log-probabilities
        :param entropy: gradient with respect to the entropies
        :return: gradient with respect to the means
        """
        deviations = self._deviations.numpy()
        weighted = log_prob[..., None] * deviations
        of_log_std = (weighted * deviations).sum(axis=(0, 1)) - log_prob.sum()
        if entropy is not None:
            of_log_std += entropy.sum()
        self._log_std.grad = th.from_numpy(of_log_std)
        return np.asarray(weighted.sum(axis=1) * self._inverse_std.numpy())


class CategoricalHead:
    """
    One of the actions, with the outputs as logits.

    log π(a) = x_a - log Σ_b exp x_b,    H = -Σ_b π(b) log π(b)

    ∂ log π(a)/∂x_b = 1[a = b] - π(b),    ∂H/∂x_b = -π(b) (log π(b) + H)

    :param policy: a policy with a ``CategoricalDistribution``
    """

    def __init__(self, policy: ActorCriticPolicy) -> None:
        self.parameters: list[nn.Parameter] = []

    def evaluate(self, outputs: th.Tensor, actions: th.Tensor) -> tuple[th.Tensor, th.Tensor]:
        """
        Evaluate actions, see ``Head.evaluate``.

        :param outputs: logits
        :param actions: actions
        :return: log-probabilities and entropies
        """
        self._actions = actions.squeeze(dim=-1).long()
        self._log_probs = th.log_softmax(outputs, dim=-1)
        self._probs = self._log_probs.exp()
        self._finite = self._log_probs.clamp(min=th.finfo(self._log_probs.dtype).min)  # as PyTorch does for entropies
        self._entropy = -(self._probs * self._finite).sum(dim=-1)
        return self._log_probs.gather(dim=1, index=self._actions), self._entropy

    def along(self, outputs: np.ndarray, parameters: np.ndarray) -> np.ndarray:
        """
        Differentiate the latest log-probabilities along a direction, see ``Head.along``.

        :param outputs: how fast the logits change
        :param parameters: none
        :return: derivatives
        """
        mean = (self._probs.numpy() * outputs).sum(axis=-1, keepdims=True)
        return np.asarray(np.take_along_axis(outputs, self._actions.numpy(), axis=-1) - mean)

    def backward(self, log_prob: np.ndarray, entropy: np.ndarray | None) -> np.ndarray:
        """
        Differentiate the latest evaluation, see ``Head.backward``.

        :param log_prob: gradient with respect to the log-probabilities
        :param entropy: gradient with respect to the entropies
        :return: gradient with respect to the logits
        """
        shared = log_prob.sum(axis=1, keepdims=True)
        if entropy is not None:
            shared = shared + entropy[:, None] * (self._finite + self._entropy[:, None]).numpy()
        gradient: np.ndarray = -self._probs.numpy() * shared
        np.add.at(gradient, (np.arange(len(gradient))[:, None], self._actions.numpy()), log_prob)
        return gradient


HEADS: dict[type[Distribution], type[Head]] = {
    DiagGaussianDistribution: GaussianHead,
    CategoricalDistribution: CategoricalHead,
}


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
    elif overrides_forward(class_of(policy)):
        obstacle = f"{class_of(policy).__name__} samples in a `forward` of its own"
    elif horizon > 1 and is_maskable(class_of(policy)):
        obstacle = "what is valid at the end of a branch is unknown. Use branch_horizon=1"
    if obstacle is not None:
        raise InvalidArgumentError(f"soft_values=True is not possible: {obstacle}.")
