"""Runs in processes of their own, a few at a time, and news of how they get on."""

import json
import os
import subprocess
import sys
import tempfile
from collections import deque
from collections.abc import Generator, Sequence
from queue import SimpleQueue
from threading import Thread
from typing import Any, NamedTuple

from benchmarks import HERE
from benchmarks.learning.experiments import Run, settings_of


class Update(NamedTuple):
    """
    News of a run.

    :param run: the run
    :param steps: committed steps so far
    :param last_return: mean return of its latest evaluation
    :param row: measurements of a finished run
    :param error: why it failed
    """

    run: Run
    steps: int = 0
    last_return: float | None = None
    row: dict[str, Any] | None = None
    error: str | None = None


def train_all(runs: Sequence[Run], evaluations: int, jobs: int) -> Generator[Update, None, None]:
    """
    Train runs in parallel. A run that fails takes nothing with it; closing the iterator ends all of them.

    :param runs: what to train
    :param evaluations: number of evaluations of each
    :param jobs: number of runs at the same time
    :return: news of the runs, as they come, the last of each with a row or an error
    """
    waiting, updates = deque(runs), SimpleQueue()
    active: dict[Run, subprocess.Popen[str]] = {}
    try:
        for _ in range(min(jobs, len(runs))):
            _start(waiting.popleft(), evaluations, active, updates)
        while active:
            update: Update = updates.get()
            if update.row is not None or update.error is not None:
                del active[update.run]
                if waiting:
                    _start(waiting.popleft(), evaluations, active, updates)
            yield update
    finally:
        for process in active.values():
            process.kill()
        for process in active.values():
            process.wait()


def _start(run: Run, evaluations: int, active: dict[Run, subprocess.Popen[str]], updates: SimpleQueue) -> None:
    argument = {"settings": settings_of(run.config, run.environment), "seed": run.seed, "evaluations": evaluations}
    errors = tempfile.TemporaryFile("w+")
    process = subprocess.Popen(
        [sys.executable, "-m", "benchmarks.learning.training", json.dumps(argument)],
        stdout=subprocess.PIPE,
        stderr=errors,
        text=True,
        cwd=HERE.parent,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        start_new_session=True,  # Ctrl-C reaches this process only, which then ends its children.
    )
    active[run] = process
    Thread(target=_listen, args=(run, process, errors, updates), daemon=True).start()


def _listen(run: Run, process: subprocess.Popen[str], errors: Any, updates: SimpleQueue) -> None:
    row = None
    with errors, process:
        for line in process.stdout:
            message = json.loads(line)
            row = message.get("row")
            if row is None:
                updates.put(Update(run, message["steps"], message["return"]))
        if process.wait() == 0 and row is not None:
            *_, last = json.loads(row["curve"])
            updates.put(Update(run, row["committed_steps"], last[-1], row=row))
            return
        errors.seek(0)
        updates.put(Update(run, error=f"exit code {process.returncode}\n{errors.read()[-4000:]}"))
