"""The last layer of the critic, solved by least squares where gradient descent lags behind returns that grow."""

from collections.abc import Sequence

import numpy as np
import torch as th
from stable_baselines3.common.policies import ActorCriticPolicy
from torch import nn

from sb3_hybrid_grpo.common.buffers import MultiSampleMixin
from sb3_hybrid_grpo.common.evaluation import chunk_size
from sb3_hybrid_grpo.common.type_aliases import Floats

RIDGES = (np.inf, 1.0, 0.3, 0.1, 0.03, 0.01, 0.003, 0.001)
"""Penalties ρ of a change of the last layer, in units of its inputs' mean square, that are tried. ∞ leaves it as it is."""

N_FOLDS = 5

MIN_STATES_PER_FEATURE = 4
"""With fewer states a rollout's noise would be fitted."""


def least_squares_changes(inputs: Floats, residuals: Floats, ridges: Sequence[float]) -> Floats:
    """
    Return the changes of a linear layer that explain what it has left unexplained.

    Δw = argmin Σ_s (y[s] - φ[s]·Δw)² + S ρ q |Δw|²,    q = 1/d Σ_j mean(φ_j²)

    The constant input of the bias is penalised like the others: of states that are unlike those of the rollout the values
    stay as they are, and what has not been visited is not given up with what has.

    Source: ridge regression around the weights that gradient descent has found, as in Least Squares DQN
    (https://arxiv.org/abs/1705.07461).

    :param inputs: inputs φ of the layer, with a constant 1 for its bias, [S, d]
    :param residuals: targets minus its present outputs y, [S]
    :param ridges: penalties ρ, [R]
    :return: Δw for each of them, [R, d]
    """
    eigenvalues, basis = np.linalg.eigh(inputs.T @ inputs / len(inputs))
    moments = basis.T @ (inputs.T @ residuals / len(inputs))
    return np.array([basis @ (moments / (eigenvalues + ridge * eigenvalues.mean())) for ridge in ridges])


def held_out_errors(inputs: Floats, residuals: Floats, ridges: Sequence[float]) -> Floats:
    """
    Return the mean squares of what changes leave unexplained in parts of a rollout that they were not solved for.

    The parts are contiguous, since the returns of neighbouring states share their noise.

    :param inputs: inputs of the layer, trajectory after trajectory, [S, d]
    :param residuals: targets minus its present outputs, [S]
    :param ridges: penalties, [R]
    :return: mean squared errors, [R]
    """
    folds = np.arange(len(inputs)) * N_FOLDS // len(inputs)
    errors = np.zeros(len(ridges))
    for fold in range(N_FOLDS):
        held_out = folds == fold
        changes = least_squares_changes(inputs[~held_out], residuals[~held_out], ridges)
        errors += np.square(residuals[held_out] - changes @ inputs[held_out].T).sum(axis=1)
    return np.asarray(errors / len(inputs))


def made_a_difference(buffer: MultiSampleMixin) -> bool:
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
    Tell whether the values of a policy are the outputs of a linear layer, as in SB3's own policies.

    :param policy: the policy
    :return: whether its critic can be refitted
    """
    return type(policy).predict_values is ActorCriticPolicy.predict_values and type(policy.value_net) is nn.Linear


@th.no_grad()
def refit_value_head(policy: ActorCriticPolicy, buffer: MultiSampleMixin) -> None:
    """
    Solve the critic's last layer for the returns of a rollout, as far as parts of the rollout predict the others. What comes
    before it stays as it is, and so does the actor.

    A rollout of fewer than four states per input of the layer changes nothing. Nor does one in which no action made a
    difference, as before a sparse reward is found: its returns differ by what the critic has said itself.

    :param policy: a policy that ``has_linear_head``
    :param buffer: the rollout, with returns
    """
    head = policy.value_net
    if buffer.returns.size < MIN_STATES_PER_FEATURE * head.in_features or not made_a_difference(buffer):
        return
    features: list[np.ndarray] = []
    parts: list[np.ndarray] = []
    hook = head.register_forward_pre_hook(lambda _, inputs: features.append(inputs[0].cpu().numpy()))
    try:
        for rollout_data in buffer.in_order(chunk_size(policy.observation_space)):
            parts.append(rollout_data.returns - policy.predict_values(rollout_data.observations).cpu().numpy().ravel())
    finally:
        hook.remove()
    residuals = np.concatenate(parts)
    inputs = np.column_stack((np.concatenate(features), np.ones(len(residuals)))).astype(np.float64)
    ridge = RIDGES[np.argmin(held_out_errors(inputs, residuals, RIDGES))]
    (change,) = th.from_numpy(least_squares_changes(inputs, residuals, [ridge])).to(head.weight)
    head.weight.add_(change[:-1])
    head.bias.add_(change[-1])
