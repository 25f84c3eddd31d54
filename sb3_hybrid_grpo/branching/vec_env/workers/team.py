"""All workers of a vectorised environment: they are asked at the same time, and end together."""

import contextlib
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NoReturn, TypeVar

from sb3_hybrid_grpo.branching.vec_env.workers.dispatcher import Raised
from sb3_hybrid_grpo.branching.vec_env.workers.transport import Transport
from sb3_hybrid_grpo.branching.vec_env.workers.worker import Failed
from sb3_hybrid_grpo.common import WorkerLostError, WorkerTimeoutError

_GRACE_SECONDS = 5.0
_AFTERWARDS = (
    "All workers were ended and the vectorised environment is closed. Make it anew and go on from the last checkpoint."
)
_Returned = TypeVar("_Returned")


class Team:
    """
    Asks all workers.

    :param transport: the way to them
    :param task: what they are asked for, for messages
    :param timeout: seconds after which a worker that does not answer is lost; the transport's if ``None``
    :param limit: the argument that says so, for messages
    """

    def __init__(self, transport: Transport, task: str, timeout: float | None = None, limit: str | None = None) -> None:
        self.transport = transport
        self._task = task
        self._timeout = transport.timeout if timeout is None else timeout
        self._limit = limit or f"timeout={transport.timeout} s"

    def __len__(self) -> int:
        return len(self.transport.groups)

    def asked_for_more(self, task: str, times: int) -> "Team":
        """
        Return the same team with more patience.

        :param task: what it is asked for, for messages
        :param times: how many times as long that may take
        :return: the team
        """
        timeout = None if self._timeout is None else times * self._timeout
        return Team(self.transport, task, timeout, f"{times} times {self._limit}")

    def call(self, method: str, arguments: Sequence[tuple[Any, ...]] | None = None) -> list[Any]:
        """
        Call a method in every worker.

        :param method: its name, see ``Dispatcher``
        :param arguments: its arguments for each worker
        :return: the answers
        :raises HybridGRPOError: if a worker raised
        :raises WorkerLostError: if a worker is lost; all others have been ended then
        """
        self.send(method, arguments)
        return self.receive()

    def broadcast(self, method: str, value: Any, arguments: Sequence[tuple[Any, ...]] | None = None) -> list[Any]:
        """
        Call a method in every worker with one value that all of them get.

        :param method: its name, see ``Dispatcher``
        :param value: its first argument
        :param arguments: its other arguments for each worker
        :return: the answers
        :raises HybridGRPOError: if a worker raised, or is lost
        """
        try:
            shared = self.transport.share(value)
        except MemoryError as error:
            self._find_no_room(error)
        return self.call(method, [(shared, *row) for row in arguments or [()] * len(self)])

    def call_some(self, method: str, arguments: Mapping[int, tuple[Any, ...]]) -> dict[int, Any]:
        """
        Call a method in some workers.

        :param method: its name
        :param arguments: its arguments for each of these workers
        :return: an answer of each
        :raises HybridGRPOError: if a worker raised, or is lost
        """
        for worker, row in arguments.items():
            self._send(worker, method, row)
        return dict(zip(arguments, self.receive([*arguments]), strict=True))

    def send(self, method: str, arguments: Sequence[tuple[Any, ...]] | None = None) -> None:
        """
        Call a method in every worker, without waiting for the answers.

        :param method: its name
        :param arguments: its arguments for each worker
        :raises WorkerLostError: if a worker is lost
        """
        for worker, row in enumerate(arguments or [()] * len(self)):
            self._send(worker, method, row)

    def _send(self, worker: int, method: str, arguments: tuple[Any, ...]) -> None:
        try:
            self.transport.send(worker, method, *arguments)
        except OSError as error:
            self._lose(worker, error)
        except MemoryError as error:
            self._find_no_room(error)

    def receive(self, workers: Sequence[int] | None = None) -> list[Any]:
        """
        Wait for the answers to ``send``.

        :param workers: the workers that were asked, ``None`` for all
        :return: an answer of each
        :raises HybridGRPOError: if a worker raised in a branch, or is lost
        :raises Exception: if an environment raised
        """
        waiting = list(range(len(self)) if workers is None else workers)
        answers: list[Any] = []
        for n_received, worker in enumerate(waiting):
            try:
                answers.append(self.transport.receive(worker, self._timeout))
            except (EOFError, OSError) as error:
                self._lose(worker, error)
            except KeyboardInterrupt:
                self._drain(waiting[n_received:])
                raise
            except WorkerLostError:
                # In a step that took a call along: all workers have been ended.
                raise
            except Exception:
                # The answer has come, but cannot be read.
                self._drain(waiting[n_received + 1 :])
                raise
        self._raise_what_workers_raised(waiting, answers)
        return answers

    def ride(
        self, step: Callable[[], _Returned], method: str, arguments: Sequence[tuple[Any, ...]] | None = None
    ) -> tuple[_Returned, list[Any]]:
        """
        Take a step of the vectorised environment, of which each message takes a call along.

        :param step: takes it
        :param method: name of the method that workers call before the step
        :param arguments: its arguments for each worker
        :return: what ``step`` returns, and an answer of each worker
        :raises HybridGRPOError: if a worker raised, or is lost
        """
        calls = [(method, *row) for row in arguments or [()] * len(self)]
        lose = partial(self._lose, task=f"{self._task} or in the committed step after it")
        with self.transport.ride(calls, self._timeout, lose) as answers:
            returned = step()
        self._raise_what_workers_raised(range(len(self)), answers)
        return returned, answers

    def _raise_what_workers_raised(self, workers: Sequence[int], answers: Sequence[Any]) -> None:
        for worker, answer in zip(workers, answers, strict=True):
            if isinstance(answer, Raised):
                raise answer.error_class(f"In the worker of {self._environments_of(worker)}: {answer.message}")
            if isinstance(answer, Failed):
                where = f"In the worker of {self._environments_of(worker)} ({self.transport.describe(worker)})"
                raise answer.error from RuntimeError(f"{where}:\n{answer.trace}")

    def _lose(self, worker: int, error: Exception, task: str = "") -> NoReturn:
        if isinstance(error, TimeoutError):
            raise WorkerTimeoutError(self._give_up(worker, f"did not answer within {self._limit}")) from error
        raise WorkerLostError(self._give_up(worker, f"died {task or self._task}")) from error

    def _find_no_room(self, error: MemoryError) -> NoReturn:
        self._end()
        raise WorkerLostError(f"{error} {_AFTERWARDS}") from error

    def _environments_of(self, worker: int) -> str:
        group = self.transport.groups[worker]
        return f"environment {group[0]}" if len(group) == 1 else f"environments {group[0]} to {group[-1]}"

    def _give_up(self, culprit: int, problem: str) -> str:
        """End all workers, since one of them is lost, and return a description."""
        lost = sorted({culprit} | self.transport.find_lost())
        who = "; ".join(f"{self._environments_of(worker)} ({self.transport.describe(worker)})" for worker in lost)
        self._end()
        return f"A worker of the vectorised environment {problem}: {who}. {_AFTERWARDS}"

    def _end(self) -> None:
        self.transport.kill()
        self.transport.is_ended = True

    def _drain(self, workers: Sequence[int]) -> None:
        """Take the answers that are still due, so that the next command gets its own."""
        for worker in workers:
            with contextlib.suppress(EOFError, OSError):
                self.transport.receive(worker, _GRACE_SECONDS)
