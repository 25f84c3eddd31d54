"""Natural steps along gradients that are averaged over rollouts."""

from collections.abc import Iterable

import torch as th
from torch import nn

from sb3_hybrid_grpo import HybridGRPO

_DECAY = 0.7


class AveragedGradient(HybridGRPO):
    """
    Takes natural steps along the exponential moving average of the gradients of the latest rollouts: as long as the policy
    changes slowly, that is the gradient of several rollouts, with less noise.

    g' = Σ_k b^k g[-k] / Σ_k b^k,    b = 0.7
    """

    def _setup_model(self) -> None:
        super()._setup_model()
        self._sum: th.Tensor | float = 0.0
        self._weight = 0.0

    def _gradient(self, parameters: Iterable[nn.Parameter]) -> th.Tensor:
        self._sum = _DECAY * self._sum + super()._gradient(parameters)
        self._weight = _DECAY * self._weight + 1
        return self._sum / self._weight
