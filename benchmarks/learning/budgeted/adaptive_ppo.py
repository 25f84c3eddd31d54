"""PPO with Hybrid GRPO's control of the learning rate, so that both can be tuned alike."""

from typing import Any

from stable_baselines3 import PPO

from sb3_hybrid_grpo.common.schedules import AdaptiveLearningRate, check_desired_kl


class AdaptivePPO(AdaptiveLearningRate, PPO):
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
        self._adapt_learning_rate(float(self.logger.name_to_value["train/approx_kl"]))
