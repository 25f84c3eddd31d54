"""Codecs of PyTorch's tensors and networks, and of Stable-Baselines3's algorithms, which an environment may have as opponents."""

import ctypes
from collections.abc import Iterable
from typing import Any, NamedTuple

import torch as th
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.buffers import BaseBuffer

from sb3_hybrid_grpo.branching.codecs.generic import AttributesCodec
from sb3_hybrid_grpo.branching.codecs.unchanged import LastStates
from sb3_hybrid_grpo.branching.snapshot import CONSTANT, register_builtin


class _Content(NamedTuple):
    """
    The content of a tensor.

    :param tensor: another tensor with the same memory, as the original may be given other memory; or a copy
    :param pointer: where the memory begins; 0 if the tensor is a copy
    :param shape: the shape
    :param values: what was in the memory
    """

    tensor: th.Tensor
    pointer: int
    shape: th.Size
    values: bytearray

    @classmethod
    def of(cls, obj: th.Tensor) -> "_Content":
        if not _is_plain(obj):
            return cls(obj.detach().clone(), 0, obj.shape, bytearray())
        pointer = obj.data_ptr()
        return cls(obj.detach(), pointer, obj.shape, bytearray(_memory(pointer, obj.nbytes)))

    def has_memory_of(self, obj: th.Tensor) -> bool:
        return obj.data_ptr() == self.pointer and obj.shape == self.shape

    def is_same(self) -> bool:
        """Compare bytes: version counters do not tell of writes through ``Tensor.data`` or a NumPy array."""
        return bytearray.__eq__(self.values, _memory(self.pointer, len(self.values))) is True

    def restore(self, obj: th.Tensor) -> None:
        if not self.pointer:
            obj.data.copy_(self.tensor)
            return
        if not self.has_memory_of(obj):
            obj.data = self.tensor
            if obj.data_ptr() != self.pointer:
                raise ValueError("a branch gave a tensor other memory in place")
        if not self.is_same():
            _memory(self.pointer, len(self.values)).raw = bytes(self.values)


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
    """

    content: _Content
    requires_grad: bool
    grad: th.Tensor | None


class _TensorCodec:
    """Codec of tensors with their gradients. What has not changed since the last snapshot is compared, and not copied."""

    def __init__(self) -> None:
        self._contents: LastStates[_Content] = LastStates()

    def save(self, obj: th.Tensor) -> _TensorState:
        content = self._contents.get(obj)
        if content is None or not content.has_memory_of(obj):
            content = _Content.of(obj)
            if content.pointer:
                self._contents.put(obj, content)
        elif not content.is_same():
            content = content._replace(values=bytearray(_memory(content.pointer, len(content.values))))
            self._contents.put(obj, content)
        return _TensorState(content, obj.requires_grad, obj.grad if obj.is_leaf else None)

    def restore(self, obj: th.Tensor, state: _TensorState) -> None:
        state.content.restore(obj)
        if obj.is_leaf and obj.requires_grad != state.requires_grad:
            obj.requires_grad_(state.requires_grad)
        if obj.is_leaf and obj.grad is not state.grad:
            obj.grad = state.grad

    def children(self, state: _TensorState) -> Iterable[Any]:
        return () if state.grad is None else (state.grad,)


_MEMBERS = ("_parameters", "_buffers", "_modules")
_HOOKS = tuple(
    name for name, value in vars(th.nn.Module()).items() if isinstance(value, dict | set) and name not in _MEMBERS
)


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
