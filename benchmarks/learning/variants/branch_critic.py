"""A critic that learns from branches, too."""

from typing import ClassVar

import numpy as np
import torch as th

from sb3_hybrid_grpo import HybridGRPO
from sb3_hybrid_grpo.common import Observations
from sb3_hybrid_grpo.rollout import DeferredValues


class KeptObservations(DeferredValues):
    """Keeps next observations of branches, and where they belong."""

    into: ClassVar[str] = "branch_observation_ids"

    def write(self, observations: Observations, destination: np.ndarray, mask: np.ndarray) -> None:
        """Number observations, and keep them."""
        assert isinstance(observations, np.ndarray)
        destination[mask] = np.arange(len(observations)) + self._n_pending
        self._n_pending += len(observations)
        self._observations.append(observations)

    def flush(self) -> None:
        """Do nothing: they are kept."""

    def joined(self) -> np.ndarray:
        """All that were kept, [M, \\*obs_shape]."""
        return np.concatenate(self._observations)  # type: ignore[arg-type]


class BranchCritic(HybridGRPO):
    """After each update the critic has one epoch on the states after a branch's first step, with the value of its second."""

    _kept: KeptObservations

    def _make_deferred(self) -> list[DeferredValues]:
        self.rollout_buffer.branch_observation_ids = np.zeros(self.rollout_buffer.branch_rewards.shape, dtype=np.int64)  # type: ignore[attr-defined]
        self._kept = KeptObservations(self.policy)
        return [*super()._make_deferred(), self._kept]

    def train(self) -> None:
        """Update, and teach the critic what branches have seen."""
        super().train()
        buffer = self.rollout_buffer
        taken = buffer.branch_alive[..., 1]
        if not taken.any():
            return
        states = self._kept.joined()[buffer.branch_observation_ids[..., 0][taken]]  # type: ignore[attr-defined]
        rewards = buffer.reward_transform(buffer.branch_rewards)[..., 1][taken]
        goes_on = ~buffer.branch_terminated[..., 1][taken]
        targets = rewards + self.gamma * goes_on * buffer.branch_next_values[..., 1][taken]
        order = np.random.permutation(len(states))
        for batch in np.array_split(order, max(len(order) // self.batch_size, 1)):
            values = self.policy.predict_values(th.as_tensor(states[batch])).flatten()
            loss = self.vf_coef * th.nn.functional.mse_loss(values, th.as_tensor(targets[batch], dtype=th.float32))
            self.policy.optimizer.zero_grad()
            loss.backward()
            th.nn.utils.clip_grad_norm_(self.policy.parameters(), self.max_grad_norm)
            self.policy.optimizer.step()
