"""
Advantage estimators: pure functions on arrays [T, E, N] of T macro-steps, E environments and N sampled actions.

Sample 0 is the committed action.
"""

from collections.abc import Callable
from typing import NamedTuple, TypeAlias

import numpy as np

from sb3_hybrid_grpo.common import Floats


class Advantages(NamedTuple):
    """
    Advantages and how much each of them counts.

    :param advantages: advantage of every sampled action, [T, E, N]
    :param weights: weights of the clipped terms in the mean over a state, [T, E, N]; each group sums to one, with samples of
        another distribution than the policy on average
    """

    advantages: Floats
    weights: Floats


def averaged_advantages(estimates: Floats) -> Floats:
    """
    Return the paper's advantage of a macro-step: the mean over its samples.

    A[t,e] = 1/N Σᵢ δ[t,e,i]

    Source: the Hybrid GRPO advantage A_T (https://arxiv.org/abs/2502.01652).

    :param estimates: value-boosted estimates δ, [T, E, N]
    :return: A, [T, E]
    """
    averaged: Floats = estimates.mean(axis=-1)
    return averaged


def _differences(estimates: Floats) -> Floats:
    """Subtract the first sample: where all are equal this is zero, and not what rounding makes of their mean."""
    differences: Floats = estimates - estimates[..., :1]
    return differences


def leave_one_out_advantages(estimates: Floats) -> Floats:
    """
    Return each sample's estimate minus the mean of the other samples of its state.

    A[t,e,i] = δ[t,e,i] - 1/(N-1) Σ_{j≠i} δ[t,e,j],    A = δ when N = 1

    Source: the leave-one-out baseline of RLOO (Kool et al., 2019, https://openreview.net/forum?id=r1lgTGL5DE); it does not
    depend on action i, so the policy gradient stays unbiased.

    :param estimates: value-boosted estimates δ, [T, E, N]
    :return: A, [T, E, N]
    """
    n_samples = estimates.shape[-1]
    advantages: Floats = estimates.copy()
    if n_samples == 1:
        return advantages
    differences = _differences(estimates)
    advantages = (differences - differences.mean(axis=-1, keepdims=True)) * (n_samples / (n_samples - 1))
    return advantages


def leave_pair_out_advantages(estimates: Floats) -> Floats:
    """
    Return each sample's estimate minus the mean of the samples outside its antithetic pair.

    A[t,e,i] = δ[t,e,i] - 1/(N-2) Σ_{j∉{i, i±N/2}} δ[t,e,j],    A = δ when N = 2

    The two actions of a pair depend on each other, so that neither may be part of the other's baseline.

    :param estimates: value-boosted estimates δ, sample i paired with i + N/2, [T, E, N]
    :return: A, [T, E, N]
    """
    n_samples = estimates.shape[-1]
    advantages: Floats = estimates.copy()
    if n_samples == 2:
        return advantages
    differences = _differences(estimates)
    half = differences.reshape(*estimates.shape[:-1], 2, n_samples // 2)
    pairs: Floats = np.broadcast_to(half.sum(axis=-2, keepdims=True), half.shape).reshape(estimates.shape)
    advantages = differences - (differences.sum(axis=-1, keepdims=True) - pairs) / (n_samples - 2)
    return advantages


def importance_weighted_advantages(estimates: Floats, log_weights: Floats) -> Advantages:
    """
    Return the advantages of samples that were drawn from other distributions than the policy.

    A[t,e,i] = δ[t,e,i] - Σ_{j≠i} ω[t,e,j] δ[t,e,j] / Σ_{j≠i} ω[t,e,j],    w[t,e,i] = ω[t,e,i] / N,    ω = π/q

    The baseline does not depend on action i, and E_q[ω ∇log π] = E_π[∇log π] = 0, so that the policy gradient
    1/S Σ_s Σᵢ w A ∇log π is unbiased for any proposals q that cover the policy. With ω = 1 these are
    ``leave_one_out_advantages``. The weights of a state sum to one on average only, and where those of all others vanish
    there is no baseline.

    Source: importance sampling (Owen, 2013, chapter 9) of RLOO's gradient (Kool et al., 2019,
    https://openreview.net/forum?id=r1lgTGL5DE), with a self-normalised baseline.

    :param estimates: value-boosted estimates δ, [T, E, N]
    :param log_weights: log ω, [T, E, N]
    :return: A and w, [T, E, N]
    """
    n_samples = estimates.shape[-1]
    importance: Floats = np.exp(log_weights)
    others = 1 - np.eye(n_samples, dtype=estimates.dtype)
    differences = _differences(estimates)
    totals, sums = importance @ others, (importance * differences) @ others
    relative = differences - np.divide(sums, totals, out=np.zeros_like(sums), where=totals > 0)
    return Advantages(np.where(totals > 0, relative, estimates), importance / n_samples)


def modelled_advantages(estimates: Floats) -> Advantages:
    """
    Return the advantages of samples 1 to N within a model, of which the last is the committed action once more.

    A[t,e,i] = δ[t,e,i] - 1/(N-1) Σ_{j≠i, j>0} δ[t,e,j],    w[t,e,i] = 1/N,    A[t,e,0] = w[t,e,0] = 0

    All of them are the model's, so that what it does not know about a state cancels.

    :param estimates: value-boosted estimates δ, index 0 real, [T, E, N + 1]
    :return: A and w, [T, E, N + 1]
    """
    advantages, weights = np.zeros_like(estimates), np.zeros_like(estimates)
    advantages[..., 1:] = leave_one_out_advantages(estimates[..., 1:])
    weights[..., 1:] = 1 / (estimates.shape[-1] - 1)
    return Advantages(advantages, weights)


def model_share(modelled: Floats, gae: Floats, n_samples: int) -> float:
    """
    Return how much of what a model says about committed actions turned out to be true.

    c = N/(N-1) · cov(GAE, A) / var(A), within [0, 1]

    The slope of the regression of what really followed on what the model had said. A of a model that is right contains the
    noise of its baseline, the mean of N - 1 samples, which is what the factor makes up for.

    :param modelled: advantages A of the committed actions in the model, [S]
    :param gae: generalized advantage estimates of the same actions, [S]
    :param n_samples: number of samples N in the model
    :return: c
    """
    deviations = modelled - modelled.mean()
    variance = float(np.square(deviations).mean())
    if variance == 0:
        return 0.0
    slope = float((deviations * gae).mean()) / variance
    return float(np.clip(slope * n_samples / (n_samples - 1), 0, 1))


def mixed_advantages(modelled: Advantages, gae: Floats, share: float) -> Advantages:
    """
    Mix PPO's advantages of the committed actions with those of a model.

    w A = c w_m A_m + (1 - c) [i = 0] GAE,    w = c w_m + (1 - c) [i = 0]

    With c = 0 this is PPO, with c = 1 the model alone.

    :param modelled: advantages A_m and weights w_m, index 0 without weight, [S, N + 1]
    :param gae: centred generalized advantage estimates of the committed actions, [S]
    :param share: c
    :return: A and w, [S, N + 1]
    """
    advantages, weights = modelled.advantages.copy(), share * modelled.weights
    advantages[..., 0] = gae
    weights[..., 0] = 1 - share
    return Advantages(advantages, weights)


def exact_advantages(estimates: Floats, probs: Floats) -> Floats:
    """
    Return the advantages of all actions of a discrete space.

    A[t,e,a] = δ[t,e,a] - Σ_b π[t,e,b] δ[t,e,b]

    Weighted with π, their clipped terms are the expectation over the action, not an estimate of it.

    :param estimates: value-boosted estimates δ of all actions, [T, E, N]
    :param probs: probabilities π of the actions, [T, E, N]
    :return: A, [T, E, N]
    """
    differences = _differences(estimates)
    advantages: Floats = differences - (probs * differences).sum(axis=-1, keepdims=True)
    return advantages


def hybrid_advantages(relative: Advantages, tails: Floats, tail_coef: float = 1.0) -> Advantages:
    """
    Add the committed action's λ-tail to its relative advantage.

    A[t,e,i] = relative[t,e,i] + [i = 0] · c · (tail[t,e] - mean(tail)) / w[t,e,0]

    The weight w of the committed action (1/N for independent samples) makes the tail count once in the mean over the samples.
    The tail is centred over the batch because no group mean centres it; with N = 1, where PPO centres the whole advantage,
    it is left as it is: A = GAE.

    :param relative: advantages relative to the other samples and weights w, [T, E, N]
    :param tails: λ-tails of the committed actions, [T, E]
    :param tail_coef: weight c of the tails
    :return: A with the same weights, [T, E, N]
    """
    advantages, weights = relative.advantages.copy(), relative.weights
    if advantages.shape[-1] > 1:
        tails = tails - tails.mean()
    advantages[..., 0] += tail_coef * tails / weights[..., 0]
    return Advantages(advantages, weights)


def relative_precision(branched: Advantages, unbranched: Floats) -> float:
    """
    Return how much a state without branches should count beside one with branches: the ratio of their variances.

    c = mean_s Σᵢ (w[s,i] A[s,i])² / mean_s' A[s']²,    or 1 if either mean is 0

    Both estimate the same policy gradient, state by state, with noise in proportion to what their advantages multiply: the
    score of every sampled action. Weights inverse to the variance give the mean of least variance.

    :param branched: advantages and weights of branched states, [S, N]
    :param unbranched: centred advantages of the committed actions of the others, [S']
    :return: c
    """
    noise = np.square(branched.weights * branched.advantages).sum(axis=-1).mean()
    return float(noise / np.square(unbranched).mean()) if noise and unbranched.any() else 1.0


def group_normalized_advantages(rewards: Floats, epsilon: float = 1e-8) -> Floats:
    """
    Return GRPO's critic-free advantage: rewards normalised within their group.

    A[t,e,i] = (r[t,e,i] - meanⱼ r[t,e,j]) / (stdⱼ r[t,e,j] + ε),    with the population's std

    Source: Group Relative Policy Optimization (https://arxiv.org/abs/2402.03300), outcome supervision.

    :param rewards: transformed rewards, [T, E, N]
    :param epsilon: keeps groups of equal rewards at zero
    :return: A, without unit, [T, E, N]
    """
    # In float32 the rounding of a group of equal rewards would be normalised to noise of size one.
    exact = rewards.astype(np.float64)
    deviations: Floats = exact - exact.mean(axis=-1, keepdims=True)
    std: Floats = exact.std(axis=-1, keepdims=True)
    return (deviations / (std + epsilon)).astype(rewards.dtype)


def _uniform(advantages: Floats) -> Advantages:
    return Advantages(advantages, np.full_like(advantages, 1.0 / advantages.shape[-1]))


def _on_committed(advantages: Floats, n_samples: int) -> Advantages:
    committed = np.zeros((*advantages.shape, n_samples), dtype=advantages.dtype)
    committed[..., 0] = 1.0
    return Advantages(advantages[..., None] * committed, committed)


def _exactly_weighted(estimates: Floats, log_probs: Floats) -> Advantages:
    # Probabilities in float32 sum to one only nearly.
    probs: Floats = np.exp(log_probs)
    probs /= probs.sum(axis=-1, keepdims=True)
    return Advantages(exact_advantages(estimates, probs), probs)


RELATIVE_ADVANTAGES: dict[str, Callable[[Floats, Floats, Floats], Advantages]] = {
    "iid": lambda estimates, log_probs, log_weights: _uniform(leave_one_out_advantages(estimates)),
    "antithetic": lambda estimates, log_probs, log_weights: _uniform(leave_pair_out_advantages(estimates)),
    "enumerate": lambda estimates, log_probs, log_weights: _exactly_weighted(estimates, log_probs),
    "modelled": lambda estimates, log_probs, log_weights: modelled_advantages(estimates),
    "tempered": lambda estimates, log_probs, log_weights: importance_weighted_advantages(estimates, log_weights),
}
"""
Advantages within a state by the way its actions were sampled: functions of estimates, log-probabilities and logarithms of
importance weights.
"""

Estimator: TypeAlias = Callable[[Floats, Floats, Advantages, Floats, float], Advantages]

ESTIMATORS: dict[str, Estimator] = {
    "hybrid": lambda rewards, estimates, relative, tails, tail_coef: hybrid_advantages(relative, tails, tail_coef),
    "per_action": lambda rewards, estimates, relative, tails, tail_coef: relative,
    "averaged": lambda rewards, estimates, relative, tails, tail_coef: _on_committed(
        averaged_advantages(estimates), estimates.shape[-1]
    ),
    "group_normalized": lambda rewards, estimates, relative, tails, tail_coef: _uniform(group_normalized_advantages(rewards)),
}
"""Estimators by name: functions of transformed rewards, estimates, relative advantages, tails and ``tail_coef``."""
