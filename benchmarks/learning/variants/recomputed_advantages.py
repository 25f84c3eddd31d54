"""Advantages that are computed again before each epoch, with the critic that the last one has left."""

from collections.abc import Generator
from typing import Any

import numpy as np
import torch as th

from sb3_hybrid_grpo import HybridGRPO
from sb3_hybrid_grpo.common import MultiSampleRolloutBufferSamples
from sb3_hybrid_grpo.estimation import generalized_advantages, value_boosted_estimates


class RecomputedAdvantages(HybridGRPO):
    """One action per state, advantages and targets from the present critic in each epoch (Andrychowicz et al. 2020)."""

    def train(self) -> None:
        """Update with a buffer that computes advantages again when its second and later epochs begin."""
        buffer, get = self.rollout_buffer, self.rollout_buffer.get
        epoch = 0

        def recompute_and_get(*args: Any) -> Generator[MultiSampleRolloutBufferSamples, None, None]:
            nonlocal epoch
            if epoch:
                self._recompute()
            epoch += 1
            return get(*args)

        buffer.get = recompute_and_get  # type: ignore[method-assign]
        super().train()
        del buffer.get

    def _recompute(self) -> None:
        buffer = self.rollout_buffer
        assert buffer.n_samples == 1 and buffer._end is not None and isinstance(self._last_obs, np.ndarray)
        with th.no_grad():
            flat = self.policy.predict_values(th.as_tensor(buffer.observations)).numpy()
            last = self.policy.predict_values(th.as_tensor(self._last_obs)).numpy().reshape(1, -1)
        values = flat.reshape(buffer.n_envs, buffer.buffer_size).T
        ends = np.concatenate((buffer.episode_starts[1:], buffer._end[1][None].astype(np.float32)))
        next_values = np.where(ends, buffer.next_values[..., 0], np.concatenate((values[1:], last)))[..., None]
        rewards = buffer.reward_transform(buffer.branch_rewards)[..., 0]
        steps = value_boosted_estimates(rewards, values, next_values, buffer.terminated, self.gamma)[..., 0]
        gae = generalized_advantages(steps, ends, self.gamma, self.gae_lambda)
        buffer.advantages = gae.T.reshape(-1, 1)
        buffer.returns = (values + gae).T.reshape(-1, 1)
