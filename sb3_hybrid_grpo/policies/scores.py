"""Scores of small networks without autograd."""

import numpy as np
import torch as th
from torch import nn

from sb3_hybrid_grpo.policies.heads import Head
from sb3_hybrid_grpo.policies.networks import Chain


class MlpScores:
    """
    Scores of the latest evaluation of an actor, see ``Scores``.

    :param actor: the layers of the actor
    :param head: what makes a distribution of their outputs
    """

    def __init__(self, actor: Chain, head: Head) -> None:
        self._actor, self._head = actor, head
        self.parameters: list[nn.Parameter] = [*actor.parameters, *head.parameters]

    @th.no_grad()
    def along(self, direction: th.Tensor) -> th.Tensor:
        """
        Differentiate the log-probabilities along a direction, see ``Scores.along``.

        :param direction: the direction
        :return: the derivatives
        """
        of_actor, of_head = np.split(direction.numpy(), [self._actor.gradient.size])
        return th.from_numpy(self._head.along(self._actor.along(of_actor), of_head))

    @th.no_grad()
    def combine(self, weights: th.Tensor) -> th.Tensor:
        """
        Add up scores, see ``Scores.combine``. It leaves them in the gradients of the parameters.

        :param weights: their weights
        :return: the sum
        """
        self._actor.backward(self._head.backward(weights.numpy(), None))
        of_head = [np.asarray(parameter.grad) for parameter in self._head.parameters]
        return th.from_numpy(np.concatenate([self._actor.gradient, *of_head]))
