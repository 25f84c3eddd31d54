"""Steps that are shorter where little is at stake."""

from typing import Any

import numpy as np

from sb3_hybrid_grpo import HybridGRPO
from sb3_hybrid_grpo.common.schedules import value_at

_SHARE = 0.3


class Stakes(HybridGRPO):
    """
    Normalised advantages are as large where no action is better than another as where one is, and a natural step is as
    long. Here its divergence is δ min(1, σ / 0.3 m)², with the standard deviation σ of the rollout's advantages and the
    largest one so far, m.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.largest = 0.0
        super().__init__(*args, **kwargs)

    def train(self) -> None:
        """Update within a trust region that follows what is at stake."""
        assert self.trust_region is not None
        trust_region = self.trust_region
        spread = float(np.std(self.rollout_buffer.advantages))
        self.largest = max(self.largest, spread)
        share = min(1.0, spread / max(_SHARE * self.largest, 1e-12)) ** 2
        self.logger.record("train/stakes", share)
        self.trust_region = share * value_at(trust_region, self._current_progress_remaining)
        try:
            super().train()
        finally:
            self.trust_region = trust_region
