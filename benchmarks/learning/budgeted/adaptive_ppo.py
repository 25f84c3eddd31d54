"""PPO with Hybrid GRPO's control of the learning rate, so that both can be tuned alike."""

from typing import Any

import torch as th
from stable_baselines3 import PPO
from stable_baselines3.common.utils import update_learning_rate

from sb3_hybrid_grpo.common.schedules import check_desired_kl, kl_adapted_factor


class AdaptivePPO(PPO):
    """
    PPO whose learning rate follows the KL divergence of its updates.

    :param args: PPO's arguments
    :param desired_kl: as in ``HybridGRPO``; PPO itself by default
    :param learning_rate_bounds: as in ``HybridGRPO``
    :param kwargs: PPO's arguments
    """

    def __init__(
        self,
        *args: Any,
        desired_kl: float | None = None,
        learning_rate_bounds: tuple[float, float] = (1e-6, 1e-2),
        **kwargs: Any,
    ) -> None:
        self.desired_kl = desired_kl
        self.learning_rate_bounds = learning_rate_bounds
        self.learning_rate_factor = 1.0
        check_desired_kl(desired_kl, kwargs.get("target_kl"), learning_rate_bounds)
        super().__init__(*args, **kwargs)

    def train(self) -> None:
        """Update the policy as PPO does, and then the factor of the learning rate."""
        super().train()
        if self.desired_kl is not None:
            self.learning_rate_factor = kl_adapted_factor(
                self.learning_rate_factor,
                self._learning_rate(),
                float(self.logger.name_to_value["train/approx_kl"]),
                self.desired_kl,
                self.learning_rate_bounds,
            )

    def _update_learning_rate(self, optimizers: list[th.optim.Optimizer] | th.optim.Optimizer) -> None:
        learning_rate = self._learning_rate()
        self.logger.record("train/learning_rate", learning_rate)
        for optimizer in optimizers if isinstance(optimizers, list) else [optimizers]:
            update_learning_rate(optimizer, learning_rate)

    def _learning_rate(self) -> float:
        return self.lr_schedule(self._current_progress_remaining) * self.learning_rate_factor
