"""Steps functional environments that are written in NumPy or PyTorch."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch as th

from sb3_hybrid_grpo.branching.functional import random
from sb3_hybrid_grpo.branching.functional.contract import Functions, Rows, Stepped
from sb3_hybrid_grpo.branching.functional.trees import leaves, map_trees

_KEYS_AT_ONCE = 64
_MOST_TABLES = 16


class EagerEngine:
    """
    Calls functions that take all rows at once, see ``Engine``.

    :param functions: the environment's functions
    :param device: where tensors are, ``None`` for arrays of NumPy
    """

    def __init__(self, functions: Functions, device: th.device | None = None) -> None:
        self._functions = functions
        self._device = device
        self.can_differ = device is None or device.type == "cpu"
        self._nothing: dict[int, tuple[Any, ...]] = {}
        self._tables: dict[int, Any] = {}
        self._tables_of: Any = None
        self._where: Callable[..., Any] = np.where if device is None else th.where
        self._zeros_like: Callable[..., Any] = np.zeros_like if device is None else th.zeros_like

    def keys(self, seeds: Sequence[int]) -> Any:
        """Make the keys of the environments, see ``Engine``."""
        return self.array(np.stack([random.key(seed) for seed in seeds]))

    def array(self, values: Any, dtype: np.dtype[Any] | None = None) -> Any:
        """
        Bring values to where the rows are.

        :param values: an array or a tensor
        :param dtype: data type that they shall have
        :return: an array of the environment's library
        """
        if self._device is None:
            values = values.numpy() if isinstance(values, th.Tensor) else values
            return np.asarray(values, dtype=dtype)
        return th.as_tensor(values, device=self._device, dtype=None if dtype is None else _torch_dtype(dtype))

    def start(self, keys: Any, time: int) -> Stepped:
        """Start an episode in all environments, see ``Engine``."""
        state, observations, masks = self._functions.start(self._four_keys(keys, np.array([time])))
        zeros = np.zeros(len(keys), dtype=np.int32)
        rewards, nothing = self.array(zeros, np.dtype(np.float32)), self.array(zeros, np.dtype(bool))
        return Stepped(Rows(state, self.array(zeros)), observations, rewards, nothing, nothing, masks)

    def step(self, rows: Rows, keys: Any, times: np.ndarray, actions: Any, alive: Any) -> Stepped:
        """Take an action in each row, see ``Engine``."""
        space = self._functions.env.action_space
        n_rows, is_all = len(alive), bool(alive.all())
        if n_rows in self._nothing and not alive.any():
            return Stepped(rows, *self._nothing[n_rows])
        alive = self.array(alive)
        first = 0 if is_all else int((alive * 1).argmax())

        def living(part: Any) -> Any:
            """Have rows that stay behind do what one does that goes on: at the end of an episode nothing can be done."""
            return self._select(alive, part, part[first : first + 1])

        actions = self.array(actions, space.dtype)
        origins, actions = (rows, actions) if is_all else map_trees(living, (rows, actions))
        stepped = self._functions.step(origins, actions, self._four_keys(keys, times))
        if hasattr(stepped.rewards, "dtype"):
            stepped = stepped._replace(rewards=self.array(stepped.rewards, np.dtype(np.float32)))
        if n_rows not in self._nothing:
            self._nothing[n_rows] = map_trees(self._zeros_like, tuple(stepped[1:]))
        if is_all:
            return stepped
        frozen = map_trees(lambda new, old: self._select(alive, new, old), stepped.rows, rows)
        results = map_trees(lambda new: self._select(alive, new, self._zeros_like(new)), tuple(stepped[1:]))
        return Stepped(frozen, *results)

    def restart(self, stepped: Stepped, keys: Any, time: int, ended: np.ndarray) -> Stepped:
        """Start the next episode where one has ended, see ``Engine``."""
        fresh = self.start(keys, time)
        is_new = self.array(ended)

        def replace(new: Any, old: Any) -> Any:
            return self._select(is_new, new, old)

        return stepped._replace(
            rows=map_trees(replace, fresh.rows, stepped.rows),
            observations=map_trees(replace, fresh.observations, stepped.observations),
            masks=map_trees(replace, fresh.masks, stepped.masks),
        )

    def join(self, blocks: Sequence[Rows]) -> Rows:
        """Put rows together, see ``Engine``."""
        concatenate: Callable[..., Any] = np.concatenate if self._device is None else th.cat
        joined: Rows = map_trees(lambda *parts: concatenate(parts), *blocks)
        return joined

    def map(self, function: Callable[[Any], Any], tree: Any) -> Any:
        """Call a function with each array of a structure, see ``Engine``."""
        return map_trees(function, tree)

    def leaves(self, tree: Any) -> dict[str, Any]:
        """List the arrays of a structure, see ``Engine``."""
        return dict(leaves(tree))

    def to_numpy(self, tree: Any) -> Any:
        """Hand out arrays, see ``Engine``."""
        return tree if self._device is None else map_trees(lambda part: part.cpu().numpy(), tree)

    def to_torch(self, tree: Any) -> Any:
        """Hand out tensors, see ``Engine``."""
        return map_trees(th.from_numpy, tree) if self._device is None else tree

    def _select(self, condition: Any, first: Any, second: Any) -> Any:
        return self._where(condition.reshape(-1, *[1] * (first.ndim - 1)), first, second)

    def _four_keys(self, keys: Any, times: np.ndarray) -> list[Any]:
        """Return the four keys of each row at the times of their blocks."""
        blocks = [self._table(keys, int(time) // _KEYS_AT_ONCE)[int(time) % _KEYS_AT_ONCE] for time in times]
        if len(blocks) == 1:
            return list(blocks[0])
        concatenate: Callable[..., Any] = np.concatenate if self._device is None else th.cat
        return [concatenate([block[i] for block in blocks]) for i in range(4)]

    def _table(self, keys: Any, idx: int) -> Any:
        """Return the four keys of all environments at several times, [times, 4, E, 2]."""
        if self._tables_of is not keys:
            self._tables, self._tables_of = {}, keys
        if idx not in self._tables:
            if len(self._tables) == _MOST_TABLES:
                del self._tables[min(self._tables)]
            times = self.array(idx * _KEYS_AT_ONCE + np.arange(_KEYS_AT_ONCE))
            now = random.fold_in(keys[None], times[:, None])
            table = random.split(now, 4)
            self._tables[idx] = table.swapaxes(1, 2)
        return self._tables[idx]


def _torch_dtype(dtype: np.dtype[Any]) -> th.dtype:
    return th.from_numpy(np.empty(0, dtype=dtype)).dtype
