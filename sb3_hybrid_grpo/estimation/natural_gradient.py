"""The Fisher matrix of a policy, estimated from the actions that were sampled in the states that were visited."""

from collections.abc import Iterable, Sequence
from typing import Protocol

import torch as th
from torch import nn


class Scores(Protocol):
    """
    The scores ∇ log π(a|s) of N actions at each of B states, as a linear map of P parameters.

    :ivar parameters: the parameters that log-probabilities depend on; none if they are frozen
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
    :param parameters: the parameters of the policy, frozen ones too
    """

    def __init__(self, log_prob: th.Tensor, parameters: Sequence[nn.Parameter]) -> None:
        self.parameters: list[nn.Parameter] = []
        if not log_prob.requires_grad:
            return
        free = [parameter for parameter in parameters if parameter.requires_grad]
        gradients = th.autograd.grad(log_prob.sum(), free, retain_graph=True, allow_unused=True)
        used = zip(free, gradients, strict=True)
        self.parameters += [parameter for parameter, gradient in used if gradient is not None]
        self._log_prob = log_prob
        self._weights = th.zeros_like(log_prob, requires_grad=True)
        self._combined = flatten(th.autograd.grad(log_prob, self.parameters, self._weights, create_graph=True))

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
        return flatten(th.autograd.grad(self._log_prob, self.parameters, weights, retain_graph=True))


def flatten(tensors: Iterable[th.Tensor]) -> th.Tensor:
    """
    Write the numbers of tensors, whatever their memory format, one after the other.

    :param tensors: tensors of any shapes
    :return: all numbers, [P]
    """
    return th.cat([tensor.reshape(-1) for tensor in tensors])


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
