"""Branches that grow while the critic learns less and less."""

from typing import Any

from sb3_hybrid_grpo import HybridGRPO

_LONGEST = 4


class GrowingHorizon(HybridGRPO):
    """Branches of one step at first, of four in the last quarter of training."""

    def collect_rollouts(self, *args: Any, **kwargs: Any) -> bool:
        """Set the horizon, then collect."""
        done = 1 - self._current_progress_remaining
        self._horizon = self.rollout_buffer.branch_horizon = 1 + min(int(_LONGEST * done), _LONGEST - 1)
        return super().collect_rollouts(*args, **kwargs)
