"""Natural steps for which earlier rollouts count as well."""

from collections import deque
from collections.abc import Sequence

import numpy as np
import torch as th
from torch import nn

from sb3_hybrid_grpo import HybridGRPO
from sb3_hybrid_grpo.common import MultiSampleRolloutBufferSamples
from sb3_hybrid_grpo.estimation import losses
from sb3_hybrid_grpo.hybrid_grpo.clipped_update import Metrics
from sb3_hybrid_grpo.policies import Evaluator


class ReusedRollouts(HybridGRPO):
    """
    Takes natural steps of the clipped loss of the latest ``n_reused`` rollouts together, the actions of each with the ratio to
    the policy that sampled them, and with the advantages of that time.

    Source: Generalized Proximal Policy Optimization with Sample Reuse (https://arxiv.org/abs/2111.00072), with natural steps.
    Ratios are clipped around 1, not around the present policy's, all rollouts have the same weight, and advantages and
    normalised observations are those of their time.
    """

    n_reused = 2

    def _setup_model(self) -> None:
        super()._setup_model()
        self._earlier: deque[MultiSampleRolloutBufferSamples] = deque(maxlen=self.n_reused - 1)
        self._log_prob_before: np.ndarray | None = None

    def _take_natural_step(self, evaluator: Evaluator, metrics: Metrics) -> list[nn.Parameter]:
        latest = next(self.rollout_buffer.get())
        together = join([latest, *self._earlier])
        self.rollout_buffer.get = lambda: iter([together])  # type: ignore[method-assign,misc,assignment]
        self._log_prob_before = None
        try:
            return super()._take_natural_step(evaluator, metrics)
        finally:
            del self.rollout_buffer.get
            self._earlier.appendleft(join([latest]))

    def _policy_losses(
        self,
        rollout_data: MultiSampleRolloutBufferSamples,
        log_prob: np.ndarray,
        entropy: np.ndarray | None,
        metrics: Metrics,
    ) -> list[losses.Loss]:
        """Measure the divergence from the policy before the step, whichever policy has sampled."""
        terms = super()._policy_losses(rollout_data, log_prob, entropy, metrics)
        if self._log_prob_before is None:
            self._log_prob_before = log_prob.copy()
        metrics["approx_kl"][-1] = losses.approximate_kl(log_prob - self._log_prob_before, rollout_data.weights)
        return terms


class ThreeReusedRollouts(ReusedRollouts):
    """Three rollouts together."""

    n_reused = 3


def join(rollouts: Sequence[MultiSampleRolloutBufferSamples]) -> MultiSampleRolloutBufferSamples:
    """
    Put rollouts of a policy without masks or memory one after the other.

    :param rollouts: B states each
    :return: all states
    """
    tensors = {name: th.cat([getattr(each, name) for each in rollouts]) for name in ("observations", "actions")}
    names = ("old_values", "old_log_prob", "advantages", "returns", "weights")
    arrays = {name: np.concatenate([getattr(each, name) for each in rollouts]) for name in names}
    return MultiSampleRolloutBufferSamples(**tensors, **arrays)
