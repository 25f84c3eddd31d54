"""Codecs of locks, files, caches and weak references, and what of their kind is refused."""

import functools
import gc
import io
import multiprocessing.connection
import multiprocessing.process
import os
import stat
import subprocess
import threading
import weakref
from concurrent.futures import Executor
from typing import Any

from sb3_hybrid_grpo.branching.snapshots.codecs.generic import RefusingCodec, register_content
from sb3_hybrid_grpo.branching.snapshots.registry import LeafCodec, Mark, ReferencesCodec, register_builtin
from sb3_hybrid_grpo.common import UnbranchableEnvError


def _save_lock(obj: Any) -> None:
    if obj.locked():
        raise UnbranchableEnvError("somebody holds it. Another thread, whose work no branch undoes?")


def _restore_lock(obj: Any, state: None) -> None:
    if obj.locked():
        obj.release()


def _save_reentrant_lock(obj: Any) -> None:
    if obj._is_owned() or not obj.acquire(blocking=False):
        raise UnbranchableEnvError("somebody holds it. Another thread, whose work no branch undoes?")
    obj.release()


def _restore_reentrant_lock(obj: Any, state: None) -> None:
    while obj._is_owned():
        obj.release()


def _restore_environment(obj: Any, state: dict[str, str]) -> None:
    # Item by item: each is told to the operating system as well.
    for name in obj.keys() - state.keys():
        del obj[name]
    for name, value in state.items():
        if obj.get(name) != value:
            obj[name] = value


def _save_memory_file(obj: Any) -> Any:
    return None if obj.closed else obj.__getstate__()


def _restore_memory_file(obj: Any, state: Any) -> None:
    if state is not None:
        obj.__setstate__(state)


def _save_position(obj: Any) -> int | None:
    if obj.closed:
        return None
    if obj.writable():
        raise UnbranchableEnvError("it is open for writing, and what a branch writes cannot be taken back")
    if not stat.S_ISREG(os.fstat(obj.fileno()).st_mode):
        raise UnbranchableEnvError("what is read from it, which is no regular file, cannot be put back")
    return int(obj.tell())


def _restore_position(obj: Any, state: int | None) -> None:
    if state is not None and obj.tell() != state:
        obj.seek(state)


class _CacheCodec:
    """Codec of functions with a cache that has no limit, which is a dictionary. How often it was of use is not restored."""

    def save(self, obj: Any) -> list[dict[Any, Any]]:
        if obj.cache_info().maxsize is not None:
            raise UnbranchableEnvError(
                "what it keeps, of limited number, cannot be restored. If its results depend on the arguments alone, give it "
                "maxsize=None"
            )
        return [part for part in gc.get_referents(obj) if type(part) is dict and part is not obj.__dict__]

    def restore(self, obj: Any, state: list[dict[Any, Any]]) -> None:
        """Do nothing: the dictionary has its own codec."""

    def children(self, state: list[dict[Any, Any]]) -> list[dict[Any, Any]]:
        return state


def _referent(obj: weakref.ref[Any]) -> tuple[Any, ...]:
    if type(obj) is weakref.ref and obj.__callback__ is not None:
        raise UnbranchableEnvError(_WEAK)
    referent = obj()
    return () if referent is None else (referent,)


_WEAK = (
    "what a branch drops would stay in it, as a snapshot keeps objects alive. Keep plain references, and remove what is gone, "
    "or register the type as CONSTANT if steps never drop what it refers to"
)

register_builtin(type(threading.Lock()), LeafCodec[Any, None](_save_lock, _restore_lock))
register_builtin(type(threading.RLock()), LeafCodec[Any, None](_save_reentrant_lock, _restore_reentrant_lock))
for _memory_file in (io.StringIO, io.BytesIO):
    register_content(_memory_file, LeafCodec[Any, Any](_save_memory_file, _restore_memory_file))
for _file in (io.TextIOWrapper, io.BufferedReader, io.FileIO):
    register_builtin(_file, LeafCodec[Any, Any](_save_position, _restore_position))
register_builtin(type(functools.lru_cache(lambda: None)), _CacheCodec())
register_builtin(weakref.ref, ReferencesCodec(_referent))
for _weak in (weakref.WeakSet, weakref.WeakValueDictionary, weakref.WeakKeyDictionary, weakref.finalize):
    register_builtin(_weak, RefusingCodec(_WEAK))
for _alive in (
    threading.Thread,
    subprocess.Popen,
    multiprocessing.process.BaseProcess,
    multiprocessing.connection._ConnectionBase
    if hasattr(multiprocessing.connection, "_ConnectionBase")
    else "multiprocessing.connection._ConnectionBase",
    "multiprocessing.shared_memory.SharedMemory",
    Executor,
):
    register_builtin(_alive, Mark.UNKNOWN)
register_builtin(type(os.environ), LeafCodec(dict, _restore_environment))
