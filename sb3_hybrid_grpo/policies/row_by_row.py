"""
Passes through networks whose results do not depend on how many rows are passed at once.

Libraries of linear algebra choose another order of summation for a matrix of another height, so that an observation alone and
the same one in a batch lead to actions that differ in the last bit. Branches that are followed in several workers come in
smaller batches than in one process, and must lead to the same actions. Products of a fixed number of rows are the same
whatever the rows beside them hold.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch as th
from stable_baselines3.common.policies import BasePolicy
from torch import nn

_ROWS = 4
"""Rows of a product: what the kernels of OpenBLAS compute at once, so that more cost no more than a single one."""

_VECTORS = 64
"""A multiple of the elements that a loop over vectors takes at once."""


def in_blocks(rows: np.ndarray) -> np.ndarray:
    """
    Arrange the rows of a matrix in blocks, of which each is a product of its own.

    :param rows: a matrix, [B, d]
    :return: blocks that hold its rows first, then zeros, [G, 4, d]
    """
    n_rows, width = rows.shape
    n_blocks = -(-n_rows // _ROWS)
    if n_rows != n_blocks * _ROWS:
        padded = np.zeros((n_blocks * _ROWS, width), dtype=rows.dtype)
        padded[:n_rows] = rows
        rows = padded
    return rows.reshape(n_blocks, _ROWS, width)


def from_blocks(blocks: np.ndarray, n_rows: int) -> np.ndarray:
    """
    Undo ``in_blocks``.

    :param blocks: blocks, [G, 4, d]
    :param n_rows: number of rows B
    :return: the rows, [B, d]
    """
    return blocks.reshape(-1, blocks.shape[-1])[:n_rows]


class RowByRow:
    """
    Lets the layers of a policy on the CPU compute what does not depend on the size of the batch, as long as the context
    lasts. Gradients do not flow through them then. What a policy computes outside common layers of PyTorch is as it was.

    :param policy: the policy
    """

    def __init__(self, policy: BasePolicy) -> None:
        modules = [*policy.modules()]
        is_eager = policy.device.type == "cpu" and not any(hasattr(module, "_orig_mod") for module in (policy, *modules))
        self._layers: list[tuple[dict[str, Any], Callable[[th.Tensor], th.Tensor]]] = [
            (vars(module), _FORWARD[type(module)](module))
            for module in (modules if is_eager else ())
            if type(module) in _FORWARD and "forward" not in vars(module)
        ]

    def __enter__(self) -> None:
        for attributes, forward in self._layers:
            attributes["forward"] = forward

    def __exit__(self, *exception: object) -> None:
        for attributes, _ in self._layers:
            del attributes["forward"]


def _linear(module: nn.Linear) -> Callable[[th.Tensor], th.Tensor]:
    def forward(batch: th.Tensor) -> th.Tensor:
        rows = batch.reshape(-1, batch.shape[-1])
        product = in_blocks(rows.detach().numpy()) @ module.weight.detach().numpy().T
        result = th.from_numpy(from_blocks(product, len(rows))).reshape(*batch.shape[:-1], -1)
        return result if module.bias is None else result + module.bias

    return forward


def _convolution(module: nn.Conv2d) -> Callable[[th.Tensor], th.Tensor]:
    def forward(batch: th.Tensor) -> th.Tensor:
        # oneDNN computes each image of several alike, but a single one in another way.
        at_least_two = batch if len(batch) > 1 else th.cat((batch, batch))
        result: th.Tensor = type(module).forward(module, at_least_two)
        return result[: len(batch)]

    return forward


def _elementwise(module: nn.Module) -> Callable[[th.Tensor], th.Tensor]:
    def forward(batch: th.Tensor) -> th.Tensor:
        # The last elements, too few for a vector of the processor, are computed in another way.
        padded = nn.functional.pad(batch.reshape(-1), (0, -batch.numel() % _VECTORS))
        result: th.Tensor = type(module).forward(module, padded)
        return result[: batch.numel()].reshape(batch.shape)

    return forward


_FORWARD: dict[type[nn.Module], Callable[[Any], Callable[[th.Tensor], th.Tensor]]] = {
    nn.Linear: _linear,
    nn.Conv1d: _convolution,
    nn.Conv2d: _convolution,
    nn.Conv3d: _convolution,
    nn.ELU: _elementwise,
    nn.GELU: _elementwise,
    nn.SiLU: _elementwise,
    nn.Sigmoid: _elementwise,
}
