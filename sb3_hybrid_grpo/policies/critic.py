"""The last layer of the critic, solved by least squares where gradient descent lags behind returns that grow."""

from collections.abc import Iterator
from typing import Protocol

import numpy as np
import torch as th
from stable_baselines3.common.policies import ActorCriticPolicy
from torch import nn

from sb3_hybrid_grpo.common import Floats, MultiSampleRolloutBufferSamples
from sb3_hybrid_grpo.policies.evaluators import predict_values
from sb3_hybrid_grpo.policies.maskable import class_of, stock_class
from sb3_hybrid_grpo.policies.networks import chunk_size, product

RIDGE = 3e-3
"""Penalty ρ of a change of the last layer, in units of the features' mean variance."""

MIN_STATES_PER_FEATURE = 4
"""With fewer states a rollout's noise would be fitted."""


class FinishedRollout(Protocol):
    """What is needed of a multi-sample rollout buffer, see there."""

    n_samples: int
    returns: np.ndarray
    branch_alive: np.ndarray
    branch_rewards: np.ndarray
    branch_terminated: np.ndarray

    def get(self, batch_size: int | None = None) -> Iterator[MultiSampleRolloutBufferSamples]:
        """
        Yield minibatches of states.

        :param batch_size: number of states in each
        """


def least_squares_change(features: Floats, residuals: Floats, ridge: float = RIDGE) -> tuple[Floats, float]:
    """
    Return the change of a linear layer that explains what it has left unexplained.

    (Δw, Δb) = argmin Σ_s (y[s] - φ[s]·Δw - Δb)² + S ρ σ² |Δw|²,    σ² = 1/d Σ_j var(φ_j)

    Source: ridge regression around the weights that gradient descent has found, as in Least Squares DQN
    (https://arxiv.org/abs/1705.07461).

    :param features: inputs φ of the layer, [S, d]
    :param residuals: targets minus its present outputs y, [S]
    :param ridge: ρ
    :return: Δw, [d], and Δb
    """
    deviations = features - features.mean(axis=0)
    covariance = product(deviations.T, deviations) / len(features)
    variance = covariance.trace() / len(covariance)
    if variance == 0:
        return np.zeros(len(covariance)), float(residuals.mean())
    moments = deviations.T @ (residuals - residuals.mean()) / len(features)
    weight: Floats = np.linalg.solve(covariance + ridge * variance * np.eye(len(covariance)), moments)
    return weight, float(residuals.mean() - features.mean(axis=0) @ weight)


def made_a_difference(buffer: FinishedRollout) -> bool:
    """
    Tell whether any action that was tried changed a reward or ended an episode.

    :param buffer: a rollout
    :return: whether it did; ``True`` if there is nothing to compare with, as with N = 1
    """
    if buffer.n_samples == 1 or buffer.branch_terminated.any():
        return True
    differs = buffer.branch_rewards[:, :, 1:, 0] != buffer.branch_rewards[:, :, :1, 0]
    return bool(differs[buffer.branch_alive[:, :, 1:, 0]].any())


def has_linear_head(policy: ActorCriticPolicy) -> bool:
    """
    Tell whether the values of a policy are the outputs of a linear layer with bias, as in SB3's own policies.

    :param policy: the policy
    :return: whether its critic can be refitted
    """
    stock = stock_class(class_of(policy))
    head = policy.value_net
    return class_of(policy).predict_values is stock.predict_values and type(head) is nn.Linear and head.bias is not None


@th.no_grad()
def refit_value_head(policy: ActorCriticPolicy, buffer: FinishedRollout) -> None:
    """
    Solve the critic's last layer for the returns of a rollout. What comes before it stays as it is, and so does the actor.

    A layer that is frozen stays, too. A rollout of fewer than four states per input of the layer changes nothing. Nor does
    one in which no action made a difference, as before a sparse reward is found: its returns differ by what the critic has
    said itself.

    :param policy: a policy that ``has_linear_head``
    :param buffer: the rollout, with returns
    """
    head = policy.value_net
    is_free = head.weight.requires_grad and head.bias.requires_grad
    has_enough = buffer.returns.size >= MIN_STATES_PER_FEATURE * head.in_features
    if not (is_free and has_enough and made_a_difference(buffer)):
        return
    policy.set_training_mode(False)
    features: list[np.ndarray] = []
    residuals: list[np.ndarray] = []
    hook = head.register_forward_pre_hook(lambda _, inputs: features.append(inputs[0].cpu().numpy()))
    try:
        for rollout_data in buffer.get(chunk_size(policy.observation_space)):
            values = predict_values(policy, rollout_data.observations, rollout_data.sequences)
            residuals.append(rollout_data.returns - values.cpu().numpy())
            if rollout_data.sequences is not None:
                features[-1] = features[-1][rollout_data.sequences.is_state.cpu().numpy()]
    finally:
        hook.remove()
    weight, bias = least_squares_change(np.concatenate(features).astype(np.float64), np.concatenate(residuals))
    head.weight.add_(th.from_numpy(weight).to(head.weight))
    head.bias.add_(bias)
