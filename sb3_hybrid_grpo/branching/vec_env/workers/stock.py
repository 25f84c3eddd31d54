"""The workers of SB3's ``SubprocVecEnv``, reached through what its own loop answers."""

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from types import SimpleNamespace
from typing import Any, NoReturn

from stable_baselines3.common.vec_env import SubprocVecEnv

from sb3_hybrid_grpo.branching.snapshots import CONSTANT, register_builtin
from sb3_hybrid_grpo.branching.vec_env.workers.dispatcher import Dispatcher
from sb3_hybrid_grpo.branching.vec_env.workers.transport import Transport

_WORKER_ATTRIBUTE = "sb3_hybrid_grpo_branches"
_STEP_WITH_CALL = "step_with_call"
_LAST_MOMENTS = 0.1
_GRACE_SECONDS = 5.0


class StockTransport(Transport):
    """
    The pipes of a ``SubprocVecEnv``: a call is an ``env_method`` of an attribute that its environments get.

    :param venv: the vectorised environment
    """

    def __init__(self, venv: SubprocVecEnv) -> None:
        super().__init__([range(env_idx, env_idx + 1) for env_idx in range(venv.num_envs)])
        self._venv = venv
        venv.set_attr(_WORKER_ATTRIBUTE, _StockDispatcher())

    def send(self, worker: int, method: str, *arguments: Any) -> None:
        """Call a method in a worker, see ``Transport``."""
        self._venv.remotes[worker].send(("env_method", (_WORKER_ATTRIBUTE, (method, *arguments), {})))

    def receive(self, worker: int, timeout: float | None = None) -> Any:
        """Wait for an answer, see ``Transport``."""
        remote = self._venv.remotes[worker]
        if timeout is not None and not remote.poll(timeout):
            raise TimeoutError
        return remote.recv()

    @contextmanager
    def ride(
        self, calls: Sequence[tuple[Any, ...]], timeout: float | None, lose: Callable[[int, Exception], NoReturn]
    ) -> Iterator[list[Any]]:
        """Have a step take calls along, see ``Transport``: as long as it is taken, its messages go through ``_Rider``."""
        answers: list[Any] = [None] * len(calls)
        remotes = self._venv.remotes
        riders = tuple(
            _Rider(remote, call, timeout, partial(lose, worker), partial(answers.__setitem__, worker))
            for worker, (remote, call) in enumerate(zip(remotes, calls, strict=True))
        )
        self._venv.remotes = riders
        try:
            yield answers
        except KeyboardInterrupt:
            for rider in riders:
                rider.drain()
            self._venv.waiting = False
            raise
        finally:
            self._venv.remotes = remotes

    def kill(self) -> None:
        """End all workers, see ``Transport``."""
        for process, remote in zip(self._venv.processes, self._venv.remotes, strict=True):
            process.kill()
            process.join()
            remote.close()
        self._venv.closed = True

    def find_lost(self) -> set[int]:
        """Look for processes that have ended, see ``Transport``."""
        for process in self._venv.processes:
            process.join(_LAST_MOMENTS)
        return {worker for worker, process in enumerate(self._venv.processes) if process.exitcode is not None}

    def describe(self, worker: int) -> str:
        """Name the process of a worker, see ``Transport``."""
        process = self._venv.processes[worker]
        return f"process {process.pid}" + ("" if process.exitcode is None else f", exit code {process.exitcode}")


class _Rider:
    """
    A connection to a worker of SB3's whose step takes a call along.

    :param connection: the connection
    :param call: a method and its arguments
    :param timeout: how many seconds to wait for the worker
    :param lose: raises what is to be raised if it is lost
    :param keep: keeps the answer to the call
    """

    def __init__(
        self,
        connection: Any,
        call: tuple[Any, ...],
        timeout: float | None,
        lose: Callable[[Exception], NoReturn],
        keep: Callable[[Any], None],
    ) -> None:
        self._connection = connection
        self._call = call
        self._timeout = timeout
        self._lose = lose
        self._keep = keep
        self._is_due = False

    def __getattr__(self, name: str) -> Any:
        return getattr(self._connection, name)

    def send(self, message: tuple[str, Any]) -> None:
        if message[0] != "step":
            self._connection.send(message)
            return
        try:
            self._connection.send((_STEP_WITH_CALL, (self._call, message)))
        except OSError as error:
            self._lose(error)
        self._is_due = True

    def recv(self) -> Any:
        if not self._is_due:
            return self._connection.recv()
        try:
            if self._timeout is not None and not self._connection.poll(self._timeout):
                raise TimeoutError
            answer, returned = self._connection.recv()
        except (EOFError, OSError) as error:
            self._lose(error)
        self._is_due = False
        self._keep(answer)
        return returned

    def drain(self) -> None:
        """Take the answer if it is still due, so that the next command gets its own."""
        with suppress(EOFError, OSError):
            if self._is_due and self._connection.poll(_GRACE_SECONDS):
                self._connection.recv()


class _StockDispatcher(Dispatcher):
    """
    A dispatcher that takes its environment from the loop of SB3's worker, and the calls from messages that ask for steps: the
    loop finds in them what it knows.
    """

    def __init__(self) -> None:
        super().__init__(SimpleNamespace(envs=[]))
        self._answers: list[Any] = []

    def __call__(self, method: str, *arguments: Any) -> Any:
        """Call a method, see ``Dispatcher``."""
        if not self._holder.envs:
            # The one caller is SB3's worker loop, and it offers no other way to its environment and its connection.
            loop = sys._getframe(1).f_locals
            self._holder = SimpleNamespace(envs=[loop["env"]])
            self._listen(loop["remote"])
        return super().__call__(method, *arguments)

    def _listen(self, connection: Any) -> None:
        cls = type(connection)

        def recv() -> Any:
            message = cls.recv(connection)
            if message[0] == _STEP_WITH_CALL:
                call, message = message[1]
                self._answers.append(self(*call))
            return message

        def send(message: Any) -> None:
            cls.send(connection, (self._answers.pop(), message) if self._answers else message)

        vars(connection).update(recv=recv, send=send)


register_builtin(_StockDispatcher, CONSTANT)
