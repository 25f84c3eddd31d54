"""The random generators that all code of a process shares: numpy's, Python's and PyTorch's."""

import ctypes
import random
from typing import Any

import numpy as np
import torch as th

_MT19937_STATE_BYTES = 625 * 4


def fingerprint() -> tuple[Any, ...]:
    """
    Read the global generators fast enough to do so around every macro-step.

    :return: a value that differs from an earlier one if a global generator was used in between
    """
    bit_generator = np.random.get_bit_generator()  # type: ignore[attr-defined]
    if isinstance(bit_generator, np.random.MT19937):
        numpy_state: Any = ctypes.string_at(bit_generator.ctypes.state_address, _MT19937_STATE_BYTES)
    else:
        numpy_state = bit_generator.state
    return numpy_state, random.getstate(), bytes(th.get_rng_state().numpy())


def global_generators() -> tuple[Any, ...]:
    """
    Return the global generators as roots of a snapshot.

    :return: the objects that hold their states
    """
    return np.random.mtrand._rand, random.getstate.__self__, th.default_generator  # type: ignore[attr-defined]


def rewind(state: tuple[Any, ...]) -> None:
    """
    Bring the global generators back to a fingerprint.

    :param state: what ``fingerprint`` returned
    """
    numpy_state, python_state, torch_state = state
    bit_generator = np.random.get_bit_generator()  # type: ignore[attr-defined]
    if isinstance(bit_generator, np.random.MT19937):
        words = np.frombuffer(numpy_state, dtype=np.uint32)
        np.random.set_state(("MT19937", words[:-1], int(words[-1])))
    else:
        bit_generator.state = numpy_state
    random.setstate(python_state)
    th.set_rng_state(th.frombuffer(bytearray(torch_state), dtype=th.uint8))
