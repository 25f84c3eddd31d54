"""The random generators that all code of a process shares: numpy's, Python's and PyTorch's."""

import ctypes
import random
from typing import Any

import numpy as np
import torch as th

from sb3_hybrid_grpo.branching.snapshots.snapshot import Snapshot

_NUMPY: Any = np.random.mtrand._rand
_PYTHON: Any = random.getstate.__self__  # type: ignore[attr-defined]
_TORCH = th.default_generator

_HEADER = object.__basicsize__

GLOBAL_GENERATORS = (_NUMPY, _PYTHON, _TORCH)
"""The generators as roots of a snapshot."""


class Watch:
    """Notices whether the global generators are used, fast enough to do so around every macro-step, and undoes it."""

    def __init__(self) -> None:
        self._memory: tuple[Any, ...] = ()
        self._torch_state = _TORCH.get_state()
        self._snapshot = Snapshot()

    def start(self) -> None:
        """Remember the generators as they are now."""
        memory = _memory()
        if memory != self._memory:
            self._memory = memory
            self._snapshot = Snapshot(_NUMPY, _PYTHON)
        self._torch_state = _TORCH.get_state()

    def noticed(self) -> bool:
        """
        Compare.

        :return: whether a generator was used since the start
        """
        return _memory() != self._memory or _bytes(_TORCH.get_state()) != _bytes(self._torch_state)

    def undo(self) -> None:
        """Bring the generators back to the start."""
        self._snapshot.restore()
        _TORCH.set_state(self._torch_state)


def _body(obj: Any) -> "ctypes.Array[ctypes.c_char]":
    """Lay an array over what is behind the header of an object: to ask a generator for its state takes too long."""
    return (ctypes.c_char * (type(obj).__basicsize__ - _HEADER)).from_address(id(obj) + _HEADER)


_NUMPY_BODY, _PYTHON_BODY = _body(_NUMPY), _body(_PYTHON)


def _memory() -> tuple[Any, ...]:
    bit_generator = _NUMPY._bit_generator
    # A snapshot asks for its address, which it keeps from the first time on.
    _ = bit_generator.ctypes
    return _NUMPY_BODY.raw, _body(bit_generator).raw, _PYTHON_BODY.raw, _PYTHON.gauss_next


def _bytes(state: th.Tensor) -> bytes:
    return ctypes.string_at(state.data_ptr(), state.nbytes)
