"""How much the λ-tail of the committed actions deserves to count."""

import itertools
import math
from typing import Any

import numpy as np
import torch as th
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.utils import obs_as_tensor

from sb3_hybrid_grpo.common.advantages import shrinkage
from sb3_hybrid_grpo.common.buffers import MultiSampleMixin
from sb3_hybrid_grpo.common.evaluation import chunk_size, evaluate_actions, flatten_observations

_MIN_PARTS = 8


def shrunk_tail_coef(policy: ActorCriticPolicy, buffer: MultiSampleMixin) -> float:
    """
    Weigh the tails of a rollout by the signal-to-noise ratio of the policy gradient that they make.

    The group of a state estimates what its actions do within a branch. The tail is the only estimate of what follows, from
    one path and with its noise: where that drowns the gradient, the sum of both is better with less of it.

    :param policy: the policy that collected the rollout
    :param buffer: a rollout with advantages
    :return: ``shrinkage`` of the tails' gradient between parts of the rollout
    """
    n_chunks = math.ceil(buffer.buffer_size * buffer.n_envs / chunk_size(buffer.observation_space))
    n_parts = min(max(_MIN_PARTS, n_chunks), buffer.buffer_size)
    return shrinkage(np.stack([_gradient(policy, buffer, rows) for rows in _parts(buffer.buffer_size, n_parts)]))


def _parts(n_steps: int, n_parts: int) -> list[slice]:
    ends = np.linspace(0, n_steps, n_parts + 1).astype(int).tolist()
    return [slice(*bounds) for bounds in itertools.pairwise(ends)]


def _gradient(policy: ActorCriticPolicy, buffer: MultiSampleMixin, rows: slice) -> np.ndarray:
    """Return the gradient of mean(log π(a₀|s) · centred tail) over some macro-steps, [P]."""
    obs: Any = obs_as_tensor(flatten_observations(buffer.observations, rows), policy.device)  # type: ignore[arg-type]
    actions = buffer.to_torch(buffer.actions[rows, :, :1].astype(np.float32, copy=False)).flatten(end_dim=1)
    tails = buffer.to_torch(buffer.centred_tails[rows]).flatten()
    _, log_prob, _ = evaluate_actions(policy, obs, actions)
    gradients = th.autograd.grad((log_prob[:, 0] * tails).mean(), list(policy.parameters()), allow_unused=True)
    return th.cat([gradient.flatten() for gradient in gradients if gradient is not None]).cpu().numpy()
