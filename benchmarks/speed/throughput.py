"""
Training speed of HybridGRPO beside SB3's PPO and sb3-contrib's TRPO, all with PPO's default hyperparameters.

    python -m benchmarks.speed.throughput [--envs HalfCheetah-v5 --n-samples 1 4 8 --n-envs 1]
    python -m benchmarks.speed.throughput --profile HalfCheetah-v5

For each environment and number of environments in turn: PPO, then the other algorithms and each N, in a process and a thread
each. Every one of them makes a pair with that PPO; in every other repetition their order is reversed. A row per run goes to
``benchmarks/results/throughput.csv``; ``ratio_to_ppo`` is its time per committed step over that of its pair's PPO,
``cpu_ratio_to_ppo`` that of the processor in the process itself, which other processes on the same machine disturb less, but
which leaves workers and forks out. Runs whose rows are there already are not repeated. With N = 1 nothing is branched, and
options of branches are passed over. ``--profile`` tells where the time goes in one environment: it writes ``profile.csv``
and ``profile.png`` beside the rows.
"""

import argparse
import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import gymnasium as gym

from benchmarks import HERE
from benchmarks.provenance import provenance
from benchmarks.speed.throughput_report import print_table, write_profile
from benchmarks.speed.timed_run import ALGORITHMS, VEC_ENVS, Run
from sb3_hybrid_grpo.branching.choice import BRANCHER_NAMES
from sb3_hybrid_grpo.compare.csv_files import Row, append_row, read_rows

RESULTS = HERE / "results" / "throughput.csv"
RATIOS = {"seconds": "ratio_to_ppo", "cpu_seconds": "cpu_ratio_to_ppo"}
ENVIRONMENTS = ["CartPole-v1", "Pendulum-v1", "HalfCheetah-v5", "Hopper-v5", "Humanoid-v5", "ALE/Pong-v5"]

with contextlib.suppress(ImportError):
    import ale_py

    gym.register_envs(ale_py)


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """
    Read the command line.

    :param argv: its arguments, those of the process if ``None``
    :return: the options
    """
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--envs", nargs="+", default=ENVIRONMENTS)
    parser.add_argument("--n-samples", nargs="+", type=int, default=[1, 2, 4, 8, 16], help="numbers N of actions per state")
    parser.add_argument("--n-envs", nargs="+", type=int, default=[1, 4, 8])
    parser.add_argument("--algorithms", nargs="+", choices=ALGORITHMS, default=list(ALGORITHMS))
    parser.add_argument("--pairs", type=int, default=5, help="number of repetitions")
    parser.add_argument("--iterations", type=int, default=4, help="rollouts and updates timed per run")
    parser.add_argument("--warm-up", type=int, default=1, help="rollouts and updates before them (default: %(default)s)")
    parser.add_argument("--n-steps", type=int, default=2048)
    parser.add_argument("--vec-env", choices=VEC_ENVS, default="dummy")
    parser.add_argument("--branch-horizon", type=int, default=1)
    parser.add_argument("--branch-fraction", type=_fraction, default=1.0, help="a number, or auto (default: %(default)s)")
    parser.add_argument("--brancher", choices=(*BRANCHER_NAMES, "learned"), default="auto")
    parser.add_argument("--device", default="cpu", help="PyTorch's device (default: cpu)")
    parser.add_argument("--output", type=Path, default=RESULTS, help="CSV file of rows")
    parser.add_argument("--restart", action="store_true", help="throw the rows in it away")
    parser.add_argument("--profile", metavar="ENV", help="only this environment, with the first of --n-envs, beside PPO")
    options = parser.parse_args(argv)
    if options.profile:
        options.envs, options.n_envs, options.algorithms = [options.profile], options.n_envs[:1], ["ppo", "hybrid_grpo"]
    return options


def _fraction(text: str) -> float | str:
    return text if text == "auto" else float(text)


def rounds(options: argparse.Namespace) -> Iterator[list[Run]]:
    """
    List what is to be timed.

    :param options: the command line's options
    :return: the runs of each repetition with each environment and number of environments, that of PPO first
    """
    branched = {name: getattr(options, name) for name in ("branch_horizon", "branch_fraction", "brancher")}
    for environment in filter(is_installed, options.envs):
        for n_envs in options.n_envs:
            for pair in range(options.pairs):
                setting = (environment, n_envs, options.vec_env, options.n_steps, options.iterations, pair)
                run_of = partial(Run, *setting, device=options.device, warm_up=options.warm_up)
                others = [run_of(algorithm="trpo")]
                others += [
                    run_of(algorithm="hybrid_grpo", n_samples=n, **(branched if n > 1 else {})) for n in options.n_samples
                ]
                runs = [run_of(algorithm="ppo"), *(others if pair % 2 == 0 else reversed(others))]
                yield [run for run in runs if run.algorithm in options.algorithms]


def is_installed(env_id: str) -> bool:
    """
    Tell whether there is an environment, and say so if there is not.

    :param env_id: its id
    :return: whether it is known to Gymnasium
    """
    try:
        gym.spec(env_id)
    except gym.error.Error:
        print(f"{env_id}: not installed")
        return False
    return True


def time_round(runs: Sequence[Run], done: Iterable[Row]) -> Iterator[Row]:
    """
    Do the runs of a repetition. If any is missing PPO runs anew: the two runs of a pair are made one after the other.

    :param runs: the runs, that of PPO first
    :param done: the rows of finished runs
    :return: a row per run as it ends
    """
    missing = [run for run in runs if not any(run.columns().items() <= row.items() for row in done)]
    reference: dict[str, float] = {}
    for run in runs:
        if run not in missing and not (missing and run.algorithm == "ppo"):
            continue
        measured = time_apart(run)
        per_step = {name: measured[name] / measured["committed_steps"] for name in RATIOS}
        if run.algorithm == "ppo":
            reference = per_step
        measured |= {ratio: per_step[name] / reference[name] if reference else None for name, ratio in RATIOS.items()}
        yield run.columns() | {name: "" if number is None else f"{number:.7g}" for name, number in measured.items()}


def time_apart(run: Run) -> dict[str, Any]:
    """
    Time a run in a process of its own.

    :param run: the run
    :return: its measurements
    """
    process = subprocess.run(
        [sys.executable, "-m", "benchmarks.speed.timed_run", json.dumps(run._asdict())],
        stdout=subprocess.PIPE,
        text=True,
        check=True,
        cwd=HERE.parent,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    return json.loads(process.stdout.splitlines()[-1])


def main(argv: Sequence[str] | None = None) -> None:
    """
    Measure, print and write the rows.

    :param argv: arguments of the command line
    """
    options = parse(argv)
    if options.restart:
        options.output.unlink(missing_ok=True)
    done, origin = read_rows(options.output), provenance()
    if done:
        commits = ", ".join(sorted({row["commit"] for row in done}))
        print(f"{options.output} has {len(done)} rows, of commit {commits}; --restart measures anew")
    all_runs, failed = [], False
    for runs in rounds(options):
        all_runs += runs
        try:
            for row in time_round(runs, done):
                append_row(options.output, row | origin)
                names = ("environment", "n_envs", "algorithm", "n_samples", "pair", "seconds", *RATIOS.values())
                print(*(f"{name}={row[name]}" for name in names), flush=True)
        except subprocess.CalledProcessError as error:
            print(f"failed with exit code {error.returncode}: {error.cmd[-1]}", flush=True)
            failed = True
    rows = read_rows(options.output)
    if options.profile:
        write_profile(all_runs, rows, options.output.parent)
    else:
        print_table(all_runs, rows)
    sys.exit(failed)


if __name__ == "__main__":
    main()
