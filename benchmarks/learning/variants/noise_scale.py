"""Rollouts as long as the gradient's noise asks for."""

from typing import Any

import numpy as np
import torch as th
from torch.nn.utils import parameters_to_vector

from sb3_hybrid_grpo import HybridGRPO
from sb3_hybrid_grpo.policies import evaluate_actions

_MEMORY = 0.9
_SHORTEST, _LONGEST = 64, 1024


class NoiseScaledRollouts(HybridGRPO):
    """
    Estimates the simple noise scale (McCandlish et al. 2018, eq. 2.9: the trace of the covariance of a state's gradient over
    the squared norm of their mean) from the gradients of two halves of each rollout, and makes rollouts as long, within a
    factor of two from one to the next.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.signal = self.noise = 0.0
        super().__init__(*args, **kwargs)

    def train(self) -> None:
        """Update, and choose the length of the next rollout."""
        self._measure()
        super().train()
        n_states = self.n_steps * self.n_envs
        wanted = self.noise / max(self.signal, 1e-12)
        n_states = int(np.clip(np.clip(wanted, n_states / 2, 2 * n_states), _SHORTEST, _LONGEST))
        self.n_steps = self.rollout_buffer.buffer_size = n_states // self.n_envs
        self.logger.record("train/noise_scale", wanted)

    def _measure(self) -> None:
        size = self.n_steps * self.n_envs // 2
        halves = self.rollout_buffer.get(size)
        first, second = self._gradient(next(halves)), self._gradient(next(halves))
        self.signal = _MEMORY * self.signal + (1 - _MEMORY) * float(first @ second)
        self.noise = _MEMORY * self.noise + (1 - _MEMORY) * size * float((first - second).square().sum()) / 2

    def _gradient(self, half: Any) -> th.Tensor:
        _, log_prob, _ = evaluate_actions(self.policy, half.observations, half.actions)
        weights = th.as_tensor(half.advantages * half.weights)
        actor = [*self.policy.mlp_extractor.policy_net.parameters(), *self.policy.action_net.parameters()]
        return parameters_to_vector(th.autograd.grad((weights * log_prob).sum(dim=1).mean(), actor))
