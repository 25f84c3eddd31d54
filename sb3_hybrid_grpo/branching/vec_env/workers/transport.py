"""How calls get to workers and answers come back."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any, NoReturn


class Transport(ABC):
    """
    Carries calls to workers, each of which holds some environments, and does one thing after the other.

    :param groups: the environments of each worker: all of them together are 0, ..., E - 1
    :param timeout: seconds after which a worker that does not answer is lost, whatever it was asked for
    """

    is_ended = False
    """Whether the workers have been ended because one was lost."""

    def __init__(self, groups: Sequence[range], timeout: float | None = None) -> None:
        self.groups = groups
        self.timeout = timeout

    @abstractmethod
    def send(self, worker: int, method: str, *arguments: Any) -> None:
        """
        Call a method in a worker, without waiting for the answer.

        :param worker: number of the worker
        :param method: name of the method, see ``Dispatcher``
        :param arguments: its arguments, some of which ``share`` may have returned
        :raises OSError: if the worker is lost
        :raises MemoryError: if there is no room for the arguments on the way
        """

    @abstractmethod
    def receive(self, worker: int, timeout: float | None = None) -> Any:
        """
        Wait for the first answer that a worker still owes.

        :param worker: number of the worker
        :param timeout: how many seconds to wait
        :return: the answer
        :raises TimeoutError: if there is none by then
        :raises OSError: if the worker is lost
        :raises EOFError: if the worker is lost
        """

    @abstractmethod
    def ride(
        self, calls: Sequence[tuple[Any, ...]], timeout: float | None, lose: Callable[[int, Exception], NoReturn]
    ) -> AbstractContextManager[list[Any]]:
        """
        Have one step of the vectorised environment take calls along: each worker gets its call in the message that asks for
        the step, and answers both at once.

        :param calls: a method and its arguments for each worker, done before the step
        :param timeout: how many seconds to wait for each worker
        :param lose: raises what is to be raised if a worker is lost or does not answer
        :return: a context for the step, which gives the list that has the answers afterwards
        """

    @abstractmethod
    def kill(self) -> None:
        """End all workers, whatever they do, and let go of them. The second time there is nothing to do."""

    @abstractmethod
    def find_lost(self) -> set[int]:
        """
        Look for workers that have ended.

        :return: the numbers of those of which it is known
        """

    @abstractmethod
    def describe(self, worker: int) -> str:
        """
        Say what and where a worker is, for messages.

        :param worker: its number
        :return: its process, and how that ended
        """

    def share(self, value: Any) -> Any:
        """
        Prepare a value that all workers are to get, such as the weights of a policy.

        :param value: the value
        :return: what to give to ``send`` in its place: the value travels as seldom as possible
        :raises MemoryError: if there is no room for it where workers would find it
        """
        return value
