"""Do every run in a process of its own, a few at a time, and tell how they get on."""

import os
import signal
import traceback
from collections import deque
from collections.abc import Callable, Generator, Hashable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from enum import Enum
from multiprocessing import get_context
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from typing import Any, Generic, Protocol, TypeVar

import torch as th


class Job(Hashable, Protocol):
    """What a process does, and how people call it."""

    @property
    def name(self) -> str:
        """Name for people."""


JobT = TypeVar("JobT", bound=Job)

Report = Callable[[int, float], None]
"""Called now and then with the committed steps so far and the latest mean return."""


class State(Enum):
    """Where a run is in its life."""

    RUNNING = "running"
    FINISHED = "finished"
    FAILED = "failed"


@dataclass(frozen=True)
class Update(Generic[JobT]):
    """
    News of a run.

    :param run: the run
    :param state: where it is in its life
    :param steps: committed steps so far
    :param last_return: mean return of its latest evaluation
    :param result: what a finished run has returned
    :param error: why it failed, in a line
    :param traceback: where it failed, if it could still tell
    """

    run: JobT
    state: State = State.RUNNING
    steps: int = 0
    last_return: float | None = None
    result: Any = None
    error: str = ""
    traceback: str = ""


def run_all(runs: Iterable[JobT], work: Callable[[JobT, Report], Any], jobs: int) -> Generator[Update[JobT], None, None]:
    """
    Do runs in parallel. One that fails takes nothing with it; closing the iterator ends all of them.

    :param runs: what to do
    :param work: does a run, with one thread to compute in; a module's function or a partial of one
    :param jobs: number of runs at the same time
    :return: news of the runs, as they come
    """
    context = get_context("spawn")
    waiting = deque(runs)
    active: dict[Connection, tuple[JobT, SpawnProcess]] = {}
    try:
        while waiting or active:
            while waiting and len(active) < jobs:
                run = waiting.popleft()
                receiver, sender = context.Pipe(duplex=False)
                # Not a daemon: a run may have workers of its own.
                process = context.Process(target=_work, args=(run, work, sender))
                with _inherited_by_children():
                    process.start()
                sender.close()
                active[receiver] = run, process
                yield Update(run)
            ready = wait(list(active))
            for receiver in [receiver for receiver in active if receiver in ready]:
                run, process = active[receiver]
                update = _receive(receiver, run, process)
                if update.state is not State.RUNNING:
                    del active[receiver]
                    receiver.close()
                    process.join()
                yield update
    finally:
        for _, process in active.values():
            process.terminate()
        for _, process in active.values():
            process.join()


def _receive(receiver: Connection, run: JobT, process: SpawnProcess) -> Update[JobT]:
    try:
        update: Update[JobT] = receiver.recv()
    except EOFError:
        process.join()
        return Update(run, State.FAILED, error=f"its process ended with exit code {process.exitcode}")
    # A copy of a run need not equal it: a setting may be NaN.
    return replace(update, run=run)


@contextmanager
def _inherited_by_children() -> Iterator[None]:
    # Ctrl-C reaches this process only, which then ends its children; these leave the other cores to each other.
    previous = signal.signal(signal.SIGINT, signal.SIG_IGN), os.environ.get("OMP_NUM_THREADS")
    os.environ["OMP_NUM_THREADS"] = "1"
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, previous[0])
        if previous[1] is None:
            del os.environ["OMP_NUM_THREADS"]
        else:
            os.environ["OMP_NUM_THREADS"] = previous[1]


def _work(run: JobT, work: Callable[[JobT, Report], Any], sender: Connection) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    th.set_num_threads(1)
    latest = Update(run)

    def report(steps: int, last_return: float) -> None:
        nonlocal latest
        latest = Update(run, steps=steps, last_return=last_return)
        sender.send(latest)

    try:
        result = work(run, report)
        last = replace(latest, state=State.FINISHED, result=result)
    except Exception as error:
        last = Update(run, State.FAILED, error=f"{type(error).__name__}: {error}", traceback=traceback.format_exc())
    # Nobody may be there to hear it.
    with suppress(OSError):
        sender.send(last)
