"""How many observations networks get at once, and small ones whose own backward pass takes a third of autograd's time."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.policies import ActorCriticPolicy
from torch import nn

_CHUNK_BYTES = 2**24
_MAX_CHUNK = 4096
# OpenBLAS divides products of more multiplications than 2^18 among threads.
_MOST_MULTIPLICATIONS = 2**18


class Chain:
    """
    Layers one after the other, in NumPy, with the layers' own memory.

    :param layers: layers that it ``supports``
    """

    def __init__(self, layers: Sequence[nn.Module]) -> None:
        self.parameters = [parameter for layer in layers for parameter in layer.parameters()]
        self.gradient = np.empty(sum(parameter.numel() for parameter in self.parameters), dtype=np.float32)
        """The gradients of all parameters, one after the other."""
        ends = np.cumsum([parameter.numel() for parameter in self.parameters])[:-1]
        parts = zip(np.split(self.gradient, ends), self.parameters, strict=True)
        views = {id(parameter): part.reshape(parameter.shape) for part, parameter in parts}
        self._gradients = [(parameter, th.from_numpy(views[id(parameter)])) for parameter in self.parameters]
        self._layers: list[_Linear | _Activation] = [
            _Linear(layer.weight.detach().numpy(), layer.bias.detach().numpy(), views[id(layer.weight)], views[id(layer.bias)])
            if isinstance(layer, nn.Linear)
            else _ACTIVATIONS[type(layer)]
            for layer in layers
        ]

    @staticmethod
    def supports(layers: Sequence[nn.Module]) -> bool:
        """
        Tell whether all layers can be differentiated here.

        :param layers: the layers
        :return: whether they are linear layers with bias and known activations, in single precision
        """
        return all(
            layer.bias is not None and layer.weight.dtype == th.float32
            if type(layer) is nn.Linear
            else type(layer) in _ACTIVATIONS
            for layer in layers
        )

    def forward(self, latent: np.ndarray) -> np.ndarray:
        """
        Apply the layers.

        :param latent: inputs, [B, n]
        :return: outputs, [B, m]
        """
        self._latents = [latent]
        for layer in self._layers:
            if isinstance(layer, _Linear):
                latent = product(latent, layer.weight.T)
                latent += layer.bias
            else:
                latent = layer.forward(latent)
            self._latents.append(latent)
        return latent

    def backward(self, gradient: np.ndarray) -> None:
        """
        Set the gradients of the layers' parameters.

        :param gradient: gradient with respect to the latest outputs, [B, m]
        """
        for i, layer in reversed([*enumerate(self._layers)]):
            if isinstance(layer, _Linear):
                product(gradient.T, self._latents[i], out=layer.weight_gradient)
                np.add.reduce(gradient, axis=0, out=layer.bias_gradient)
                if i > 0:
                    gradient = product(gradient, layer.weight)
            else:
                gradient = layer.backward(gradient, self._latents[i + 1])
        for parameter, of_parameter in self._gradients:
            parameter.grad = of_parameter

    def along(self, direction: np.ndarray) -> np.ndarray:
        """
        Differentiate the latest outputs along a direction of the layers' parameters.

        :param direction: as long as ``gradient``
        :return: derivatives, [B, m]
        """
        derivative, position = np.zeros_like(self._latents[0]), 0
        for i, layer in enumerate(self._layers):
            if isinstance(layer, _Linear):
                bias_position = position + layer.weight.size
                weight = direction[position:bias_position].reshape(layer.weight.shape)
                position = bias_position + layer.bias.size
                moved = product(self._latents[i], weight.T)
                if i > 0:
                    moved += product(derivative, layer.weight.T)
                derivative = moved + direction[bias_position:position]
            else:
                derivative = layer.backward(derivative, self._latents[i + 1])
        return derivative

    def zero_grad(self) -> None:
        """Leave the parameters without gradients, so that no optimizer moves them."""
        for parameter, _ in self._gradients:
            parameter.grad = None


class _Linear(NamedTuple):
    weight: np.ndarray
    bias: np.ndarray
    weight_gradient: np.ndarray
    bias_gradient: np.ndarray


class _Activation(NamedTuple):
    """
    :param forward: gives its output
    :param backward: gives the gradient with respect to its input, from that with respect to its output, and its output
    """

    forward: Callable[[np.ndarray], np.ndarray]
    backward: Callable[[np.ndarray, np.ndarray], np.ndarray]


_ACTIVATIONS: dict[type[nn.Module], _Activation] = {
    nn.Tanh: _Activation(np.tanh, lambda gradient, output: gradient * (1 - output * output)),
    nn.ReLU: _Activation(lambda latent: np.maximum(latent, 0), lambda gradient, output: gradient * (output > 0)),
}


def are_plain_gradients(policy: ActorCriticPolicy, chains: Sequence[Sequence[nn.Module]]) -> bool:
    """
    Tell whether gradients that chains write, in memory that they write again, do what autograd's would do.

    :param policy: the policy
    :param chains: the layers of its actor and those of its critic
    :return: whether no parameter has two gradients, or none, or hooks of its own, and PyTorch or SB3 made the optimizer
    """
    written = [parameter for layers in chains for layer in layers for parameter in layer.parameters()]
    return (
        len(set(map(id, written))) == len(written)
        and type(policy.optimizer).__module__.split(".")[0] in ("torch", "stable_baselines3")
        and all(parameter.requires_grad and not _has_hooks(parameter) for parameter in policy.parameters())
    )


def _has_hooks(parameter: Any) -> bool:
    return bool(parameter._backward_hooks or getattr(parameter, "_post_accumulate_grad_hooks", None))


def product(left: np.ndarray, right: np.ndarray, out: np.ndarray | None = None) -> np.ndarray:
    """
    Multiply matrices with as many threads as PyTorch uses. NumPy, quicker with small ones, would take all cores for large:
    threads that wait for each other in loops, which on busy cores takes twenty times as long.

    :param left: a matrix, [B, n]
    :param right: a matrix, [n, m]
    :param out: where to write
    :return: their product, [B, m]
    """
    if left.size * right.shape[1] <= _MOST_MULTIPLICATIONS:
        return np.matmul(left, right, out=out)
    result = np.empty((len(left), right.shape[1]), dtype=left.dtype) if out is None else out
    th.mm(th.from_numpy(left), th.from_numpy(right), out=th.from_numpy(result))
    return result


def chunk_size(space: spaces.Space[Any]) -> int:
    """
    Return how many observations the networks get at once.

    :param space: observation space
    :return: a number of observations that fit into a few megabytes
    """
    return int(np.clip(_CHUNK_BYTES // (4 * spaces.flatdim(space)), 1, _MAX_CHUNK))
