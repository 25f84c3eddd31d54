"""The clipped loss over N actions per state: weighted means over samples, then the mean over states."""

from collections.abc import Iterable

import torch as th


def weighted_mean(values: th.Tensor, weights: th.Tensor) -> th.Tensor:
    """
    Average over the samples of each state, then over the states.

    1/B Σ_b Σᵢ w[b,i] x[b,i]

    :param values: x, [B, N]
    :param weights: w, each row sums to one, [B, N]
    :return: the mean, a scalar
    """
    return (weights * values).sum(dim=1).mean()


def normalize(advantages: th.Tensor, weights: th.Tensor, epsilon: float = 1e-8) -> th.Tensor:
    """
    Standardise the advantages of a minibatch.

    (A - mean) / (std + ε),    std² = 1/(B-1) Σ_b Σᵢ v[b,i] (A[b,i] - mean)²,    v[b,i] = w[b,i]² / Σⱼ w[b,j]²

    The mean is weighted with w, and it is PPO's formula when N = 1. In the loss an advantage counts w times as much as it is
    large, so the squared weights measure its spread: weighted with w, the tail of a rare action, which is divided by its
    probability, would shrink all others of its minibatch.

    :param advantages: A, [B, N]
    :param weights: w, each row sums to one, [B, N]
    :param epsilon: keeps equal advantages at zero
    :return: advantages of mean zero and unit variance, [B, N]
    """
    deviations = advantages - weighted_mean(advantages, weights)
    shares = weights**2 / (weights**2).sum(dim=1, keepdim=True)
    variance = (shares * deviations**2).sum() / (len(advantages) - 1)
    return deviations / (variance.sqrt() + epsilon)


def clipped_policy_loss(ratio: th.Tensor, advantages: th.Tensor, weights: th.Tensor, clip_range: float) -> th.Tensor:
    """
    Return PPO's clipped surrogate loss, averaged over the samples of a state.

    L = -1/B Σ_b Σᵢ w[b,i] min(ρ[b,i] A[b,i], clip(ρ[b,i], 1 ± ε) A[b,i])

    Source: https://arxiv.org/abs/1707.06347, equation 7, for each of the N actions with its own ratio.

    :param ratio: ρ = π(a|s) / π_old(a|s), [B, N]
    :param advantages: A, [B, N]
    :param weights: w, each row sums to one, [B, N]
    :param clip_range: ε
    :return: the loss, a scalar
    """
    clipped = th.clamp(ratio, 1 - clip_range, 1 + clip_range)
    return -weighted_mean(th.min(ratio * advantages, clipped * advantages), weights)


def approximate_kl(log_ratio: th.Tensor, weights: th.Tensor) -> th.Tensor:
    """
    Estimate KL(π_old || π) from the sampled actions.

    1/B Σ_b Σᵢ w[b,i] (ρ[b,i] - 1 - log ρ[b,i])

    Source: http://joschu.net/blog/kl-approx.html, the estimator k3.

    :param log_ratio: log ρ, [B, N]
    :param weights: w, each row sums to one, [B, N]
    :return: the estimate, a scalar
    """
    return weighted_mean(th.exp(log_ratio) - 1 - log_ratio, weights)


def clip_gradients(parameters: Iterable[th.nn.Parameter], max_norm: float) -> None:
    """
    Scale all gradients such that their norm is at most this: ``clip_grad_norm_`` in half the time.

    :param parameters: parameters of one device; those without gradient are left out
    :param max_norm: the largest norm of all gradients together
    """
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    norm = th.cat([gradient.flatten() for gradient in gradients]).norm()
    scale = th.clamp(max_norm / (norm + 1e-6), max=1)
    for gradient in gradients:
        gradient.mul_(scale)


def fuse(optimizer: th.optim.Optimizer) -> None:
    """
    Let Adam on the CPU update all parameters in one fused operation: the same update, in a quarter of the time.

    :param optimizer: any optimizer; others than Adam on the CPU are left as they are
    """
    if type(optimizer) is th.optim.Adam:
        for group in optimizer.param_groups:
            if all(parameter.device.type == "cpu" and parameter.is_floating_point() for parameter in group["params"]):
                group["fused"] = True
