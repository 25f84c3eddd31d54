"""What transports to workers of our own have in common: a message may carry a call and the step after it."""

from abc import abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple, NoReturn

from sb3_hybrid_grpo.branching.vec_env.workers.transport import Transport
from sb3_hybrid_grpo.branching.vec_env.workers.worker import BOTH, STEP, Failed


class _Ride(NamedTuple):
    calls: Sequence[tuple[Any, ...]]
    answers: list[Any]
    timeout: float | None
    lose: Callable[[int, Exception], NoReturn]
    due: set[int]


class OwnTransport(Transport):
    """
    A transport to workers each of which is a ``Worker``.

    :param groups: the environments of each worker
    :param timeout: seconds after which a worker that does not answer is lost, whatever it was asked for
    """

    _ride: _Ride | None = None

    @abstractmethod
    def _post(self, worker: int, method: str, *arguments: Any) -> None:
        """Call a method in a worker, see ``Transport.send``."""

    @abstractmethod
    def _fetch(self, worker: int, timeout: float | None) -> Any:
        """Wait for an answer, see ``Transport.receive``."""

    def send(self, worker: int, method: str, *arguments: Any) -> None:
        """Call a method in a worker, see ``Transport``."""
        ride = self._ride
        if ride is None or method != STEP:
            self._post(worker, method, *arguments)
            return
        try:
            self._post(worker, BOTH, ride.calls[worker], (method, *arguments))
        except OSError as error:
            ride.lose(worker, error)
        ride.due.add(worker)

    def receive(self, worker: int, timeout: float | None = None) -> Any:
        """Wait for an answer, see ``Transport``."""
        ride = self._ride
        if ride is None or worker not in ride.due:
            return self._fetch(worker, timeout)
        try:
            answer = self._fetch(worker, timeout if ride.timeout is None else ride.timeout)
        except (EOFError, OSError) as error:
            ride.lose(worker, error)
        ride.due.remove(worker)
        if isinstance(answer, Failed):  # the pair could not be sent
            return answer
        ride.answers[worker], returned = answer
        return returned

    @contextmanager
    def ride(
        self, calls: Sequence[tuple[Any, ...]], timeout: float | None, lose: Callable[[int, Exception], NoReturn]
    ) -> Iterator[list[Any]]:
        """Have a step take calls along, see ``Transport``."""
        self._ride = _Ride(calls, [None] * len(calls), timeout, lose, set())
        try:
            yield self._ride.answers
        finally:
            self._ride = None
