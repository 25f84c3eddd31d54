"""Codecs of random generators, and of Gymnasium's spaces, which change only by the generator that samples from them."""

import ctypes
import random
from collections.abc import Iterable
from typing import Any

import numpy as np
from gymnasium import spaces

from sb3_hybrid_grpo.branching.snapshots.codecs.generic import register_content
from sb3_hybrid_grpo.branching.snapshots.registry import LeafCodec, register_builtin

_PCG64_STATE_BYTES = 48


def save_bit_generator(obj: np.random.BitGenerator) -> Any:
    """
    Save a random generator of NumPy.

    :param obj: the generator
    :return: its state
    """
    if type(obj) is _fast_bit_generator:
        return ctypes.string_at(obj.ctypes.state_address, _PCG64_STATE_BYTES)
    return obj.state


def restore_bit_generator(obj: np.random.BitGenerator, state: Any) -> None:
    """
    Bring a random generator of NumPy back to a state.

    :param obj: the generator
    :param state: what ``save_bit_generator`` returned
    """
    if type(state) is bytes:
        ctypes.memmove(obj.ctypes.state_address, state, _PCG64_STATE_BYTES)
    else:
        obj.state = state


def _find_fast_bit_generator() -> type[np.random.BitGenerator] | None:
    """Return Gymnasium's kind of generator if its state is found in memory, where it is copied ten times as fast."""
    generator = np.random.default_rng(0)
    address = generator.bit_generator.ctypes.state_address
    saved, expected = ctypes.string_at(address, _PCG64_STATE_BYTES), generator.bit_generator.state
    generator.integers(9, dtype=np.uint32)
    ctypes.memmove(address, saved, _PCG64_STATE_BYTES)
    is_exact = generator.bit_generator.state == expected
    return np.random.PCG64 if is_exact and type(generator.bit_generator) is np.random.PCG64 else None


_fast_bit_generator = _find_fast_bit_generator()


class _SpaceCodec:
    """Codec of Gymnasium spaces, which change only by the random generator that samples from them."""

    def save(self, obj: spaces.Space[Any]) -> list[Any]:
        return [obj._np_random]

    def restore(self, obj: spaces.Space[Any], state: list[Any]) -> None:
        generator = state[0]
        if generator is None and obj._np_random is not None:
            # Made from the system's entropy when a branch sampled: whoever samples next must get the same numbers.
            bit_generator: Any = obj._np_random.bit_generator
            generator = np.random.Generator(type(bit_generator)(bit_generator.seed_seq))
        obj._np_random = generator

    def children(self, state: list[Any]) -> Iterable[Any]:
        return state


class _CompositeSpaceCodec(_SpaceCodec):
    def save(self, obj: spaces.Space[Any]) -> list[Any]:
        return [obj._np_random, *(part for part in vars(obj).values() if isinstance(part, spaces.Space | dict | tuple))]


def _save_generator(obj: np.random.BitGenerator) -> tuple[Any, ...]:
    """Save also how many generators were spawned from it, and in advance what restoring takes: it is done often."""
    seed_sequence = obj.seed_seq
    n_children_spawned = getattr(seed_sequence, "n_children_spawned", None)
    if type(obj) is _fast_bit_generator:
        address = obj.ctypes.state_address
        return address, ctypes.string_at(address, _PCG64_STATE_BYTES), seed_sequence, n_children_spawned
    return obj, obj.state, seed_sequence, n_children_spawned


def _restore_generator(obj: Any, saved: tuple[Any, ...]) -> None:
    target, state, seed_sequence, n_children_spawned = saved
    if type(state) is bytes:
        ctypes.memmove(target, state, _PCG64_STATE_BYTES)
    else:
        target.state = state
    if n_children_spawned is not None and seed_sequence.n_children_spawned != n_children_spawned:
        _restore_seed_sequence(seed_sequence, n_children_spawned)


def _restore_seed_sequence(obj: Any, n_children_spawned: int) -> None:
    if obj.n_children_spawned != n_children_spawned:
        entropy, _, *others = obj.__reduce__()[2]
        obj.__setstate__((entropy, n_children_spawned, *others))


register_content(np.random.Generator, LeafCodec[Any, Any](lambda obj: _save_generator(obj.bit_generator), _restore_generator))
register_content(np.random.BitGenerator, LeafCodec[Any, Any](_save_generator, _restore_generator))
register_content(
    np.random.RandomState,
    LeafCodec[Any, Any](lambda obj: obj.get_state(legacy=False), lambda obj, state: obj.set_state(state)),
)
register_content(random.Random, LeafCodec[Any, Any](lambda obj: obj.getstate(), lambda obj, state: obj.setstate(state)))
register_builtin(np.random.SeedSequence, LeafCodec[Any, int](lambda obj: obj.n_children_spawned, _restore_seed_sequence))
register_builtin("torch._C.Generator", LeafCodec(lambda obj: obj.get_state(), lambda obj, state: obj.set_state(state)))
register_builtin(spaces.Space, _CompositeSpaceCodec())
for _simple_space in (spaces.Box, spaces.Discrete, spaces.MultiBinary, spaces.MultiDiscrete, spaces.Text):
    register_builtin(_simple_space, _SpaceCodec())
