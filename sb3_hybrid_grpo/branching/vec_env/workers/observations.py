"""Observations in memory that the main process shares with its workers."""

from multiprocessing.shared_memory import SharedMemory
from typing import Any, TypeAlias

import numpy as np
from gymnasium import spaces
from stable_baselines3.common.vec_env.util import obs_space_info

ObservationArrays: TypeAlias = dict[Any, np.ndarray]
"""Observations of several environments by SB3's keys: those of a Dict space, the numbers of a Tuple's, else ``None``."""

_ALIGNMENT = 64


def can_share(space: spaces.Space[Any]) -> bool:
    """
    Tell whether observations can be in shared memory.

    :param space: their space
    :return: whether they are plain numbers
    """
    return not any(np.dtype(dtype).hasobject for dtype in obs_space_info(space)[2].values())


class SharedObservations:
    """
    A piece of shared memory with the observations of all environments.

    :param space: their space
    :param n_envs: number of environments E
    :param name: the name of one that is there already; ``None`` to make one, which ends with its ``close``
    """

    def __init__(self, space: spaces.Space[Any], n_envs: int, name: str | None = None) -> None:
        keys, shapes, dtypes = obs_space_info(space)
        places, size = [], 0
        for key in keys:
            shape, dtype = (n_envs, *shapes[key]), np.dtype(dtypes[key])
            places.append((key, shape, dtype, size))
            size += -(-int(np.prod(shape)) * dtype.itemsize // _ALIGNMENT) * _ALIGNMENT
        self._is_owner = name is None
        self._memory: SharedMemory | None = SharedMemory(name, create=self._is_owner, size=max(size, 1))
        self.name = self._memory.name
        self.arrays: ObservationArrays = {
            key: np.ndarray(shape, dtype, self._memory.buf, offset) for key, shape, dtype, offset in places
        }

    def close(self) -> None:
        """Give the memory back. The second time there is nothing to do."""
        if self._memory is None:
            return
        self.arrays.clear()
        memory, self._memory = self._memory, None
        memory.close()
        if self._is_owner:
            memory.unlink()
