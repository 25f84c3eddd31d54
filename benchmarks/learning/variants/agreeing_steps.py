"""Natural steps that are shorter where rollouts disagree."""

from collections.abc import Iterable

import torch as th
from torch import nn

from sb3_hybrid_grpo import HybridGRPO


class AgreeingSteps(HybridGRPO):
    """
    Takes natural steps along averaged gradients, as long as these agree.

    δ' = δ |ḡ|² / q,    q = Σₖ bᵏ |g[-k]|² / Σₖ bᵏ

    The factor is 1 if all gradients are the same, and (1 - b) / (1 + b) in the long run if they have nothing in common.
    """

    def _setup_model(self) -> None:
        super()._setup_model()
        self._squares, self._agreement = type(self._gradient_average)(), 1.0

    def _gradient(self, parameters: Iterable[nn.Parameter]) -> th.Tensor:
        momentum, self.trust_region_momentum = self.trust_region_momentum, 0.0
        latest = super()._gradient(parameters)
        self.trust_region_momentum = momentum
        average = self._gradient_average.update(latest, momentum)
        square = self._squares.update((latest @ latest).reshape(1), momentum)
        self._agreement = float(average @ average / square)
        self.logger.record("train/agreement", self._agreement)
        return average

    def _kl_of_step(self) -> float:
        return super()._kl_of_step() * self._agreement
