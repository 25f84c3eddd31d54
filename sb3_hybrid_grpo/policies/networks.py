"""How many observations networks get at once, and small ones whose own backward pass takes a third of autograd's time."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch as th
from gymnasium import spaces
from torch import nn

_CHUNK_BYTES = 2**24
_MAX_CHUNK = 4096


class Chain:
    """
    Layers one after the other.

    :param layers: layers that it ``supports``
    """

    def __init__(self, layers: Sequence[nn.Module]) -> None:
        self._layers = [(layer.weight, layer.bias) if isinstance(layer, nn.Linear) else layer for layer in layers]

    @staticmethod
    def supports(layers: Sequence[nn.Module]) -> bool:
        """
        Tell whether all layers can be differentiated here.

        :param layers: the layers
        :return: whether they are linear layers with bias and known activations
        """
        return all(
            layer.bias is not None if type(layer) is nn.Linear else type(layer) in _ACTIVATION_BACKWARD for layer in layers
        )

    def forward(self, latent: th.Tensor) -> th.Tensor:
        """
        Apply the layers.

        :param latent: inputs, [B, n]
        :return: outputs, [B, m]
        """
        self._latents = [latent]
        for layer in self._layers:
            if isinstance(layer, tuple):
                weight, bias = layer
                latent = th.addmm(bias, latent, weight.t())
            else:
                latent = layer(latent)
            self._latents.append(latent)
        return latent

    def backward(self, gradient: th.Tensor) -> None:
        """
        Set the gradients of the layers' parameters.

        :param gradient: gradient with respect to the latest outputs, [B, m]
        """
        for i, layer in reversed([*enumerate(self._layers)]):
            if isinstance(layer, tuple):
                weight, bias = layer
                weight.grad, bias.grad = gradient.t() @ self._latents[i], gradient.sum(dim=0)
                if i > 0:
                    gradient = gradient @ weight
            else:
                gradient = _ACTIVATION_BACKWARD[type(layer)](gradient, self._latents[i + 1])


_ACTIVATION_BACKWARD: dict[type[nn.Module], Callable[[th.Tensor, th.Tensor], th.Tensor]] = {
    nn.Tanh: lambda gradient, output: th.addcmul(gradient, gradient * output, output, value=-1),
    nn.ReLU: lambda gradient, output: gradient * (output > 0),
}
"""For each type of activation: the gradient with respect to its input, from that with respect to its output."""


def chunk_size(space: spaces.Space[Any]) -> int:
    """
    Return how many observations the networks get at once.

    :param space: observation space
    :return: a number of observations that fit into a few megabytes
    """
    return int(np.clip(_CHUNK_BYTES // (4 * spaces.flatdim(space)), 1, _MAX_CHUNK))
