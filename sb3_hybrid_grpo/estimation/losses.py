"""
The losses of an update, averaged over N actions per state: weighted means over samples, then the mean over states.

Each comes with its gradient in closed form. They are arithmetic on a few hundred numbers, for which NumPy takes a third of the
time of PyTorch: autograd is left with the policy.
"""

import math
from collections.abc import Iterable, Sequence
from typing import Literal, NamedTuple

import numpy as np
import torch as th


class Loss(NamedTuple):
    """
    A loss and its gradient.

    :param value: the loss
    :param of: what it depends on
    :param gradient: its gradient with respect to that, [B] or [B, N]
    """

    value: float
    of: Literal["values", "log_prob", "entropy"]
    gradient: np.ndarray

    def scaled(self, factor: float) -> "Loss":
        """
        Multiply the loss.

        :param factor: its coefficient in a sum of losses
        :return: the product
        """
        return Loss(factor * self.value, self.of, factor * self.gradient)


def weighted_mean(values: np.ndarray, weights: np.ndarray) -> float:
    """
    Average over the samples of each state, then over the states.

    1/B Σ_b Σᵢ w[b,i] x[b,i]

    :param values: x, [B, N]
    :param weights: w, each row sums to one, with importance weights on average, [B, N]
    :return: the mean
    """
    return float((weights * values).sum()) / len(weights)


def normalize(advantages: np.ndarray, weights: np.ndarray, epsilon: float = 1e-8) -> np.ndarray:
    """
    Standardise the advantages of a minibatch.

    (A - mean) / (std + ε),    std² = 1/(B-1) Σ_b Σᵢ v[b,i] (A[b,i] - mean)²,    v[b,i] = w[b,i]² / Σⱼ w[b,j]²

    The mean is weighted with w, and it is PPO's formula when N = 1. In the loss an advantage counts w times as much as it is
    large, so the squared weights measure its spread: weighted with w, the tail of a rare action, which is divided by its
    probability, would shrink all others of its minibatch.

    :param advantages: A, [B, N]
    :param weights: w, each row sums to one, with importance weights on average, [B, N]
    :param epsilon: keeps equal advantages at zero
    :return: advantages of mean zero and unit variance, [B, N]
    """
    deviations = advantages - weighted_mean(advantages, weights)
    squares = weights * weights
    shares = squares / squares.sum(axis=1, keepdims=True)
    variance = float((shares * deviations * deviations).sum()) / (len(advantages) - 1)
    return np.asarray(deviations / (variance**0.5 + epsilon))


def clipped_policy_loss(ratio: np.ndarray, advantages: np.ndarray, weights: np.ndarray, clip_range: float) -> Loss:
    """
    Return PPO's clipped surrogate loss, averaged over the samples of a state.

    L = -1/B Σ_b Σᵢ w[b,i] min(ρ[b,i] A[b,i], clip(ρ[b,i], 1 ± ε) A[b,i])

    ∂L/∂log π[b,i] = -1/B w[b,i] ρ[b,i] A[b,i] where ρ A is that minimum, else 0

    Source: https://arxiv.org/abs/1707.06347, equation 7, for each of the N actions with its own ratio.

    :param ratio: ρ = π(a|s) / π_old(a|s), [B, N]
    :param advantages: A, [B, N]
    :param weights: w, each row sums to one, with importance weights on average, [B, N]
    :param clip_range: ε
    :return: the loss
    """
    weighted = advantages * (weights / -len(weights))
    unclipped = ratio * weighted
    clipped = np.minimum(np.maximum(ratio, 1 - clip_range), 1 + clip_range) * weighted
    return Loss(float(np.maximum(unclipped, clipped).sum()), "log_prob", np.where(unclipped >= clipped, unclipped, 0))


def entropy_loss(entropy: np.ndarray | None, log_prob: np.ndarray, weights: np.ndarray) -> Loss:
    """
    Return the negative mean entropy, estimated from the sampled actions if it has no closed form.

    :param entropy: entropies of the policy, [B], or ``None``
    :param log_prob: log π(a|s), [B, N]
    :param weights: w, each row sums to one, with importance weights on average, [B, N]
    :return: the loss
    """
    if entropy is None:
        return Loss(weighted_mean(log_prob, weights), "log_prob", weights / len(weights))
    return Loss(-float(entropy.mean()), "entropy", np.full_like(entropy, -1 / len(entropy)))


def value_loss(values: np.ndarray, old_values: np.ndarray, returns: np.ndarray, clip_range: float | None = None) -> Loss:
    """
    Return the critic's mean squared error, with PPO's optional limit on the change of a value.

    L = 1/B Σ_b (V[b] - R[b])²,    ∂L/∂V[b] = 2/B (V[b] - R[b])

    With a limit c, V is V_old + clip(V - V_old, ±c), and the gradient is zero where it is clipped. This depends on the scale
    of rewards.

    :param values: V, [B]
    :param old_values: V_old, [B]
    :param returns: R, [B]
    :param clip_range: c, no limit if ``None``
    :return: the loss
    """
    if clip_range is None:
        errors = values - returns
        return Loss(float((errors * errors).mean()), "values", errors * (2 / len(errors)))
    change = values - old_values
    clipped = value_loss(old_values + change.clip(-clip_range, clip_range), old_values, returns)
    return clipped._replace(gradient=clipped.gradient * (abs(change) <= clip_range))


def approximate_kl(log_ratio: np.ndarray, weights: np.ndarray) -> float:
    """
    Estimate KL(π_old || π) from the sampled actions.

    1/B Σ_b Σᵢ w[b,i] (ρ[b,i] - 1 - log ρ[b,i])

    Source: http://joschu.net/blog/kl-approx.html, the estimator k3.

    :param log_ratio: log ρ, [B, N]
    :param weights: w, each row sums to one, with importance weights on average, [B, N]
    :return: the estimate
    """
    return weighted_mean(np.exp(log_ratio) - 1 - log_ratio, weights)


def clip_gradients(parameters: Iterable[th.nn.Parameter], max_norm: float) -> float:
    """
    Scale all gradients such that their norm is at most this: ``clip_grad_norm_`` in half the time.

    :param parameters: parameters of one device; those without gradient are left out
    :param max_norm: the largest norm of all gradients together
    :return: their norm before, 0 if there are none
    """
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    if not gradients:
        return 0.0
    norm = th.cat([gradient.flatten() for gradient in gradients]).norm()
    scale = th.clamp(max_norm / (norm + 1e-6), max=1)
    for gradient in gradients:
        gradient.mul_(scale)
    return float(norm)


def scale_down(gradients: Sequence[np.ndarray], max_norm: float) -> float:
    """
    Scale all gradients such that their norm is at most this, see ``clip_gradients``.

    :param gradients: gradients, which are scaled in place
    :param max_norm: the largest norm of all gradients together
    :return: their norm before
    """
    norm = math.sqrt(sum(float(np.vdot(gradient, gradient)) for gradient in gradients))
    scale = max_norm / (norm + 1e-6)
    if scale < 1:
        for gradient in gradients:
            gradient *= scale
    return norm


def fuse(optimizer: th.optim.Optimizer) -> None:
    """
    Let Adam on the CPU update all parameters in one fused operation: the same update, in a quarter of the time.

    :param optimizer: any optimizer; others than Adam on the CPU are left as they are
    """
    if type(optimizer) is th.optim.Adam:
        for group in optimizer.param_groups:
            if all(parameter.device.type == "cpu" and parameter.is_floating_point() for parameter in group["params"]):
                group["fused"] = True
