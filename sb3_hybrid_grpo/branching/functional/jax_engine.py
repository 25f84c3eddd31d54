"""Steps functional environments that are written in JAX, compiled. Imported only when one is used."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch as th

from sb3_hybrid_grpo.branching.functional import random
from sb3_hybrid_grpo.branching.functional.contract import Functions, Rows, Stepped

_ORDERED_SUMS = ("dot_general", "conv_general_dilated", "cholesky", "lu", "triangular_solve", "eigh")


class JaxEngine:
    """
    Compiles the functions of a single state for many, see ``Engine``.

    :param functions: the environment's functions
    :param device: where arrays are
    """

    def __init__(self, functions: Functions, device: Any) -> None:
        self._functions = functions
        self._device = device
        self.can_differ = bool(device.platform == "cpu")
        self._start = jax.jit(self._start_all)
        self._step = jax.jit(self._step_all)
        self._restart = jax.jit(self._restart_some)
        self._join = jax.jit(lambda blocks: jax.tree.map(lambda *parts: jnp.concatenate(parts), *blocks))

    def keys(self, seeds: Sequence[int]) -> Any:
        """Make the keys of the environments, see ``Engine``."""
        keys = np.stack([random.key(seed) for seed in seeds]).astype(np.uint32)
        return jax.device_put(keys, self._device)

    def array(self, values: Any, dtype: np.dtype[Any] | None = None) -> Any:
        """
        Bring values to where the rows are: tensors without a copy if they are there.

        :param values: an array or a tensor
        :param dtype: data type that they shall have
        :return: an array of JAX, or one of NumPy that JAX is about to fetch
        """
        if not isinstance(values, th.Tensor):
            return np.asarray(values, dtype=dtype)
        if dtype is not None:
            values = values.to(th.from_numpy(np.empty(0, dtype=dtype)).dtype)
        if (values.device.type == "cpu") != (self._device.platform == "cpu"):
            return jax.device_put(values.cpu().numpy(), self._device)
        return jax.dlpack.from_dlpack(values.contiguous())

    def start(self, keys: Any, time: int) -> Stepped:
        """Start an episode in all environments, see ``Engine``."""
        started: Stepped = self._start(keys, np.int32(time))
        return started

    def step(self, rows: Rows, keys: Any, times: np.ndarray, actions: Any, alive: Any) -> Stepped:
        """Take an action in each row, see ``Engine``."""
        dtype = np.dtype(jax.dtypes.canonicalize_dtype(self._functions.env.action_space.dtype))
        actions, alive = self.array(actions, dtype), self.array(alive)
        stepped: Stepped = self._step(rows, keys, np.asarray(times, dtype=np.int32), actions, alive)
        return stepped

    def restart(self, stepped: Stepped, keys: Any, time: int, ended: np.ndarray) -> Stepped:
        """Start the next episode where one has ended, see ``Engine``."""
        restarted: Stepped = self._restart(stepped, keys, np.int32(time), ended)
        return restarted

    def join(self, blocks: Sequence[Rows]) -> Rows:
        """Put rows together, see ``Engine``."""
        joined: Rows = self._join(tuple(blocks))
        return joined

    def map(self, function: Callable[[Any], Any], tree: Any) -> Any:
        """Call a function with each array of a structure, see ``Engine``."""
        return jax.tree.map(function, tree)

    def leaves(self, tree: Any) -> dict[str, Any]:
        """List the arrays of a structure, see ``Engine``."""
        return {jax.tree_util.keystr(path): leaf for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]}

    def to_numpy(self, tree: Any) -> Any:
        """Hand out arrays, see ``Engine``."""
        return jax.tree.map(np.asarray, tree)

    def to_torch(self, tree: Any) -> Any:
        """Hand out tensors, see ``Engine``."""
        return jax.tree.map(th.utils.dlpack.from_dlpack, tree)

    def has_ordered_sums(self, rows: Rows, keys: Any, actions: Any) -> bool:
        """
        Look for operations whose last bits depend on how many rows there are.

        :param rows: E rows
        :param keys: keys of the environments
        :param actions: an action for each
        :return: whether a step has any
        """
        arguments = rows, keys, np.zeros(1, dtype=np.int32), np.asarray(actions), np.ones(len(keys), dtype=bool)
        return any(
            equation.primitive.name in _ORDERED_SUMS
            and any(jnp.issubdtype(out.aval.dtype, jnp.inexact) for out in equation.outvars)
            for equation in _equations(jax.make_jaxpr(self._step_all)(*arguments).jaxpr)
        )

    def _start_all(self, keys: Any, time: Any) -> Stepped:
        state, observations, masks = jax.vmap(lambda key: self._functions.start(_four_keys(key, time)))(keys)
        zeros = jnp.zeros(len(keys), dtype=jnp.int32)
        nothing = zeros.astype(bool)
        rows = Rows(jax.tree.map(_strong, state), zeros)
        return Stepped(rows, observations, zeros.astype(jnp.float32), nothing, nothing, masks)

    def _step_all(self, rows: Rows, keys: Any, times: Any, actions: Any, alive: Any) -> Stepped:
        n_blocks = len(alive) // len(keys)
        keys_of_rows, times_of_rows = jnp.tile(keys, (n_blocks, 1)), jnp.repeat(times, len(keys))
        stepped: Stepped = jax.vmap(self._step_one)(rows, keys_of_rows, times_of_rows, actions, alive)
        return stepped

    def _step_one(self, rows: Rows, key: Any, time: Any, action: Any, alive: Any) -> Stepped:
        stepped = self._functions.step(rows, action, _four_keys(key, time))
        stepped = stepped._replace(
            rewards=jnp.asarray(stepped.rewards, dtype=jnp.float32),
            terminated=jnp.asarray(stepped.terminated, dtype=bool),
            truncated=jnp.asarray(stepped.truncated, dtype=bool),
        )
        frozen = jax.tree.map(lambda new, old: jnp.where(alive, _strong(new), old), stepped.rows, rows)
        results = jax.tree.map(lambda new: jnp.where(alive, new, jnp.zeros_like(new)), tuple(stepped[1:]))
        return Stepped(frozen, *results)

    def _restart_some(self, stepped: Stepped, keys: Any, time: Any, ended: Any) -> Stepped:
        fresh = self._start_all(keys, time)

        def replace(new: Any, old: Any) -> Any:
            return jnp.where(ended.reshape(-1, *[1] * (new.ndim - 1)), new, old)

        return stepped._replace(
            rows=jax.tree.map(replace, fresh.rows, stepped.rows),
            observations=jax.tree.map(replace, fresh.observations, stepped.observations),
            masks=jax.tree.map(replace, fresh.masks, stepped.masks),
        )


def device_of(name: str) -> Any:
    """
    Find a device.

    :param name: ``"auto"``, ``"cpu"`` or ``"cuda"``
    :return: the device
    :raises RuntimeError: if there is none
    """
    return jax.devices()[0] if name == "auto" else jax.devices(name)[0]


def _four_keys(key: Any, time: Any) -> list[Any]:
    return list(jax.random.split(jax.random.fold_in(key, time), 4))


def _strong(array: Any) -> Any:
    """Make the data type of an array one that counts, as those of its later values do."""
    array = jnp.asarray(array)
    return jax.lax.convert_element_type(array, array.dtype)


def _equations(jaxpr: Any) -> Iterator[Any]:
    for equation in jaxpr.eqns:
        yield equation
        for parameter in jax.tree.leaves(
            equation.params, is_leaf=lambda leaf: hasattr(leaf, "eqns") or hasattr(leaf, "jaxpr")
        ):
            inner = getattr(parameter, "jaxpr", parameter)
            if hasattr(inner, "eqns"):
                yield from _equations(inner)
