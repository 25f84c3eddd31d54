"""
Learning experiments, resumable.

    python -m benchmarks.learning.run --suite quick --jobs 2
    python -m benchmarks.learning.report

A row per configuration, environment and seed goes to ``benchmarks/results/learning/SUITE.csv`` when the run has finished.
A run whose row is there already, in any suite's file and with the same settings, is not repeated: interrupt it as you like,
and start it again. Seconds of several machines are compared through PPO's: rows of another machine need a commit of their own,
and there PPO's runs of ``benchmarks/speed/speed.json``, with one seed more than it has rows.
"""

import argparse
import json
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import replace
from functools import partial
from pathlib import Path

from benchmarks.learning.experiments import SUITES, Run, load_suite, runs_of, settings_of
from benchmarks.learning.rows import RESULTS, find_row, read_rows
from benchmarks.learning.training import train
from sb3_hybrid_grpo.compare.csv_files import append_row
from sb3_hybrid_grpo.compare.extras import extra
from sb3_hybrid_grpo.compare.pool import State, Update, run_all

_INTERRUPTED = 130


def main(argv: Sequence[str] | None = None) -> int:
    """
    Do what is missing of a suite.

    :param argv: arguments of the command line, ``sys.argv`` by default
    :return: exit code: 0 if every run has a row, 1 if any failed, 130 after Ctrl-C
    """
    parser = _parser()
    options = parser.parse_args(argv)
    with extra(parser, "sb3-hybrid-grpo[bench]", ["rich"]):
        from rich.console import Console

        from sb3_hybrid_grpo.compare.display import follow
    console = Console(highlight=False, soft_wrap=True)
    try:
        suite = load_suite(options.suite)
        chosen = [run for run in runs_of(suite, options.seeds) if _is_chosen(run, options)]
        rows = read_rows(options.output)
        missing = [run for run in chosen if find_row(run, rows) is None]
        todo = _without_twins(missing)
    except (OSError, ValueError, KeyError) as error:
        parser.error(str(error))
    for environment in suite.environments:
        if not environment.is_installed():
            console.print(f"{environment.name}: not installed, left out")
    console.print(f"{suite.name}: {len(todo)} runs to do, {len(chosen) - len(missing)} of {len(chosen)} have a row")

    steps = {run: run.environment.steps for run in todo}
    try:
        with closing(run_all(todo, partial(train, suite.evaluations), options.jobs)) as updates:
            failures = follow(_kept(updates, suite.name, options.output), steps, console)
    except KeyboardInterrupt:
        console.print("Interrupted. The same command goes on with what is missing.")
        return _INTERRUPTED
    if failures:
        console.print(f"{len(failures)} of {len(todo)} runs failed: {', '.join(run.name for run in failures)}")
    return int(bool(failures))


def _kept(updates: Iterable[Update[Run]], suite: str, folder: Path) -> Iterator[Update[Run]]:
    """Write the row of each run that has finished."""
    for update in updates:
        run = update.run
        if update.state is State.FINISHED:
            names = {"suite": suite, "config": run.config, "environment": run.environment.name, "seed": run.seed}
            append_row(folder / f"{suite}.csv", names | update.result)
        yield replace(update, error=f"{update.error}\n{update.traceback}")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.learning.run", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--suite", required=True, help=f"{', '.join(SUITES)}, or the path of a suite's file")
    parser.add_argument("--jobs", type=int, default=2, help="runs at the same time (default: %(default)s)")
    parser.add_argument("--seeds", type=int, default=5, help="runs per configuration and environment (default: %(default)s)")
    parser.add_argument("--envs", nargs="+", metavar="ID", help="only these environments")
    parser.add_argument("--configs", nargs="+", metavar="NAME", help="only these configurations")
    parser.add_argument("--output", type=Path, default=RESULTS, help="folder of the CSV files")
    return parser


def _is_chosen(run: Run, options: argparse.Namespace) -> bool:
    return (not options.envs or run.environment.id in options.envs) and (not options.configs or run.config in options.configs)


def _without_twins(runs: Sequence[Run]) -> list[Run]:
    """Leave out runs that differ from an earlier one by their configuration's name only."""
    unique = {(json.dumps(settings_of(run.config, run.environment), sort_keys=True), run.seed): run for run in reversed(runs)}
    return sorted(unique.values(), key=runs.index)


if __name__ == "__main__":
    raise SystemExit(main())
