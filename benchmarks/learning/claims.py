"""
Train tuned Hybrid GRPO, tuned PPO and their rivals on tasks that nothing was tuned on, each for as many processor seconds.

    python -m benchmarks.learning.claims --seconds 300 --seeds 5
    python -m benchmarks.learning.claims --seconds 900 --seeds 3 --tasks HalfCheetah-v5 Walker2d-v5
    python -m benchmarks.learning.claims --seconds 300 --report

Settings are those of ``tuned.json``, which ``python -m benchmarks.learning.tune --settings`` writes. Finished runs are rows of
``claims.csv`` and are not made again. Several processes may share the work by tasks or methods: each row is written at once.
"""

import argparse
import json
import sys
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch as th
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.vec_env import VecEnv

from benchmarks.learning.budgeted.claims.methods import PPO_VARIANTS, Method, methods_of
from benchmarks.learning.budgeted.claims.report import print_report
from benchmarks.learning.budgeted.claims.results import ClaimRow, Claims
from benchmarks.learning.budgeted.rows import append_row, provenance, read_rows
from benchmarks.learning.budgeted.tasks.families import CLAIM_TASKS, FAMILIES, RANDOM_RETURNS, make_envs
from benchmarks.learning.budgeted.training import Budget, train
from benchmarks.learning.budgeted.tuning.search_space import NOISE_TOGETHER, STAGGERED, Settings

FOLDER = Path(__file__).parents[1] / "results" / "claims"
TUNED = Path(__file__).parents[1] / "results" / "tuning" / "tuned.json"
# Evaluations are denser where curves are steeper.
EVALUATED_SHARES = tuple((i / 25) ** 2 for i in range(1, 25))


class Run(NamedTuple):
    """
    A training to make.

    :param family: name of the family of tasks
    :param task: environment id
    :param method: name of the method
    :param seed: its seed
    :param seconds: its processor seconds
    """

    family: str
    task: str
    method: str
    seed: int
    seconds: float


def family_of(task: str) -> str:
    """
    Find the family of a task.

    :param task: environment id
    :return: name of its family
    """
    known = {name: {*tasks, *(task.id for task in FAMILIES[name])} for name, tasks in CLAIM_TASKS.items()}
    return next(name for name, tasks in known.items() if task in tasks)


def missing_runs(
    done: Sequence[ClaimRow], tasks: Sequence[str], methods: Sequence[str] | None, seeds: int, seconds: float,
    tuned: Mapping[str, Any],
) -> Iterator[Run]:  # fmt: skip
    """
    List the runs to make, all of a seed before the next seed.

    :param done: finished runs
    :param tasks: environment ids
    :param methods: names of methods, all by default
    :param seeds: number of seeds
    :param seconds: processor seconds of each run
    :param tuned: tuned parameters by family and algorithm
    :return: those that are not finished
    """
    finished = {Run(row.family, row.task, row.method, row.seed, row.seconds) for row in done}
    for seed in range(seeds):
        for task in tasks:
            family = family_of(task)
            for method in methods_of(family, tuned[family]):
                run = Run(family, task, method, seed, seconds)
                if run not in finished and (methods is None or method in methods):
                    yield run


def make_run(run: Run, method: Method) -> ClaimRow:
    """
    Train and evaluate.

    :param run: what to train
    :param method: the method it names
    :return: the finished run
    """
    start, used = time.perf_counter(), method.settings

    def make_model(env: VecEnv) -> BaseAlgorithm:
        arguments = used.for_actions(env.action_space)
        return method.algorithm("MlpPolicy", env, seed=run.seed, device="cpu", **arguments)  # type: ignore[call-arg]

    env, eval_env = make_envs(run.task, used.n_envs, used.normalize, method.gamma, run.seed, used.staggered)
    due = [share * run.seconds for share in EVALUATED_SHARES]
    curve = train(make_model, env, Budget(eval_env, run.seconds, due, run.seed))
    wall_seconds = round(time.perf_counter() - start, 1)
    return ClaimRow(*run, curve.points, curve.error, settings_row(used), wall_seconds, provenance(curve.work_seconds))


def settings_row(settings: Settings) -> dict[str, Any]:
    """
    Write settings down as a row has them.

    :param settings: the settings
    :return: what a table can hold of them, equal for equal settings
    """
    row = {"n_envs": settings.n_envs, "normalize": settings.normalize, "arguments": _as_text(settings.arguments)}
    return row | {name: True for name in (NOISE_TOGETHER, STAGGERED) if getattr(settings, name)}


def _as_text(arguments: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value if isinstance(value, int | float | str | None) else str(value) for name, value in arguments.items()}


def main(argv: Sequence[str] | None = None) -> int:
    """
    Make the missing runs, or report.

    :param argv: arguments of the command line, ``sys.argv`` by default
    :return: exit code
    """
    every_task = [task for tasks in CLAIM_TASKS.values() for task in tasks]
    parser = argparse.ArgumentParser(prog="python -m benchmarks.learning.claims", description=__doc__.partition("\n\n")[0])
    parser.add_argument("--seconds", type=float, default=300.0, help="processor seconds of a run (%(default)s)")
    parser.add_argument("--seeds", type=int, default=0, help="number of seeds that each method shall have")
    parser.add_argument("--tasks", nargs="+", default=every_task, help="environment ids (default: all claim tasks)")
    parser.add_argument("--methods", nargs="+", help="default: all")
    parser.add_argument("--tuned", type=Path, default=TUNED, help="tuned settings (%(default)s)")
    parser.add_argument("--folder", type=Path, default=FOLDER, help="where claims.csv is (%(default)s)")
    parser.add_argument("--ours", default="hybrid_grpo", help="method that the others are compared with (%(default)s)")
    parser.add_argument("--report", action="store_true", help="print tables, and draw curves")
    parser.add_argument(
        "--figures", type=Path, help="what the files of the curves begin with (default: claims_SECONDS in the folder)"
    )
    options = parser.parse_args(argv)
    path = options.folder / "claims.csv"
    th.set_num_threads(1)
    warnings.simplefilter("ignore")
    if options.seeds:
        tuned = json.loads(options.tuned.read_text(encoding="utf-8"))
        done = read_rows(path, ClaimRow)
        runs = list(missing_runs(done, options.tasks, options.methods, options.seeds, options.seconds, tuned))
        methods = {(run.family, run.method): methods_of(run.family, tuned[run.family])[run.method] for run in runs}
        for (family, name), method in methods.items():
            rows = [row for row in done if (row.family, row.method, row.seconds) == (family, name, options.seconds)]
            if any(row.settings != settings_row(method.settings) for row in rows):
                parser.error(f"{path} has {name} with other settings than those of {options.tuned}.")
        for run in runs:
            row = make_run(run, methods[run.family, run.method])
            append_row(path, row)
            print(time.strftime("%H:%M:%S"), *run, *row.curve[-1][1:], row.error, flush=True)
    if options.report:
        rows = [row for row in read_rows(path, ClaimRow) if row.task in options.tasks]
        if options.methods:
            rows = [row for row in rows if row.method in options.methods]
        for method in {(row.family, row.method) for row in rows}:
            settings = [row.settings for row in rows if (row.family, row.method) == method and row.seconds == options.seconds]
            if any(each != settings[0] for each in settings):
                parser.error(f"{path} has {method[1]} with several settings: what was made before a later tuning has to go.")
        claims = Claims(rows, options.seconds, PPO_VARIANTS, RANDOM_RETURNS)
        print_report(claims, options.ours, options.figures or options.folder / f"claims_{options.seconds:g}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
