"""Branches at states where the critic is expected to err most."""

from typing import Any

import numpy as np

from sb3_hybrid_grpo import HybridGRPO


class InformativeStates(HybridGRPO):
    """
    Branches at the share ``branch_fraction`` of states with the largest errors that are expected of the critic, before
    anything is known of what they lead to: the logarithm of the committed action's absolute estimate, regressed on the
    observation and its squares over the last rollout. Until there is one, states are drawn at random.
    """

    _coef: np.ndarray | None = None
    _threshold: float = 0.0

    def collect_rollouts(self, *args: Any, **kwargs: Any) -> bool:
        """Collect, and learn what to expect."""
        goes_on = super().collect_rollouts(*args, **kwargs)
        if goes_on:
            features = _features(self.rollout_buffer.observations.reshape(-1, self.rollout_buffer.observations.shape[-1]))
            errors = np.log(np.abs(self.rollout_buffer.estimates[..., 0]).ravel() + 1e-3)
            penalty = np.eye(features.shape[1])
            self._coef = np.linalg.solve(features.T @ features + penalty, features.T @ errors)
            self._threshold = float(np.quantile(features @ self._coef, 1 - float(self.branch_fraction)))
        return goes_on

    def _choose_branches(self, actions: np.ndarray, action_masks: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
        if self._coef is None:
            return super()._choose_branches(actions, action_masks)
        share, self.branch_share = self.branch_share, 1.0
        sources, alive = super()._choose_branches(actions, action_masks)
        self.branch_share = share
        skipped = _features(self._last_obs) @ self._coef < self._threshold
        alive[skipped] = False
        sources[skipped] = np.arange(actions.shape[1])
        return sources, alive


def _features(observations: Any) -> np.ndarray:
    return np.concatenate((np.ones((len(observations), 1)), observations, np.square(observations)), axis=1)
