"""What is checked and logged about a rollout, beyond PPO's metrics."""

from typing import Any

import numpy as np
from gymnasium import spaces
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.utils import explained_variance

from sb3_hybrid_grpo.common import Floats
from sb3_hybrid_grpo.estimation import CallableTransform, RewardTransform
from sb3_hybrid_grpo.policies import to_env_actions
from sb3_hybrid_grpo.rollout import MultiSampleMixin

_SAME_ACTION = 0.01
_DECIDED = 0.99
_FLAT = 0.05


def rollout_statistics(policy: ActorCriticPolicy, buffer: MultiSampleMixin) -> dict[str, float]:
    """
    Summarise the estimates of a rollout.

    :param policy: the policy that collected the rollout
    :param buffer: the rollout, with advantages
    :return: ``rollout/averaged_advantage_mean``, the mean of the paper's A_T; ``rollout/group_std``, the mean standard
        deviation of the estimates within a state; and what ``sb3_hybrid_grpo.diagnostics.symptoms`` explains:
        ``diagnostics/advantage_variance`` and that of PPO's advantages on the same data, with their ratio,
        ``branch_explained_variance``, ``saturated_rewards``, ``coincident_actions``, ``groups_without_signal`` and
        ``branch_disagreement``
    """
    rewards, branched = buffer.rewards, buffer.branched
    statistics = {
        "rollout/averaged_advantage_mean": float(buffer.averaged_advantages.mean()),
        "rollout/group_std": float(buffer.estimates[branched].std(axis=-1).mean()) if branched.any() else 0.0,
    }
    # A user's function may not bear other rewards than the environment's.
    if not isinstance(buffer.reward_transform, CallableTransform):
        known = rewards[buffer.branch_alive[..., 0]]
        statistics["diagnostics/saturated_rewards"] = saturated_share(buffer.reward_transform, known)
    if buffer.n_samples == 1 or not branched.any():
        return statistics
    estimates = buffer.estimates[branched]
    values = np.broadcast_to(buffer.values[branched][:, None], estimates.shape)
    no_spread = np.ptp(estimates, axis=-1) <= 1e-6 * (1 + abs(values[:, 0]))
    statistics["diagnostics/groups_without_signal"] = float(no_spread.mean())
    if buffer.advantage != "group_normalized" and not buffer.is_selected:
        ours = advantage_variance(buffer.advantages[branched], buffer.weights[branched])
        ppos = float((buffer.returns - buffer.values).var())
        statistics |= {
            "diagnostics/advantage_variance": ours,
            "diagnostics/ppo_advantage_variance": ppos,
            "diagnostics/advantage_variance_ratio": ours / ppos if ppos > 0 else 0.0,
            "diagnostics/branch_explained_variance": float(explained_variance(values.ravel(), (values + estimates).ravel())),
        }
    has_choice = np.ones(len(estimates), dtype=bool)
    if buffer.action_masks is not None:
        has_choice = buffer.action_masks[branched].sum(axis=-1) > buffer.action_dim
    if not has_choice.any():
        return statistics
    if buffer.action_sampling == "enumerate":
        decided = np.exp(buffer.log_probs[branched][has_choice]).max(axis=-1) > _DECIDED
        statistics["diagnostics/coincident_actions"] = float(decided.mean())
    else:
        actions = buffer.actions[branched].reshape(*estimates.shape, *buffer.action_space.shape)  # type: ignore[misc]
        coincident = coincident_share(to_env_actions(policy, actions[has_choice]), buffer.action_space)
        statistics["diagnostics/coincident_actions"] = coincident
        # The committed action must be drawn like the others. With gSDE it has its matrix from the past.
        if not (buffer.action_sampling in ("tempered", "modelled") or buffer.is_selected or getattr(policy, "use_sde", False)):
            sampled = np.take_along_axis(rewards, buffer.sources, axis=-1)[branched]
            statistics["diagnostics/branch_disagreement"] = disagreement(sampled)
    return statistics


def advantage_variance(advantages: Floats, weights: Floats) -> float:
    """
    Return the variance of what multiplies the scores of a state in the policy gradient.

    1/S Σ_s Σᵢ (w[s,i] A[s,i])²,    with N = 1 that of PPO's centred advantages

    :param advantages: A, [S, N]
    :param weights: w, [S, N]
    :return: the variance
    """
    return float(np.square(weights * advantages).sum(axis=-1).mean())


def saturated_share(transform: RewardTransform, rewards: Floats) -> float:
    """
    Return the share of rewards where a transform is flat: its slope is below 5 % of the largest, or of that at 0.

    :param transform: f
    :param rewards: rewards, [M]
    :return: the share
    """
    scale = float(rewards.std()) or 1.0
    points = np.append(rewards.astype(np.float64), 0.0)
    slopes = transform.transform(points + 1e-3 * scale) - transform.transform(points - 1e-3 * scale)
    return float((slopes[:-1] < _FLAT * slopes.max()).mean())


def coincident_share(actions: np.ndarray, space: spaces.Space[Any]) -> float:
    """
    Return the share of states whose N actions are the same to the environment: equal, or within 1 % of a bounded range.

    :param actions: actions as the environment takes them, [S, N, \\*action_shape]
    :param space: the action space
    :return: the share
    """
    if not isinstance(space, spaces.Box):
        same = actions == actions[:, :1]
    elif space.is_bounded():
        same = np.ptp(actions, axis=1) <= _SAME_ACTION * (space.high - space.low)
    else:
        return 0.0
    return float(same.reshape(len(same), -1).all(axis=1).mean())


def disagreement(rewards: Floats) -> float:
    """
    Return by how many standard errors branches are rewarded otherwise than committed actions.

    |mean d| / (std d / √S),    d[s] = r[s,0] - mean_{i>0} r[s,i]

    The actions of a state are drawn alike, so that d has mean zero, and does not depend on the d of other states, unless
    branches lead elsewhere than the environment.

    :param rewards: rewards of the first steps, index 0 committed, [S, N]
    :return: number of standard errors
    """
    differences = rewards[:, 0].astype(np.float64) - rewards[:, 1:].mean(axis=1, dtype=np.float64)
    error = differences.std() / np.sqrt(len(differences))
    return float(abs(differences.mean()) / error) if error > 0 else 0.0
