"""
What actions are worth along branches and along the committed trajectory: pure functions on arrays [T, E, N].

T macro-steps, E environments, N sampled actions. ``dones`` [T, E] marks macro-steps whose committed action ended the episode.
"""

import numpy as np

from sb3_hybrid_grpo.common import Floats


def value_boosted_estimates(
    rewards: Floats, values: Floats, next_values: Floats, terminated: np.ndarray, gamma: float
) -> Floats:
    """
    Return the value-boosted one-step estimate of every sampled action.

    δ[t,e,i] = r[t,e,i] + γ · V(s'[t,e,i]) · (1 - terminated[t,e,i]) - V(s[t,e])

    Source: the summand of the Hybrid GRPO advantage (https://arxiv.org/abs/2502.01652). A truncated episode is not
    terminated: the value of its last observation counts.

    :param rewards: transformed rewards, [T, E, N]
    :param values: values of the states, [T, E]
    :param next_values: values of the next states, [T, E, N]
    :param terminated: whether the action led to a terminal state, [T, E, N]
    :param gamma: discount factor γ
    :return: δ, in units of the transformed reward, [T, E, N]
    """
    return rewards + gamma * next_values * (1.0 - terminated.astype(np.float32)) - values[..., None]


def soft_rewards(rewards: Floats, entropies: Floats, next_entropies: Floats, ent_coef: float) -> Floats:
    """
    Return rewards with a bonus for the entropy of the policy in the state where each step starts.

    r̃[t,e,i,k] = r[t,e,i,k] + α H(π(·|s[t,e,i,k])),    s[t,e,i,0] = s[t,e]

    Their values are the soft values of maximum entropy reinforcement learning, V(s) = E Σₖ γᵏ (rₖ + α H(π(·|sₖ))).

    Source: https://arxiv.org/abs/1702.08165, section 3.

    :param rewards: transformed rewards, [T, E, N, K]
    :param entropies: entropies H in the states that the branches start from, [T, E]
    :param next_entropies: entropies in the states after each step, [T, E, N, K]
    :param ent_coef: α, in units of the transformed reward
    :return: r̃, [T, E, N, K]
    """
    first = np.broadcast_to(entropies[..., None, None], (*rewards.shape[:-1], 1))
    soft: Floats = rewards + ent_coef * np.concatenate((first, next_entropies[..., :-1]), axis=-1)
    return soft


def branch_estimates(
    rewards: Floats,
    values: Floats,
    next_values: Floats,
    terminated: np.ndarray,
    alive: np.ndarray,
    gamma: float,
    branch_lambda: float = 1.0,
) -> Floats:
    """
    Return the value-boosted estimate of every branch of up to K steps.

    δ[t,e,i] = Σₖ (γλ)ᵏ alive[t,e,i,k] (r[t,e,i,k] + γ V(s[t,e,i,k+1]) (1 - terminated[t,e,i,k]) - V(s[t,e,i,k]))

    The mix of the k-step returns of its prefixes with weights (1-λ)λᵏ⁻¹, the last one with λᴷ⁻¹, minus V(s): the K-step
    return alone for λ = 1, and ``value_boosted_estimates`` for K = 1. A branch ends at termination and truncation.

    Source: λ-return of https://arxiv.org/abs/1506.02438, section 3, truncated to the branch.

    :param rewards: transformed rewards, [T, E, N, K]
    :param values: values of the states that the branches start from, [T, E]
    :param next_values: values of the states after each step, [T, E, N, K]
    :param terminated: whether the step led to a terminal state, [T, E, N, K]
    :param alive: whether the branch took the step, [T, E, N, K]
    :param gamma: discount factor γ
    :param branch_lambda: λ of the mix of prefixes
    :return: δ, in units of the transformed reward, [T, E, N]
    """
    first_values = np.broadcast_to(values[..., None, None], (*rewards.shape[:-1], 1))
    previous_values = np.concatenate((first_values, next_values[..., :-1]), axis=-1)
    steps = rewards + gamma * next_values * (1.0 - terminated.astype(np.float32)) - previous_values
    discounts = ((gamma * branch_lambda) ** np.arange(rewards.shape[-1])).astype(rewards.dtype)
    estimates: Floats = (steps * alive * discounts).sum(axis=-1)
    return estimates


def committed_estimates(
    estimates: Floats, dones: np.ndarray, gamma: float, branch_lambda: float = 1.0, horizon: int = 1
) -> Floats:
    """
    Return the value-boosted estimates of the committed actions over K steps of the committed trajectory itself.

    δᴷ[t,e] = Σₖ (γλ)ᵏ δ[t+k,e],    k < K up to the end of the episode and of the rollout

    :param estimates: one-step estimates of the committed actions, [T, E]
    :param dones: whether the episode ended with the macro-step, [T, E]
    :param gamma: discount factor γ
    :param branch_lambda: λ of the mix of prefixes
    :param horizon: number of steps K
    :return: δᴷ, [T, E]
    """
    result: Floats = estimates.copy()
    for k in range(1, min(horizon, len(estimates))):
        result[:-k] += (gamma * branch_lambda) ** k * _survival(dones, k) * estimates[k:]
    return result


def generalized_advantages(estimates: Floats, dones: np.ndarray, gamma: float, gae_lambda: float) -> Floats:
    """
    Return PPO's generalized advantage estimates along the committed trajectory.

    GAE[t,e] = δ[t,e] + γλ (1 - done[t,e]) GAE[t+1,e],    GAE[T,e] = 0

    Source: https://arxiv.org/abs/1506.02438

    :param estimates: value-boosted estimates of the committed actions, [T, E]
    :param dones: whether the episode ended with the macro-step, [T, E]
    :param gamma: discount factor γ
    :param gae_lambda: bias-variance trade-off λ
    :return: GAE, [T, E]
    """
    advantages = np.zeros_like(estimates)
    last = np.zeros_like(estimates[0])
    continues = 1.0 - dones.astype(np.float32)
    for t in reversed(range(len(estimates))):
        last = estimates[t] + gamma * gae_lambda * continues[t] * last
        advantages[t] = last
    return advantages


def gae_tails(gae: Floats, dones: np.ndarray, gamma: float, gae_lambda: float, horizon: int = 1) -> Floats:
    """
    Return what generalized advantage estimates add to the estimate over K steps.

    tail[t,e] = (γλ)ᴷ GAE[t+K,e] if the episode goes on for K steps, else 0,    so that GAE = δᴷ + tail

    :param gae: generalized advantage estimates of the committed trajectory, [T, E]
    :param dones: whether the episode ended with the macro-step, [T, E]
    :param gamma: discount factor γ
    :param gae_lambda: bias-variance trade-off λ
    :param horizon: number of steps K that the estimates cover
    :return: tails, [T, E]
    """
    tails: Floats = np.zeros_like(gae)
    if horizon < len(gae):
        tails[:-horizon] = (gamma * gae_lambda) ** horizon * _survival(dones, horizon) * gae[horizon:]
    return tails


def _survival(dones: np.ndarray, n_steps: int) -> Floats:
    """Return 1.0 where the episode goes on for ``n_steps``, for all macro-steps that have as many after them."""
    alive = np.ones((len(dones) - n_steps, *dones.shape[1:]), dtype=np.float32)
    for k in range(n_steps):
        alive *= 1.0 - dones[k : len(alive) + k].astype(np.float32)
    return alive


def without_rounding(estimates: Floats, tolerance: float) -> Floats:
    """
    Return estimates of which those of a state are equal if they differ by rounding alone, which would tell its actions apart.

    Q'[i] = Q[0] if maxᵢ Q[i] - minᵢ Q[i] ≤ t, else Q[i]

    :param estimates: Q, [..., N]
    :param tolerance: t
    :return: Q', [..., N]
    """
    is_equal = np.ptp(estimates, axis=-1, keepdims=True) <= tolerance
    return np.where(is_equal, estimates[..., :1], estimates)
