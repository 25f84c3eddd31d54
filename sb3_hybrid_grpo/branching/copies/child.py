"""Forked copies of this process, of which none outlives its use."""

import ctypes
import gc
import os
import pickle
import random
import signal
import stat
import sys
import threading
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from multiprocessing.connection import Connection, Pipe
from typing import Any, NamedTuple

import torch as th

from sb3_hybrid_grpo.common import BranchError

if sys.platform != "win32":
    import fcntl

CAN_FORK = hasattr(os, "fork")
"""Whether the platform has ``os.fork``: all but Windows have."""

CAN_REOPEN = sys.platform == "linux"
"""Whether a child can read files that its parent has opened without moving on there as well."""

PATIENCE = 30.0
"""Seconds that a few steps may take when they are tried in a child."""

_PR_SET_PDEATHSIG = 1
_prctl = getattr(ctypes.CDLL(None), "prctl", None) if CAN_FORK else None

_REQUESTS = [getattr(signal, name) for name in ("SIGTERM", "SIGHUP", "SIGUSR1", "SIGUSR2", "SIGINT") if hasattr(signal, name)]
"""Signals that ask a program to do something: this is for the parent to do, once."""

_DESCRIPTORS = "/dev/fd"

_is_child = False

_FORK_BESIDE_THREADS = r".*is multi-threaded, use of fork\(\)"


class Raised(NamedTuple):
    """
    What a child says of an exception.

    :param error_class: its class
    :param message: its text
    """

    error_class: str
    message: str


class ChildDied(Exception):
    """A child ended without an answer."""


class ChildHangs(Exception):
    """A child did not answer in time."""


class Channel:
    """
    One end of the line between a process and its child.

    :param connection: the end as the operating system has it
    """

    def __init__(self, connection: "Connection[Any, Any]") -> None:
        self.connection = connection

    def send(self, message: Any) -> None:
        """
        Send an object.

        :param message: anything that can be pickled
        """
        # Not by Connection.send, which would pass PyTorch's tensors through shared memory.
        self.connection.send_bytes(pickle.dumps(message, protocol=pickle.HIGHEST_PROTOCOL))

    def close(self) -> None:
        """Close this end, once and for all."""
        self.connection.close()
        del self.connection

    def receive(self) -> Any:
        """
        Wait for an object.

        :return: the object
        :raises EOFError: if the other side is gone
        """
        return pickle.loads(self.connection.recv_bytes())


class Child:
    """
    A copy of this process that does some work from its present state on.

    It leaves no trace but what it sends: it never returns into the code that made it, nor runs exit handlers, nor writes to
    the standard output or to files that the parent opened to write to, nor reads on in others. Signals that ask the program
    for something do not reach it, and the processes that it starts end with it.

    :param work: what it does; it gets its end of the line. What it raises is sent as ``Raised``.
    :param family: all living children, in which this one is registered
    :raises BranchError: if the system refuses another process
    """

    def __init__(self, work: Callable[[Channel], None], family: set["Child"]) -> None:
        self.is_reaped = False
        with _requests_held():
            ours, theirs = Pipe()
            self.channel = Channel(ours)
            # CPython seeds this generator anew in forked processes.
            python_random = random.getstate()
            try:
                self.pid = _fork()
            except OSError as error:
                ours.close()
                theirs.close()
                raise BranchError(f"The process could not be forked for a branch: {error}") from error
            if self.pid == 0:
                try:
                    random.setstate(python_random)
                    _lead_group(0)
                    _settle(ours, *(child.channel.connection for child in family))
                    _run(work, Channel(theirs))
                finally:
                    os._exit(0)
            # Both do it, as either may be the first to need it.
            _lead_group(self.pid)
            theirs.close()
            # Ctrl-C would be lost in the middle of its finalizer.
            del theirs
            family.add(self)

    def receive(self, timeout: float | None = None) -> Any:
        """
        Wait for what the child sends next.

        :param timeout: seconds to wait
        :return: the object, or ``Raised``
        :raises ChildDied: if it died instead; the message says of what
        :raises ChildHangs: if it sent nothing in time
        """
        try:
            if timeout is not None and not self.channel.connection.poll(timeout):
                raise ChildHangs
            return self.channel.receive()
        except (EOFError, OSError) as error:
            raise ChildDied(self._cause_of_death()) from error

    def send(self, message: Any) -> None:
        """
        Send the child something that it waits for.

        :param message: the object
        """
        # If it died, the next receive says so.
        with suppress(ConnectionError):
            self.channel.send(message)

    def kill(self) -> None:
        """End the child, if it is still there, and the processes that it has started, even if it is not."""
        # As long as it is not reaped, nobody else can have its number.
        if self.is_reaped:
            return
        with suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGKILL)
        # There is no such group if it belongs to that of its parent. macOS refuses where all of a group are dead already.
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, signal.SIGKILL)

    def reap(self) -> int | None:
        """
        Wait until the child is gone.

        :return: how it ended, as ``subprocess.Popen.returncode``; ``None`` if somebody else was told
        """
        self.is_reaped = True
        try:
            return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        except ChildProcessError:
            return None

    def _cause_of_death(self) -> str:
        with _requests_held():
            # Only as long as it is not reaped can its group be told from one of strangers.
            if hasattr(os, "waitid"):
                with suppress(ChildProcessError):
                    os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOWAIT)
                    self.kill()
            status = self.reap()
        if status is None:
            return "died"
        return f"was killed by {signal.Signals(-status).name}" if status < 0 else f"exited with code {status}"


def end(children: Iterable[Child], family: set[Child]) -> None:
    """
    End children, whatever they are doing, and wait until they are gone.

    :param children: the children
    :param family: all living children, from which these are removed
    """
    children = list(children)
    with _requests_held():
        for child in children:
            child.kill()
        for child in children:
            child.channel.close()
            if not child.is_reaped:
                child.reap()
            family.discard(child)


@contextmanager
def _requests_held() -> Iterator[None]:
    """Let Ctrl-C and its like wait until no child can be lost by them."""
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, ())
    handlers: dict[int, Any] = {}
    held: list[int] = []
    try:
        signal.pthread_sigmask(signal.SIG_BLOCK, _REQUESTS)
        # Another thread may still receive them, and then it is Python that calls their handlers in the main thread.
        if threading.current_thread() is threading.main_thread():
            for number in _REQUESTS:
                handler = signal.getsignal(number)
                if callable(handler):
                    handlers[number] = handler
                    signal.signal(number, lambda signum, frame: held.append(signum))
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        for number in held:
            signal.raise_signal(number)


def _fork() -> int:
    # Python warns of locks that other threads may hold. A child only steps an environment, which was found to have no
    # threads. The filter names this module, and is left in place: to take it away would show all other warnings again.
    if not any(getattr(message, "pattern", None) == _FORK_BESIDE_THREADS for _, message, *_ in warnings.filters):
        warnings.filterwarnings("ignore", message=_FORK_BESIDE_THREADS, category=DeprecationWarning, module=__name__)
    return os.fork()


def _lead_group(pid: int) -> None:
    """Put a child, or 0 for this process, into a process group of its own, unless this process is a child's."""
    if not _is_child:
        with suppress(OSError):
            os.setpgid(pid, pid)


def _settle(*foreign_ends: "Connection[Any, Any]") -> None:
    """Make a forked process independent of its parent."""
    global _is_child
    _is_child = True
    if _prctl is not None:
        _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    # A parent that is gone, or a brother whose parent closes the line, is noticed only if nobody else holds that end.
    for connection in foreign_ends:
        connection.close()
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    _part_from_files(nowhere)
    sys.stdout = os.fdopen(nowhere, "w")
    # Garbage that the parent left is not worth the pages that collecting it would copy.
    gc.disable()
    # The threads that share out PyTorch's work do not exist here.
    th.set_num_threads(1)


def _part_from_files(nowhere: int) -> None:
    """Lead what is written to files of the parent, such as logs, to nowhere, and read from them without moving on there."""
    for name in os.listdir(_DESCRIPTORS) if os.path.isdir(_DESCRIPTORS) else ():
        descriptor = int(name)
        # One of them was that of the listing itself.
        with suppress(OSError):
            if descriptor <= 2 or not is_regular_file(descriptor):
                continue
            mode = fcntl.fcntl(descriptor, fcntl.F_GETFL) & os.O_ACCMODE
            if mode == os.O_WRONLY:
                os.dup2(nowhere, descriptor, inheritable=False)
            elif CAN_REOPEN:
                position = os.lseek(descriptor, 0, os.SEEK_CUR)
                again = os.open(f"{_DESCRIPTORS}/{name}", mode)
                os.lseek(again, position, os.SEEK_SET)
                os.dup2(again, descriptor, inheritable=False)
                os.close(again)


def is_regular_file(descriptor: int) -> bool:
    """
    Tell whether a descriptor is that of a file on a disk.

    :param descriptor: an open descriptor
    :return: whether it is
    """
    return stat.S_ISREG(os.fstat(descriptor).st_mode)


def _run(work: Callable[[Channel], None], channel: Channel) -> None:
    try:
        work(channel)
    except BaseException as error:
        channel.send(Raised(type(error).__name__, str(error)))
