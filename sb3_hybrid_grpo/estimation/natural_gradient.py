"""The Fisher matrix of a policy, estimated from the actions that were sampled in the states that were visited."""

from collections.abc import Sequence
from typing import Protocol

import torch as th
from torch import nn
from torch.nn.utils import parameters_to_vector


class Scores(Protocol):
    """
    The scores ∇ log π(a|s) of N actions at each of B states, as a linear map of P parameters.

    :ivar parameters: the parameters that log-probabilities depend on
    """

    parameters: list[nn.Parameter]

    def along(self, direction: th.Tensor) -> th.Tensor:
        """
        Differentiate the log-probabilities along a direction.

        :param direction: v, [P]
        :return: ∇ log π[b,i] · v, [B, N]
        """

    def combine(self, weights: th.Tensor) -> th.Tensor:
        """
        Add up scores.

        :param weights: u, [B, N]
        :return: Σ_b Σᵢ u[b,i] ∇ log π[b,i], [P]
        """


class AutogradScores:
    """
    Scores of any policy: the combination of scores is linear in its weights, and its own derivative is the other product.

    :param log_prob: log-probabilities with their graph, [B, N]
    :param parameters: the parameters of the policy
    """

    def __init__(self, log_prob: th.Tensor, parameters: Sequence[nn.Parameter]) -> None:
        gradients = th.autograd.grad(log_prob.sum(), parameters, retain_graph=True, allow_unused=True)
        used = zip(parameters, gradients, strict=True)
        self.parameters = [parameter for parameter, gradient in used if gradient is not None]
        self._log_prob = log_prob
        self._weights = th.zeros_like(log_prob, requires_grad=True)
        combined = th.autograd.grad(log_prob, self.parameters, self._weights, create_graph=True)
        self._combined = parameters_to_vector(combined)

    def along(self, direction: th.Tensor) -> th.Tensor:
        """
        Differentiate the log-probabilities along a direction, see ``Scores.along``.

        :param direction: the direction
        :return: the derivatives
        """
        return th.autograd.grad(self._combined, self._weights, direction, retain_graph=True)[0]

    def combine(self, weights: th.Tensor) -> th.Tensor:
        """
        Add up scores, see ``Scores.combine``.

        :param weights: their weights
        :return: the sum
        """
        return parameters_to_vector(th.autograd.grad(self._log_prob, self.parameters, weights, retain_graph=True))


def fisher_product(scores: Scores, weights: th.Tensor, direction: th.Tensor, damping: float = 0.0) -> th.Tensor:
    """
    Multiply a direction by the Fisher matrix, whose quadratic form is twice the KL divergence of a small step.

    F v + d v = 1/B Σ_b Σᵢ w[b,i] s[b,i] (s[b,i] · v) + d v,    s[b,i] = ∇ log π(a[b,i]|s[b])

    Source: F = E[s sᵀ] of Kakade 2001 (A Natural Policy Gradient, equation 2), with the N sampled actions of a state.

    :param scores: s
    :param weights: w, each row sums to one, with importance weights on average, [B, N]
    :param direction: v, [P]
    :param damping: d, what is added to the diagonal
    :return: the product, [P]
    """
    return scores.combine(weights * scores.along(direction) / len(weights)) + damping * direction
