"""Command line of the main job."""

import argparse
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import replace
from functools import partial
from pathlib import Path

import gymnasium as gym

from sb3_hybrid_grpo.branching.functional import is_functional_id, make_functional_env
from sb3_hybrid_grpo.branching.vec_env import ENGINES
from sb3_hybrid_grpo.compare.extras import extra
from sb3_hybrid_grpo.compare.folder import ResultsFolder
from sb3_hybrid_grpo.compare.pool import Report, Update, run_all
from sb3_hybrid_grpo.compare.run_log import printing_to, warnings_in
from sb3_hybrid_grpo.compare.settings import ALGORITHMS, HYPERPARAM_DEFAULTS, ZOO_HYPERPARAMS, Run, Settings, parse_hyperparam
from sb3_hybrid_grpo.compare.training import Evaluation, train

_INTERRUPTED = 130


def main(argv: Sequence[str] | None = None) -> int:
    """
    Train, compare and report.

    :param argv: arguments of the command line, ``sys.argv`` by default
    :return: exit code: 0 if every run finished, 1 if any failed, 130 after Ctrl-C
    """
    parser = _parser()
    arguments = parser.parse_args(argv)
    with extra(parser, "sb3-hybrid-grpo[main]", ("matplotlib", "rich")):
        from rich.console import Console
        from rich.markup import escape

        from sb3_hybrid_grpo.compare import display, report
    try:
        settings = _settings(arguments)
        runs = [Run(algo, seed) for seed in range(arguments.seeds) for algo in _algorithms(arguments.algos)]
        folder = ResultsFolder(arguments.out or Path("results", re.sub(r"\W", "-", settings.env)), settings)
    except (ValueError, ImportError, OSError, gym.error.Error) as error:
        parser.error(str(error))

    console = Console(highlight=False)
    todo = [run for run in runs if not folder.is_finished(run)]
    finished = len(runs) - len(todo)
    console.print(f"{len(todo)} runs to do, {finished} finished before. Results: {escape(str(folder.path))}", soft_wrap=True)
    failures: dict[Run, str] = {}
    interrupted = False
    try:
        with closing(run_all(todo, partial(_train, settings, folder), _jobs(arguments))) as updates:
            failures = display.follow(_with_tracebacks(updates, folder), dict.fromkeys(todo, settings.timesteps), console)
    except KeyboardInterrupt:
        interrupted = True
        console.print("Interrupted. Finished runs are kept, and the same command goes on with the others.")
    evaluations = folder.collect()
    if evaluations:
        curves = report.curves_by_algorithm(evaluations, is_by_clock=settings.engine is not None)
        report.draw_curves(curves, settings.env).savefig(folder.path / "curves.png", dpi=150)
        console.print(report.summary_table(curves, settings.env, _notes(evaluations, folder)))
    if failures:
        console.print(f"[red]{len(failures)} of {len(todo)} runs failed:[/red] {', '.join(run.name for run in failures)}")
    return _INTERRUPTED if interrupted else int(bool(failures))


def _train(settings: Settings, folder: ResultsFolder, run: Run, report: Report) -> None:
    with printing_to(folder.log(run)):
        model, evaluations = train(settings, run, report)
    folder.save(run, model, evaluations)


def _notes(evaluations: Sequence[Evaluation], folder: ResultsFolder) -> list[str]:
    """Return a line for each algorithm whose runs have warned."""
    notes = []
    for algo in ALGORITHMS:
        runs = {Run(algo, point.seed) for point in evaluations if point.algo == algo}
        warned = [found for run in sorted(runs) if (found := warnings_in(folder.log(run)))]
        if warned:
            cause = warned[0][0].partition(": ")[0]
            notes.append(f"{algo}: {len(warned)} of {len(runs)} runs warned ({cause}); see {folder.log(Run(algo, 0)).parent}")
    return notes


def _with_tracebacks(updates: Iterable[Update[Run]], folder: ResultsFolder) -> Iterator[Update[Run]]:
    for update in updates:
        if not update.traceback:
            yield update
            continue
        path = folder.traceback(update.run)
        path.write_text(update.traceback, encoding="utf-8")
        yield replace(update, error=f"{update.error} (traceback: {path})")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m sb3_hybrid_grpo",
        usage="%(prog)s [OPTION ...]",
        description="Train several algorithms with identical hyperparameters on one environment and compare them. "
        "Rerunning into the same folder trains only what is missing there.",
    )
    add = parser.add_argument_group("what is compared").add_argument
    add("--env", metavar="ID", default="HalfCheetah-v5", help="also gymnax:, brax:, jumanji: or pgx:ID (default: %(default)s)")
    add("--algos", metavar="LIST", default="hybrid_grpo,ppo", help=f"of {', '.join(ALGORITHMS)} (default: %(default)s)")
    add("--seeds", metavar="N", type=_positive, default=3, help="runs per algorithm (default: %(default)s)")
    add("--n-samples", metavar="N", type=_positive, help="actions per state (default: the algorithm's own)")
    add("--n-envs", metavar="N", type=_positive, help="environments of a run (default: the Zoo's, else 1)")
    add(
        "--hyperparams",
        nargs="+",
        default=[],
        metavar="KEY=VALUE",
        help=f"for all algorithms alike: {', '.join(HYPERPARAM_DEFAULTS)}. Default: the RL Zoo's settings of PPO "
        f"for {', '.join(ZOO_HYPERPARAMS)}, else PPO's own defaults",
    )
    add = parser.add_argument_group("how long").add_argument
    add("--timesteps", metavar="N", type=_positive, default=30_000, help="committed steps per run (default: %(default)s)")
    add("--eval-every", metavar="N", type=_positive, help="steps between evaluations (default: timesteps / 10)")
    add("--eval-episodes", metavar="N", type=_positive, default=5, help="episodes per evaluation (default: %(default)s)")
    add = parser.add_argument_group("where").add_argument
    add("--out", metavar="PATH", type=Path, help="folder for the results (default: results/ENV)")
    add("--jobs", metavar="N", type=_positive, help="runs at a time (default: one per core, one with workers)")
    add("--engine", choices=ENGINES, help="workers of a run: processes, or actors of Ray (default: none, its own process)")
    add("--workers", metavar="N", type=_positive, help="number of workers of a run (default: one per core)")
    add("--device", default="cpu", help="device to train on (default: %(default)s)")
    return parser


def _jobs(arguments: argparse.Namespace) -> int:
    has_workers = arguments.engine is not None or arguments.workers is not None
    jobs: int = arguments.jobs or (1 if has_workers else os.cpu_count() or 1)
    return jobs


def _settings(arguments: argparse.Namespace) -> Settings:
    # What this prints comes again, in the log of each run.
    with printing_to(Path(os.devnull)):
        if is_functional_id(arguments.env):
            make_functional_env(arguments.env)
        else:
            gym.make(arguments.env).close()
    chosen = {} if arguments.n_envs is None else {"n_envs": arguments.n_envs}
    return Settings(
        env=arguments.env,
        timesteps=arguments.timesteps,
        n_samples=arguments.n_samples,
        hyperparams={**ZOO_HYPERPARAMS.get(arguments.env, {}), **dict(map(parse_hyperparam, arguments.hyperparams)), **chosen},
        eval_every=arguments.eval_every or max(arguments.timesteps // 10, 1),
        eval_episodes=arguments.eval_episodes,
        device=arguments.device,
        engine=arguments.engine or (None if arguments.workers is None else "process"),
        workers=arguments.workers,
    )


def _algorithms(text: str) -> list[str]:
    algos = list(dict.fromkeys(text.split(",")))
    unknown = [algo for algo in algos if algo not in ALGORITHMS]
    if unknown:
        raise ValueError(f"unknown algorithms: {', '.join(map(repr, unknown))}; valid ones: {', '.join(ALGORITHMS)}")
    return algos


def _positive(text: str) -> int:
    try:
        value = int(text)
    except ValueError:
        value = 0
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a positive integer")
    return value
