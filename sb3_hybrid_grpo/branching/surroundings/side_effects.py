"""What steps do outside the process, where nothing is undone: files, logs, data bases, sockets, other processes."""

import gc
import io
import logging
import os
import sqlite3
import sys
import threading
import types
from collections.abc import Callable, Iterable
from typing import Any

import gymnasium as gym

from sb3_hybrid_grpo.branching.snapshots import Mark, codec_of

_WRITING = os.O_WRONLY | os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_TRUNC
_NOBODYS = ("/dev/", "/proc/", "__pycache__", os.devnull)
_DEPTH_OF_WRAPPING = 3


def _describe_open(path: Any, mode: Any, flags: Any) -> str | None:
    if not isinstance(path, str | bytes | os.PathLike) or not isinstance(flags, int) or not flags & _WRITING:
        return None
    return _describe_file("opens", path)


def _describe_file(verb: str, path: Any) -> str | None:
    name = os.fsdecode(path) if isinstance(path, str | bytes | os.PathLike) else f"the file with descriptor {path}"
    return None if any(part in name for part in _NOBODYS) else f"{verb} {name}{' for writing' if verb == 'opens' else ''}"


def _describe_database(path: Any) -> str | None:
    return None if path in (":memory:", b":memory:") else f"connects to the data base {os.fsdecode(path)}"


_EVENTS: dict[str, Callable[..., str | None]] = {
    "open": _describe_open,
    "sqlite3.connect": _describe_database,
    "socket.connect": lambda socket, address: f"connects to {address}",
    "socket.sendto": lambda socket, address: f"sends to {address}",
    "subprocess.Popen": lambda executable, *_: f"starts {executable}",
    "os.posix_spawn": lambda path, *_: f"starts {os.fsdecode(path)}",
    "os.system": lambda command: f"starts {os.fsdecode(command)}",
    "os.remove": lambda path, *_: _describe_file("removes", path),
    "os.rename": lambda source, *_: _describe_file("renames", source),
    "os.mkdir": lambda path, *_: _describe_file("makes the folder", path),
    "os.truncate": lambda path, *_: _describe_file("truncates", path),
}

WAYS_OUT = (
    "Ways out: (1) if a wrapper does it, declare it with sb3_hybrid_grpo.branching.register_transparent_wrapper, so that "
    "branches go around it; (2) define the methods on_branch_start() and on_branch_end() on the environment or the wrapper, "
    "and switch it off in between; (3) train without branching, with n_samples=1."
)

_active: "Notice | None" = None


class Notice:
    """
    Notices side effects as long as it is entered.

    ``effects`` describes each kind of them that was noticed, once.
    """

    def __init__(self) -> None:
        self.effects: list[str] = []
        self._thread = 0
        self._outer: Notice | None = None
        self._make_record: Callable[..., logging.LogRecord] = logging.LogRecord

    def __enter__(self) -> "Notice":
        global _active
        _install_hook()
        self._thread = threading.get_ident()
        self._outer, _active = _active, self
        self._make_record = logging.getLogRecordFactory()
        logging.setLogRecordFactory(self._note_record)
        return self

    def __exit__(self, *exception: object) -> None:
        global _active
        logging.setLogRecordFactory(self._make_record)
        _active = self._outer

    @property
    def suspects(self) -> str:
        """A sentence about what was noticed, for a message about state that is not found; empty if nothing was."""
        return f" A step {', '.join(self.effects)}: what it reads again from there is such a state." if self.effects else ""

    def note(self, effect: str | None) -> None:
        """
        Remember an effect.

        :param effect: its description; ``None`` for what is none
        """
        if effect is not None and threading.get_ident() == self._thread and effect not in self.effects:
            self.effects.append(effect)

    def _note_record(self, *arguments: Any, **keywords: Any) -> logging.LogRecord:
        record = self._make_record(*arguments, **keywords)
        if _has_reader(record):
            self.note(f"logs through {record.name!r}")
        return record


def _install_hook() -> None:
    if not _installed:
        _installed.append(True)
        sys.addaudithook(_hear)


_installed: list[bool] = []


def _hear(event: str, arguments: tuple[Any, ...]) -> None:
    # Audit hooks are never taken away, and hear much: whatever this raised would end up in what is audited.
    if _active is not None and event in _EVENTS:
        try:
            _active.note(_EVENTS[event](*arguments))
        except (TypeError, ValueError):
            _active.note(f"causes {event}")


def _has_reader(record: logging.LogRecord) -> bool:
    logger: logging.Logger | None = logging.getLogger(record.name)
    handlers: list[logging.Handler] = []
    while logger is not None:
        handlers += logger.handlers
        logger = logger.parent if logger.propagate else None
    if not handlers:
        return logging.lastResort is not None and record.levelno >= logging.lastResort.level
    return any(record.levelno >= handler.level and not isinstance(handler, logging.NullHandler) for handler in handlers)


def announce(env: gym.Env[Any, Any], effects: Iterable[str]) -> str | None:
    """
    Say what branches do outside the process.

    :param env: the environment
    :param effects: what its steps were noticed to do
    :return: the text of a warning; ``None`` if there is nothing to say
    """
    listed = ", ".join(effects)
    if not listed:
        return None
    return (
        f"{env}: a step {listed}. This cannot be undone: steps in branches do it too, beside those of the training run.\n"
        f"{WAYS_OUT}"
    )


def branch_hooks(layers: Iterable[gym.Env[Any, Any]]) -> tuple[list[Callable[[], Any]], list[Callable[[], Any]]]:
    """
    Look up what environments and wrappers want to have called around branches.

    :param layers: wrappers and environment, outermost first
    :return: their methods ``on_branch_start``, and ``on_branch_end`` in reverse order
    """
    layers = list(layers)
    starts, ends = (
        [getattr(layer, name) for layer in layers if hasattr(type(layer), name)]
        for name in ("on_branch_start", "on_branch_end")
    )
    return starts, ends[::-1]


def is_outlet(obj: Any) -> bool:
    """
    Tell whether something leads out of the process, so that copies of the process would write into it at the same time.

    :param obj: an object found in an environment
    :return: whether it is a file open for writing, or a connection to a data base, or a wrapper around one
    """
    return any(_is_outlet(part) for part in _parts(obj))


def _is_outlet(obj: Any) -> bool:
    if isinstance(obj, sqlite3.Connection):
        return _is_in_file(obj)
    if isinstance(obj, io.IOBase):
        return not obj.closed and obj.writable() and not isinstance(obj, io.BytesIO | io.StringIO) and obj not in _STREAMS
    # What a driver of a data base calls its connections, by Python's convention for these.
    return all(callable(getattr(type(obj), name, None)) for name in ("cursor", "commit", "rollback", "close"))


def _is_in_file(connection: sqlite3.Connection) -> bool:
    try:
        cursor = connection.cursor()
        cursor.row_factory = None
        return any(path for _, _, path in cursor.execute("PRAGMA database_list"))
    except sqlite3.Error as error:
        # Closed, or of another thread.
        return "closed" not in str(error)


def _parts(obj: Any) -> Iterable[Any]:
    """Yield an object, and what it holds if it is one of an extension module, such as a writer of CSV files or a cursor."""
    level = [obj]
    for _ in range(_DEPTH_OF_WRAPPING):
        yield from level
        opaque = [part for part in level if _is_opaque(type(part))]
        level = [held for part in opaque for held in gc.get_referents(part) if not isinstance(held, type)]


def _is_opaque(cls: type) -> bool:
    return codec_of(cls) is Mark.UNKNOWN or cls is types.BuiltinMethodType


_STREAMS = (sys.__stdin__, sys.__stdout__, sys.__stderr__)
