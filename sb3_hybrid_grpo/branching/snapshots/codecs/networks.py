"""Codecs of PyTorch's tensors and networks, and of Stable-Baselines3's algorithms, which environments have as opponents."""

import ctypes
from collections.abc import Iterable
from typing import Any, NamedTuple
from weakref import WeakValueDictionary

import torch as th
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.buffers import BaseBuffer
from stable_baselines3.common.callbacks import BaseCallback

from sb3_hybrid_grpo.branching.snapshots.codecs.generic import AttributesCodec
from sb3_hybrid_grpo.branching.snapshots.registry import CONSTANT, register_builtin


class _Content:
    """
    The content of a tensor, shared by all snapshots between which the tensor does not change.

    :param obj: the tensor
    """

    __slots__ = ("__weakref__", "pointer", "shape", "tensor", "values")

    def __init__(self, obj: th.Tensor) -> None:
        is_plain = _is_plain(obj)
        # The tensor may be given other memory: this one keeps what it has now, unless it is a copy.
        self.tensor = obj.detach() if is_plain else obj.detach().clone()
        self.shape = obj.shape
        self.pointer = obj.data_ptr() if is_plain else 0
        self.values = bytearray(_memory(self.pointer, obj.nbytes)) if is_plain else bytearray()

    def has_memory_of(self, obj: th.Tensor) -> bool:
        return obj.data_ptr() == self.pointer and obj.shape == self.shape and obj.dtype is self.tensor.dtype

    def is_same(self, pointer: int) -> bool:
        """Compare bytes: version counters do not tell of writes through ``Tensor.data`` or a NumPy array."""
        return bytearray.__eq__(self.values, _memory(pointer, len(self.values))) is True

    def restore(self, obj: th.Tensor) -> None:
        if not self.pointer:
            obj.data.copy_(self.tensor)
            return
        if not self.has_memory_of(obj):
            obj.data = self.tensor
        pointer = obj.data_ptr()
        if not self.is_same(pointer):
            _memory(pointer, len(self.values)).raw = bytes(self.values)


def _is_plain(obj: th.Tensor) -> bool:
    """Tell whether a tensor is one piece of this process's memory."""
    return (
        obj.layout is th.strided
        and obj.device.type == "cpu"
        and obj.numel() > 0
        and obj.is_contiguous()
        and not (obj.is_conj() or obj.is_neg())
    )


def _memory(pointer: int, n_bytes: int) -> "ctypes.Array[ctypes.c_char]":
    return (ctypes.c_char * n_bytes).from_address(pointer)


class _TensorState(NamedTuple):
    """
    What a tensor consists of.

    :param content: its values
    :param requires_grad: whether it gathers a gradient
    :param grad: its gradient
    :param attributes: what Python code has added to it
    """

    content: _Content
    requires_grad: bool
    grad: th.Tensor | None
    attributes: dict[str, Any]


class _TensorCodec:
    """Codec of tensors with their gradients. What has not changed since the last snapshot is compared, and not copied."""

    def __init__(self) -> None:
        self._contents: WeakValueDictionary[int, _Content] = WeakValueDictionary()

    def save(self, obj: th.Tensor) -> _TensorState:
        content = self._contents.get(id(obj))
        if content is None or not (content.has_memory_of(obj) and obj.is_contiguous() and content.is_same(content.pointer)):
            content = self._contents[id(obj)] = _Content(obj)
        return _TensorState(content, obj.requires_grad, obj.grad if obj.is_leaf else None, dict(obj.__dict__))

    def restore(self, obj: th.Tensor, state: _TensorState) -> None:
        state.content.restore(obj)
        if obj.is_leaf and obj.requires_grad != state.requires_grad:
            obj.requires_grad_(state.requires_grad)
        if obj.is_leaf and obj.grad is not state.grad:
            obj.grad = state.grad
        if obj.__dict__ or state.attributes:
            obj.__dict__.clear()
            obj.__dict__.update(state.attributes)

    def children(self, state: _TensorState) -> Iterable[Any]:
        gradient = () if state.grad is None else (state.grad,)
        return (*gradient, *state.attributes.values())


_MEMBERS = ("_parameters", "_buffers", "_modules")
_HOOKS = tuple(name for name, value in vars(th.nn.Module()).items() if isinstance(value, dict | set) and name not in _MEMBERS)


class _ModuleCodec:
    """Codec of networks. Most of the dictionaries that each of their parts has for hooks are empty, and passed over."""

    def save(self, obj: th.nn.Module) -> tuple[dict[str, Any], list[Any]]:
        attributes = obj.__dict__
        return dict(attributes), [hooks for name in _HOOKS if not (hooks := attributes.get(name, True))]

    def restore(self, obj: th.nn.Module, state: tuple[dict[str, Any], list[Any]]) -> None:
        attributes, empty = state
        obj.__dict__.clear()
        obj.__dict__.update(attributes)
        for hooks in empty:
            if hooks:
                hooks.clear()

    def children(self, state: tuple[dict[str, Any], list[Any]]) -> Iterable[Any]:
        attributes = state[0]
        return [value for name, value in attributes.items() if value or name not in _HOOKS]


class _AlgorithmCodec(AttributesCodec):
    """Codec of algorithms. One that is learning, which has an environment, is no part of the environment's state."""

    def save(self, obj: BaseAlgorithm) -> dict[str, Any]:
        return dict(obj.__dict__) if obj.env is None else {}

    def restore(self, obj: BaseAlgorithm, state: dict[str, Any]) -> None:
        if state:
            super().restore(obj, state)


class _BufferCodec(AttributesCodec):
    """Codec of an algorithm's buffers, whose large arrays are not looked into, but which branches must not fill."""

    def restore(self, obj: BaseBuffer, state: dict[str, Any]) -> None:
        """Compare: whatever is added moves the position."""
        if any(vars(obj).get(name) is not value for name, value in state.items()):
            raise ValueError("a branch added to a buffer of Stable-Baselines3, which is not saved")

    def children(self, state: dict[str, Any]) -> Iterable[Any]:
        return ()


register_builtin(th.Tensor, _TensorCodec())
register_builtin(th.nn.Module, _ModuleCodec())
register_builtin(BaseAlgorithm, _AlgorithmCodec())
register_builtin(BaseBuffer, _BufferCodec())
register_builtin(BaseCallback, CONSTANT)
