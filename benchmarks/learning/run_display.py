"""Progress of learning runs: bars in a terminal, and a line per finished run anywhere."""

import time
from collections.abc import Sequence
from datetime import timedelta
from types import TracebackType

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn

from benchmarks.learning.experiments import Run
from benchmarks.learning.run_pool import Update


class Display:
    """
    Shows how runs get on and how long they will take, judged by the committed steps done so far.

    :param runs: what is to be done
    :param console: where to show it
    """

    def __init__(self, runs: Sequence[Run], console: Console) -> None:
        self.failures: list[str] = []
        self._console = console
        self._steps = dict.fromkeys(runs, 0)
        self._done: set[Run] = set()
        self._total = sum(run.environment.steps for run in runs)
        self._start = time.monotonic()
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[news]}"))
        self._progress = Progress(*columns, console=console, disable=not console.is_terminal)
        self._overall = self._progress.add_task("all runs", total=len(runs), news="")
        self._bars: dict[Run, TaskID] = {}

    def __enter__(self) -> "Display":
        self._progress.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        self._progress.stop()

    def show(self, update: Update) -> None:
        """
        Show news.

        :param update: news of a run
        """
        run = update.run
        steps = run.environment.steps
        if run not in self._bars:
            self._bars[run] = self._progress.add_task(escape(run.name), total=steps, news="")
        news = "" if update.last_return is None else f"return {update.last_return:.1f}"
        finished = update.row is not None or update.error is not None
        self._steps[run] = steps if finished else min(update.steps, steps)
        self._progress.update(self._bars[run], completed=self._steps[run], news=news)
        self._progress.update(self._overall, completed=len(self._done), news=self._remaining())
        if not finished:
            return
        self._done.add(run)
        self._progress.remove_task(self._bars[run])
        self._progress.update(self._overall, completed=len(self._done))
        count = f"{len(self._done)}/{len(self._steps)} {escape(run.name)}"
        if update.row is not None:
            seconds = update.row["training_seconds"]
            self._console.print(f"{count}: {news} after {seconds:.0f} s of training; {self._remaining()}")
        else:
            self.failures.append(run.name)
            self._console.print(f"{count} failed: {escape(str(update.error))}")

    def _remaining(self) -> str:
        done = sum(self._steps.values())
        if not done:
            return ""
        seconds = (time.monotonic() - self._start) * (self._total - done) / done
        return f"about {timedelta(seconds=round(seconds))} left"
