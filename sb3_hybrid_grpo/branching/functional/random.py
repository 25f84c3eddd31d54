"""
Random numbers as functions of keys, for environments of NumPy and PyTorch: those of ``jax.random`` up to rounding.

A key is two numbers of 32 bits in the last axis of an array or tensor of 64-bit integers; all other axes are those of a batch.
"""

from typing import Any

import numpy as np
import torch as th

_BITS = 0xFFFFFFFF
_ROTATIONS = ((13, 15, 26, 6), (17, 29, 16, 24))
_PARITY = 0x1BD11BDA


def key(seed: int) -> np.ndarray:
    """
    Make a key.

    :param seed: a number
    :return: the key, [2]
    """
    return np.array([seed >> 32 & _BITS, seed & _BITS], dtype=np.int64)


def fold_in(keys: Any, data: Any) -> Any:
    """
    Make further keys of keys and numbers.

    :param keys: keys, [..., 2]
    :param data: a number, or an array of numbers, [...]
    :return: other keys, [..., 2]
    """
    data = data + 0 * keys[..., 0]
    return _stack(_threefry(keys, data >> 32 & _BITS, data & _BITS))


def split(keys: Any, n: int) -> Any:
    """
    Make several keys of each key.

    :param keys: keys, [..., 2]
    :param n: number of keys for each
    :return: other keys, [..., n, 2]
    """
    return _stack(_threefry(*_counted(keys, (n,))))


def uniform(keys: Any, shape: tuple[int, ...] = (), low: float = 0.0, high: float = 1.0) -> Any:
    """
    Draw numbers that are evenly distributed between two others.

    :param keys: keys, [..., 2]
    :param shape: shape of what is drawn with each key
    :param low: the least one
    :param high: what all of them are below
    :return: 32-bit numbers, [..., \\*shape]
    """
    first, second = _threefry(*_counted(keys, shape))
    mantissa = (first ^ second) >> 9 | 0x3F800000
    if isinstance(mantissa, th.Tensor):
        numbers = mantissa.to(th.int32).view(th.float32) - 1.0
        return th.clamp(numbers * (np.float32(high) - np.float32(low)).item() + low, min=low)
    numbers = mantissa.astype(np.int32).view(np.float32) - np.float32(1.0)
    return np.maximum(numbers * (np.float32(high) - np.float32(low)) + np.float32(low), np.float32(low))


def normal(keys: Any, shape: tuple[int, ...] = ()) -> Any:
    """
    Draw standard normal numbers.

    :param keys: keys, [..., 2]
    :param shape: shape of what is drawn with each key
    :return: 32-bit numbers, [..., \\*shape]
    """
    numbers = uniform(keys, shape, float(np.nextafter(np.float32(-1), np.float32(0))), 1.0)
    if isinstance(numbers, th.Tensor):
        return th.erfinv(numbers) * 2**0.5
    return th.erfinv(th.from_numpy(np.ascontiguousarray(numbers))).numpy() * np.float32(2**0.5)


def _counted(keys: Any, shape: tuple[int, ...]) -> tuple[Any, Any, Any]:
    """Return keys and counters of all numbers of a shape, as arrays that broadcast."""
    counts: Any = np.arange(int(np.prod(shape, dtype=np.int64)), dtype=np.int64).reshape(shape)
    if isinstance(keys, th.Tensor):
        counts = th.from_numpy(counts).to(keys.device)
    keys = keys.reshape(*keys.shape[:-1], *[1] * len(shape), 2)
    return keys, counts >> 32, counts & _BITS


def _threefry(keys: Any, first: Any, second: Any) -> tuple[Any, Any]:
    """Threefry-2x32 with 20 rounds."""
    schedule = keys[..., 0], keys[..., 1], keys[..., 0] ^ keys[..., 1] ^ _PARITY
    first, second = first + schedule[0] & _BITS, second + schedule[1] & _BITS
    for group in range(5):
        for rotation in _ROTATIONS[group % 2]:
            first = first + second & _BITS
            second = (second << rotation & _BITS | second >> 32 - rotation) ^ first
        first = first + schedule[(group + 1) % 3] & _BITS
        second = second + schedule[(group + 2) % 3] + group + 1 & _BITS
    return first, second


def _stack(halves: tuple[Any, Any]) -> Any:
    return th.stack(halves, dim=-1) if isinstance(halves[0], th.Tensor) else np.stack(halves, axis=-1)
