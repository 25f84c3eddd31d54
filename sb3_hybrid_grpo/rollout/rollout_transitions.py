"""What really happened in a rollout, as a model of the environment learns from it."""

import numpy as np
from stable_baselines3.common.policies import ActorCriticPolicy

from sb3_hybrid_grpo.common import Transitions
from sb3_hybrid_grpo.policies import to_env_actions
from sb3_hybrid_grpo.rollout.multi_sample import MultiSampleMixin


def committed_transitions(
    policy: ActorCriticPolicy, buffer: MultiSampleMixin, last_obs: np.ndarray, dones: np.ndarray
) -> Transitions:
    """
    Collect the committed transitions of a rollout. Episodes that were cut off have lost their last observation, and the last
    sample of a state is the committed action once more (see ``ModelledSamples``).

    :param policy: the policy that collected it
    :param buffer: the rollout
    :param last_obs: observations after its last macro-step, [E, \\*obs_shape]
    :param dones: whether the last macro-step ended the episode, [E]
    :return: the transitions
    """
    following = np.concatenate((buffer.observations[1:], last_obs.reshape(1, *buffer.observations.shape[1:])))
    terminated = buffer.terminated[..., 0]
    ends = np.concatenate((buffer.episode_starts[1:] > 0, dones[None].astype(bool)))
    known = terminated | ~ends
    ended = terminated.reshape(*terminated.shape, *[1] * (following.ndim - 2))
    actions = buffer.actions.reshape(*buffer.rewards.shape, *buffer.action_space.shape)  # type: ignore[misc]
    actions = to_env_actions(policy, actions[known])
    return Transitions(
        buffer.observations[known],
        actions[:, 0],
        np.where(ended, buffer.observations, following)[known],
        buffer.rewards[..., 0][known],
        terminated[known],
        actions[:, 1:-1],
    )
