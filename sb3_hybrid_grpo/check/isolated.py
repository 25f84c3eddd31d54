"""Work done in a copy of the process, which leaves nothing behind and can be given up."""

import time
from collections.abc import Callable
from functools import partial
from typing import Any, TypeVar

import torch as th

from sb3_hybrid_grpo.branching.copies import CAN_FORK, Channel, Child, ChildDied, Raised, end
from sb3_hybrid_grpo.common import HybridGRPOError

T = TypeVar("T")
Tick = Callable[[], None]

PATIENCE = 60.0
_SECONDS_BETWEEN_TICKS = 0.5


class GaveUpError(Exception):
    """The work did not come to an end; the message says why."""


def isolated(work: Callable[[Tick], T], is_possible: bool = True) -> T:
    """
    Do some work in a copy of the process, or in this one where that cannot be.

    :param work: what is done; it gets a function to call now and then, to tell that it goes on
    :param is_possible: whether a copy of the process could do it
    :return: what it returned, which must be something that can be sent
    :raises GaveUpError: if the copy died, or did not tell for long that it goes on
    """
    if not (CAN_FORK and is_possible) or th.cuda.is_initialized():  # type: ignore[no-untyped-call]
        return work(lambda: None)
    family: set[Child] = set()
    child = Child(partial(_work, work), family)
    try:
        while True:
            if not child.channel.connection.poll(PATIENCE):
                raise GaveUpError(f"did not return for {PATIENCE:.0f} s. Does it wait for something outside?")
            answer: Any = child.receive()
            if isinstance(answer, Raised):
                raise GaveUpError(f"raised {answer.error_class}: {answer.message}")
            if isinstance(answer, Exception):
                raise answer
            if answer is not None:
                (result,) = answer
                return result  # type: ignore[no-any-return]
    except ChildDied as error:
        raise GaveUpError(f"{error} in a copy of the process") from error
    finally:
        end([child], family)


def _work(work: Callable[[Tick], Any], channel: Channel) -> None:
    last = time.monotonic()

    def tick() -> None:
        nonlocal last
        if time.monotonic() - last > _SECONDS_BETWEEN_TICKS:
            last = time.monotonic()
            channel.send(None)

    try:
        channel.send((work(tick),))
    except HybridGRPOError as error:
        channel.send(error)
