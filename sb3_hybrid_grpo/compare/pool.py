"""Run every training in a process of its own, a few at a time, and tell how they get on."""

import signal
import traceback
from collections import deque
from collections.abc import Generator, Iterable, Iterator
from contextlib import contextmanager
from enum import Enum
from multiprocessing import get_context
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from typing import NamedTuple

import torch as th

from sb3_hybrid_grpo.compare.folder import ResultsFolder
from sb3_hybrid_grpo.compare.settings import Run, Settings
from sb3_hybrid_grpo.compare.training import train


class State(Enum):
    """Where a run is in its life."""

    RUNNING = "running"
    FINISHED = "finished"
    FAILED = "failed"


class Update(NamedTuple):
    """
    News of a run.

    :param run: algorithm and seed
    :param state: where the run is in its life
    :param steps: committed steps so far
    :param last_return: mean return of its latest evaluation
    :param error: why it failed
    """

    run: Run
    state: State = State.RUNNING
    steps: int = 0
    last_return: float | None = None
    error: str = ""


def train_all(runs: Iterable[Run], settings: Settings, folder: ResultsFolder, jobs: int) -> Generator[Update, None, None]:
    """
    Train runs in parallel. A run that fails takes nothing with it; closing the iterator ends all of them.

    :param runs: what to train
    :param settings: settings of the comparison
    :param folder: where finished runs are kept
    :param jobs: number of runs at the same time
    :return: news of the runs, as they come
    """
    context = get_context("spawn")
    waiting = deque(runs)
    active: dict[Connection, tuple[Run, SpawnProcess]] = {}
    try:
        while waiting or active:
            while waiting and len(active) < jobs:
                run = waiting.popleft()
                receiver, sender = context.Pipe(duplex=False)
                process = context.Process(target=_work, args=(run, settings, folder, sender), daemon=True)
                with _ctrl_c_ignored():
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
            process.join()


def _receive(receiver: Connection, run: Run, process: SpawnProcess) -> Update:
    try:
        update: Update = receiver.recv()
    except EOFError:
        process.join()
        return Update(run, State.FAILED, error=f"its process ended with exit code {process.exitcode}")
    return update


@contextmanager
def _ctrl_c_ignored() -> Iterator[None]:
    # A child inherits this, so that Ctrl-C reaches this process only, which then ends its children.
    previous = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, previous)


def _work(run: Run, settings: Settings, folder: ResultsFolder, sender: Connection) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    th.set_num_threads(1)
    try:
        model, evaluations = train(
            settings, run, lambda steps, last_return: sender.send(Update(run, steps=steps, last_return=last_return))
        )
        folder.save(run, model, evaluations)
    except Exception as error:
        folder.traceback(run).write_text(traceback.format_exc(), encoding="utf-8")
        sender.send(Update(run, State.FAILED, error=f"{type(error).__name__}: {error} (traceback: {folder.traceback(run)})"))
    else:
        last = evaluations[-1]
        sender.send(Update(run, State.FINISHED, last.committed_steps, last.return_mean))
