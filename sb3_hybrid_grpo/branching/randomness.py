"""The random generators that all code of a process shares: numpy's, Python's and PyTorch's."""

import ctypes
import random
from typing import Any

import numpy as np
import torch as th

from sb3_hybrid_grpo.branching.snapshot import Snapshot

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
        self._torch_state = _torch_state()
        self._snapshot = Snapshot()

    def start(self) -> None:
        """Remember the generators as they are now."""
        memory = _memory()
        if memory != self._memory:
            self._memory = memory
            self._snapshot = Snapshot(_NUMPY, _PYTHON)
        self._torch_state = _torch_state()

    def noticed(self) -> bool:
        """
        Compare.

        :return: whether a generator was used since the start
        """
        return _memory() != self._memory or _torch_state() != self._torch_state

    def undo(self) -> None:
        """Bring the generators back to the start."""
        self._snapshot.restore()
        _TORCH.set_state(th.frombuffer(bytearray(self._torch_state), dtype=th.uint8))


def _memory() -> tuple[Any, ...]:
    """Copy what is behind the headers of numpy's and Python's generators: to ask for their states takes too long."""
    return _body(_NUMPY), _body(_NUMPY._bit_generator), _body(_PYTHON), _PYTHON.gauss_next


def _torch_state() -> bytes:
    return _TORCH.get_state().numpy().tobytes()


def _body(obj: Any) -> bytes:
    return ctypes.string_at(id(obj) + _HEADER, type(obj).__basicsize__ - _HEADER)
