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

_MOST_COPIED = 2**16

_VECTORS = 64
"""A multiple of the elements that a loop over vectors takes at once."""


def in_blocks(function: Callable[[np.ndarray], np.ndarray], rows: np.ndarray) -> np.ndarray:
    """
    Apply products to the rows of a matrix such that each block of rows is a product of its own.

    :param function: takes blocks [G, 4, n] to [G, 4, m]
    :param rows: a matrix, [B, n]
    :return: the results, [B, m]
    """
    n_rows, width = rows.shape
    n_left = n_rows % _ROWS
    if n_left == 0:
        return _of_whole_blocks(function, rows)
    # Few rows are copied with zeros beside them; of many that would be slow.
    n_first = n_rows - n_left if rows.nbytes > _MOST_COPIED else 0
    padded = np.zeros((-(-(n_rows - n_first) // _ROWS) * _ROWS, width), dtype=rows.dtype)
    padded[: n_rows - n_first] = rows[n_first:]
    last = _of_whole_blocks(function, padded)[: n_rows - n_first]
    return last if n_first == 0 else np.concatenate((_of_whole_blocks(function, rows[:n_first]), last))


def _of_whole_blocks(function: Callable[[np.ndarray], np.ndarray], rows: np.ndarray) -> np.ndarray:
    results = function(rows.reshape(-1, _ROWS, rows.shape[1]))
    return results.reshape(len(rows), results.shape[-1])


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
        weight = np.ascontiguousarray(module.weight.detach().numpy().T)
        product = in_blocks(lambda blocks: blocks @ weight, rows.detach().numpy())
        result = th.from_numpy(product).reshape(*batch.shape[:-1], -1)
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
