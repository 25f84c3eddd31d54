"""Codecs of random generators, and of spaces, which sample with one."""

import ctypes
import random
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
from gymnasium import spaces

from sb3_hybrid_grpo.branching.snapshots.codecs.generic import register_content
from sb3_hybrid_grpo.branching.snapshots.registry import LeafCodec, register_builtin

_PCG64_STATE_BYTES = 48
_MT19937_STATE_BYTES = 2500
_SIMPLE_SPACES = {spaces.Box, spaces.Discrete, spaces.MultiBinary, spaces.MultiDiscrete, spaces.Text}
_HEADER = object.__basicsize__
_Twister: Any = random.Random.__base__
_TWISTER_BYTES = _Twister.__basicsize__ - _HEADER


def _bytes_of(obj: np.random.BitGenerator) -> int:
    """Return how long the state of a generator is that lies in memory, where it is copied ten times as fast; else 0."""
    kind = type(obj)
    if kind is _fast_bit_generator:
        return _PCG64_STATE_BYTES
    return _MT19937_STATE_BYTES if kind is _fast_twister else 0


def save_bit_generator(obj: np.random.BitGenerator) -> Any:
    """
    Save a random generator of NumPy.

    :param obj: the generator
    :return: its state
    """
    n_bytes = _bytes_of(obj)
    return ctypes.string_at(obj.ctypes.state_address, n_bytes) if n_bytes else obj.state


def restore_bit_generator(obj: np.random.BitGenerator, state: Any) -> None:
    """
    Bring a random generator of NumPy back to a state.

    :param obj: the generator
    :param state: what ``save_bit_generator`` returned
    """
    if type(state) is bytes:
        ctypes.memmove(obj.ctypes.state_address, state, len(state))
    else:
        obj.state = state


def _if_fast(kind: type[np.random.BitGenerator], n_bytes: int) -> type[np.random.BitGenerator] | None:
    """Return a kind of generator if its state is found in memory."""
    bit_generator = kind(0)
    generator = np.random.Generator(bit_generator)
    generator.integers(9, size=5, dtype=np.uint32)
    address = bit_generator.ctypes.state_address
    saved, expected = ctypes.string_at(address, n_bytes), repr(bit_generator.state)
    numbers = generator.integers(9, size=999, dtype=np.uint32)
    ctypes.memmove(address, saved, n_bytes)
    is_exact = repr(bit_generator.state) == expected
    return kind if is_exact and np.array_equal(numbers, generator.integers(9, size=999, dtype=np.uint32)) else None


# Gymnasium's kind of generator, and the one of np.random and of Python.
_fast_bit_generator = _if_fast(np.random.PCG64, _PCG64_STATE_BYTES)
_fast_twister = _if_fast(np.random.MT19937, _MT19937_STATE_BYTES)


class _SpaceCodec:
    """Codec of spaces. Gymnasium's simple ones change only by the random generator that samples from them."""

    def save(self, obj: spaces.Space[Any]) -> dict[str, Any]:
        return {"_np_random": obj._np_random} if type(obj) in _SIMPLE_SPACES else dict(vars(obj))

    def restore(self, obj: spaces.Space[Any], state: dict[str, Any]) -> None:
        generator = state["_np_random"]
        if generator is None and obj._np_random is not None:
            # Made from the system's entropy when a branch sampled: whoever samples next must get the same numbers.
            bit_generator: Any = obj._np_random.bit_generator
            generator = np.random.Generator(type(bit_generator)(bit_generator.seed_seq))
        if type(obj) not in _SIMPLE_SPACES:
            vars(obj).clear()
            vars(obj).update(state)
        obj._np_random = generator

    def children(self, state: dict[str, Any]) -> Iterable[Any]:
        return state.values()


def _save_generator(obj: np.random.BitGenerator) -> tuple[Any, ...]:
    """Save also how many generators were spawned from it, and in advance what restoring takes: it is done often."""
    seed_sequence = obj.seed_seq
    n_children_spawned = getattr(seed_sequence, "n_children_spawned", None)
    n_bytes = _bytes_of(obj)
    if n_bytes:
        address = obj.ctypes.state_address
        return address, ctypes.string_at(address, n_bytes), seed_sequence, n_children_spawned
    return obj, obj.state, seed_sequence, n_children_spawned


def _restore_generator(obj: Any, saved: tuple[Any, ...]) -> None:
    target, state, seed_sequence, n_children_spawned = saved
    if type(state) is bytes:
        ctypes.memmove(target, state, len(state))
    else:
        target.state = state
    if n_children_spawned is not None and seed_sequence.n_children_spawned != n_children_spawned:
        _restore_seed_sequence(seed_sequence, n_children_spawned)


def _restore_seed_sequence(obj: Any, n_children_spawned: int) -> None:
    if obj.n_children_spawned != n_children_spawned:
        entropy, _, *others = obj.__reduce__()[2]
        obj.__setstate__((entropy, n_children_spawned, *others))


class _RandomStateCodec:
    """
    Codec of NumPy's older generators: a bit generator, and numbers that were drawn in advance.

    What is behind the header of the object belongs to it alone, apart from references that stay as long as the bit generator
    does.
    """

    n_bytes = np.random.RandomState.__basicsize__ - _HEADER

    def save(self, obj: Any) -> tuple[Any, ...]:
        bit_generator = obj._bit_generator
        return bit_generator, _save_generator(bit_generator), ctypes.string_at(id(obj) + _HEADER, self.n_bytes)

    def restore(self, obj: Any, state: tuple[Any, ...]) -> None:
        bit_generator, content, body = state
        if obj._bit_generator is not bit_generator:
            raise ValueError("it got another bit generator")
        _restore_generator(bit_generator, content)
        ctypes.memmove(id(obj) + _HEADER, body, self.n_bytes)

    def children(self, state: tuple[Any, ...]) -> Iterable[Any]:
        return ()


def _is_exact(codec: Any, tried: Any, state_of: Callable[[Any], Any], *draws: Callable[[Any], Any]) -> bool:
    """Try whether a generator is brought back to where it was."""
    for draw in draws:
        draw(tried)
        saved, expected = codec.save(tried), repr(state_of(tried))
        numbers = [repr(draw(tried)) for draw in draws]
        codec.restore(tried, saved)
        if repr(state_of(tried)) != expected or numbers != [repr(draw(tried)) for draw in draws]:
            return False
    return True


def _codec_of_random_states() -> Any:
    codec, kind = _RandomStateCodec(), np.random.RandomState
    draws = (
        lambda obj: obj.normal(),
        lambda obj: obj.binomial(10, 0.3),
        lambda obj: obj.normal(size=701).tolist(),
        lambda obj: obj.randint(9, size=3),
    )
    if kind.__dictoffset__ == kind.__weakrefoffset__ == 0 and _is_exact(codec, kind(0), kind.get_state, *draws):
        return codec
    return LeafCodec[Any, Any](lambda obj: obj.get_state(legacy=False), lambda obj, state: obj.set_state(state))


def _codec_of_python() -> Any:
    # Tried without the attribute that keeps the second of a pair of normal numbers: attributes have a codec of their own.
    def restore(obj: Any, state: bytes) -> None:
        ctypes.memmove(id(obj) + _HEADER, state, _TWISTER_BYTES)

    memory = LeafCodec[Any, bytes](lambda obj: ctypes.string_at(id(obj) + _HEADER, _TWISTER_BYTES), restore)
    if _is_exact(
        memory, _Twister(0), _Twister.getstate, _Twister.random, lambda obj: obj.getrandbits(32 * 700).to_bytes(2800, "big")
    ):
        return memory
    return LeafCodec[Any, Any](lambda obj: obj.getstate(), lambda obj, state: obj.setstate(state))


register_content(np.random.Generator, LeafCodec[Any, Any](lambda obj: _save_generator(obj.bit_generator), _restore_generator))
register_content(np.random.BitGenerator, LeafCodec[Any, Any](_save_generator, _restore_generator))
register_content(np.random.RandomState, _codec_of_random_states())
register_content(random.Random, _codec_of_python())
register_builtin(np.random.SeedSequence, LeafCodec[Any, int](lambda obj: obj.n_children_spawned, _restore_seed_sequence))
register_builtin("torch._C.Generator", LeafCodec(lambda obj: obj.get_state(), lambda obj, state: obj.set_state(state)))
register_builtin(spaces.Space, _SpaceCodec())
