"""Live progress of the runs in a terminal; one line per run where there is none."""

from collections.abc import Iterable

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from sb3_hybrid_grpo.compare.pool import State, Update
from sb3_hybrid_grpo.compare.settings import Run


def follow(updates: Iterable[Update], n_runs: int, timesteps: int, console: Console) -> dict[Run, str]:
    """
    Show the progress of runs until all are over.

    :param updates: news of the runs
    :param n_runs: how many runs there are
    :param timesteps: committed steps of each
    :param console: where to show it
    :return: why runs failed
    """
    failures: dict[Run, str] = {}
    bars: dict[Run, TaskID] = {}
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[news]}"),
    )
    with Progress(*columns, console=console) as progress:
        overall = progress.add_task("runs", total=n_runs, news="")
        for update in updates:
            run = update.run
            if run not in bars:
                bars[run] = progress.add_task(run.name, total=timesteps, news="")
            news = "" if update.last_return is None else f"return {update.last_return:.1f}"
            if update.state is State.RUNNING:
                progress.update(bars[run], completed=update.steps, news=news)
                continue
            progress.remove_task(bars[run])
            progress.advance(overall)
            if update.state is State.FINISHED:
                progress.console.print(f"{run.name} finished: {news} after {update.steps:,} steps", highlight=False)
            else:
                failures[run] = update.error
                progress.console.print(f"[red]{run.name} failed:[/red] {escape(update.error)}", highlight=False)
    return failures
