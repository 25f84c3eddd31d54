"""Updates that overshoot are scaled back."""

import math

import numpy as np
import torch as th

from benchmarks.learning.variants.recomputed_advantages import RecomputedAdvantages
from sb3_hybrid_grpo import HybridGRPO
from sb3_hybrid_grpo.estimation import losses
from sb3_hybrid_grpo.policies import make_evaluator

_LIMIT = 2.0


class ScaledBack(HybridGRPO):
    """
    After an update whose KL divergence, over the whole rollout, is more than twice ``desired_kl``, goes back on the straight
    line to the parameters before it. The divergence grows with the square of a small step, which says how far.
    """

    def train(self) -> None:
        """Update, and go back if that was too far."""
        before = [parameter.detach().clone() for parameter in self.policy.parameters()]
        super().train()
        assert self.desired_kl is not None
        kl, limit = self._divergence(), _LIMIT * self.desired_kl
        self.logger.record("train/kl_after_update", kl)
        if kl > limit:
            with th.no_grad():
                for parameter, start in zip(self.policy.parameters(), before, strict=True):
                    parameter.copy_(start.lerp(parameter, math.sqrt(limit / kl)))

    def _divergence(self) -> float:
        rollout = next(self.rollout_buffer.get())
        _, log_prob, _ = make_evaluator(self.policy).evaluate_actions(
            rollout.observations, rollout.actions, rollout.action_masks, rollout.sequences
        )
        with np.errstate(over="ignore"):
            return float(losses.approximate_kl(log_prob - rollout.old_log_prob, rollout.weights))


class RecomputedScaledBack(ScaledBack, RecomputedAdvantages):
    """Both: one action per state, advantages from the present critic in each epoch, and updates that are scaled back."""
