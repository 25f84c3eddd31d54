"""
How good are estimators of the policy gradient?

    python -m benchmarks.gradients.quality --envs Hopper-v5 --stages 20000 60000 --n-batches 20 --batch-states 2048
    python -m benchmarks.gradients.quality --envs Hopper-v5 --checkpoints model.zip

At policies that SB3's PPO reaches after some committed steps, or of checkpoints, gradients of single batches are compared with
a reference: the gradient of long branches that share all random numbers, whose halves agree (see ``reference``). All
estimators get the same batches. Rows go to ``benchmarks/results/gradient_quality.csv``, those of a policy at once; estimators
whose rows are there already are skipped, and the references are kept with the policies. ``seconds`` are processor time of a
rollout, update excluded; for the other columns see ``statistics``. New estimators: add a function to
``estimators.IDEAS``.
"""

import argparse
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch as th

from benchmarks import HERE
from benchmarks.gradients.estimators import IDEAS, Estimator
from benchmarks.gradients.frozen_policy import saved_policy
from benchmarks.gradients.measurement import measure, possible_estimators
from benchmarks.gradients.report import print_best
from benchmarks.provenance import provenance
from sb3_hybrid_grpo.compare.csv_files import Row, read_rows, write_rows

RESULTS = HERE / "results" / "gradient_quality.csv"


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """
    Read the command line.

    :param argv: its arguments, those of the process if ``None``
    :return: the options
    """
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--envs", nargs="+", default=["Hopper-v5", "HalfCheetah-v5"])
    parser.add_argument("--stages", nargs="*", type=int, default=[20_000, 60_000, 200_000], help="PPO's committed steps")
    parser.add_argument("--checkpoints", nargs="+", type=Path, help="instead of --stages: .zip files of PPO or HybridGRPO")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--n-batches", type=int, default=20)
    parser.add_argument("--batch-states", type=int, default=2048)
    parser.add_argument("--estimators", nargs="*", choices=list(IDEAS), default=list(IDEAS), help="PPO's GAE is always there")
    parser.add_argument("--n-samples", nargs="+", type=int, default=[2, 4, 8])
    parser.add_argument("--horizons", nargs="+", type=int, default=[1, 2, 4, 8], help="numbers K of steps per branch")
    parser.add_argument("--branch-lambdas", nargs="+", type=float, default=[0.8, 0.9, 1.0])
    parser.add_argument("--gae-lambdas", nargs="+", type=float, default=[0.0, 0.5, 0.8, 0.9, 0.95, 0.98, 1.0])
    parser.add_argument("--tail-lambdas", nargs="+", type=float, default=[0.8, 0.95], help="λ of GAE in the others' tails")
    parser.add_argument("--samplings", nargs="+", default=["iid", "antithetic", "enumerate"], help="left out where impossible")
    parser.add_argument("--timing-states", type=int, default=256, help="committed steps of each timed rollout")
    parser.add_argument("--reference-horizons", nargs="+", type=int, default=[150, 75, 40, 20])
    parser.add_argument("--reference-samples", type=int, default=8)
    parser.add_argument("--reference-fraction", type=float, default=0.1, help="share of states that have long branches")
    parser.add_argument("--reference-states", type=int, default=1024, help="committed steps of a rollout of the reference")
    parser.add_argument("--reference-limit", type=int, default=8_000_000, help="simulator steps")
    parser.add_argument("--split-half", type=float, default=0.95, help="cosine that the reference's halves must reach")
    parser.add_argument("--policies", type=Path, default=Path("results/policies"), help="folder where PPO's policies are kept")
    parser.add_argument("--output", type=Path, default=RESULTS, help="CSV file of rows")
    parser.add_argument("--top", type=int, default=10, help="number of rows to print by each criterion")
    return parser.parse_args(argv)


def policies(options: argparse.Namespace) -> Iterator[tuple[str, str, Path | None]]:
    """
    List the policies to measure at.

    :param options: the command line's options
    :return: environment id, name of the stage, and checkpoint if it was given
    """
    for environment in options.envs:
        for checkpoint in options.checkpoints or ():
            yield environment, checkpoint.stem, checkpoint
        for stage in () if options.checkpoints else options.stages:
            yield environment, str(stage), None


def main(argv: Sequence[str] | None = None) -> None:
    """
    Measure, print and write the rows.

    :param argv: arguments of the command line
    """
    options = parse(argv)
    th.set_num_threads(1)
    for environment, stage, checkpoint in policies(options):
        key = {"environment": environment, "stage": stage, "seed": str(options.seed)}
        done = {estimator_of(row) for row in matching(read_rows(options.output), key)}
        estimators = possible_estimators(environment, options)
        missing = [estimator for estimator in estimators if estimator_of(estimator._asdict()) not in done]
        if missing:
            path = checkpoint or saved_policy(environment, int(stage), options.seed, options.policies)
            measured, origin = measure(path, environment, options, missing), provenance()
            append_rows(options.output, [key | row | origin for row in measured])
        rows = matching(read_rows(options.output), key)
        print_best(rows, options.top)


def matching(rows: Sequence[Row], key: Row) -> list[Row]:
    """
    Select the rows of a policy.

    :param rows: rows of all policies
    :param key: columns that they share
    :return: those that have these columns
    """
    return [row for row in rows if key.items() <= row.items()]


def estimator_of(row: Mapping[str, Any]) -> tuple[str, ...]:
    """
    Return what tells the rows of a policy apart.

    :param row: a row
    :return: the cells of the estimator's columns
    """
    return tuple(text(row[name]) for name in Estimator._fields)


def text(value: Any) -> str:
    """
    Write a number as the CSV file has it.

    :param value: a number, a name or ``None``
    :return: seven significant digits
    """
    if value is None:
        return ""
    return f"{value:.7g}" if isinstance(value, float) else str(value)


def append_rows(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """
    Write the rows of a policy, all or none of them.

    :param path: a CSV file, made if there is none
    :param rows: the rows to append
    """
    texts = [{name: text(value) for name, value in row.items()} for row in rows]
    write_rows(path, list(rows[0]), [*read_rows(path), *texts])


if __name__ == "__main__":
    main()
