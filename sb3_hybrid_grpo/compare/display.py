"""Live progress of the runs in a terminal; one line per run where there is none."""

import time
from collections.abc import Iterable, Mapping
from datetime import timedelta

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn

from sb3_hybrid_grpo.compare.pool import JobT, State, Update


def follow(updates: Iterable[Update[JobT]], steps: Mapping[JobT, int], console: Console) -> dict[JobT, str]:
    """
    Show the progress of runs until all are over, and how long they will take, judged by the committed steps done so far.

    :param updates: news of the runs
    :param steps: committed steps of each run
    :param console: where to show it
    :return: why runs failed
    """
    failures: dict[JobT, str] = {}
    bars: dict[JobT, TaskID] = {}
    done = dict.fromkeys(steps, 0)
    over = 0
    start = time.monotonic()

    def remaining() -> str:
        share = sum(done.values()) / sum(steps.values())
        seconds = (time.monotonic() - start) * (1 / share - 1) if share else 0
        return f"about {timedelta(seconds=round(seconds))} left" if seconds else ""

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[news]}"))
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        overall = progress.add_task("runs", total=len(steps), news="")
        for update in updates:
            run = update.run
            if run not in bars:
                bars[run] = progress.add_task(escape(run.name), total=steps[run], news="")
            is_over = update.state is not State.RUNNING
            done[run] = steps[run] if is_over else min(update.steps, steps[run])
            over += is_over
            news = "" if update.last_return is None else f"return {update.last_return:.1f}"
            progress.update(bars[run], completed=done[run], news=news)
            progress.update(overall, completed=over, news=remaining())
            if not is_over:
                continue
            progress.remove_task(bars[run])
            line = f"{over}/{len(steps)} {escape(run.name)}"
            if update.state is State.FINISHED:
                line += f" finished: {news} after {update.steps:,} steps; {remaining()}"
            else:
                failures[run] = update.error
                line += f" [red]failed:[/red] {escape(update.error)}"
            progress.console.print(line.removesuffix("; "), highlight=False, soft_wrap=True)
    return failures
