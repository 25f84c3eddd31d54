"""
Is the variance of Hybrid GRPO's advantages lower than PPO's, and is its gradient any better for it?

    python -m benchmarks.gradients.advantage_variance

At policies that SB3's PPO reaches after some committed steps, all estimators get the same batches. Rows go to
``benchmarks/results/advantage_variance.csv``, and ``python -m benchmarks.learning.report`` puts them into ``RESULTS.md``;
those that are there already are skipped.
"""

import argparse
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch as th

from benchmarks import HERE
from benchmarks.gradients.estimators import Estimator
from benchmarks.gradients.frozen_policy import FrozenPolicy, saved_policy
from benchmarks.gradients.measurement import Batches
from benchmarks.gradients.quality import append_rows, estimator_of, matching
from benchmarks.gradients.reference import cosine
from benchmarks.gradients.statistics import averages
from benchmarks.provenance import provenance
from sb3_hybrid_grpo.compare.csv_files import Row, read_rows

RESULTS = HERE / "results" / "advantage_variance.csv"
ESTIMATORS = {
    "PPO's GAE(0.95)": Estimator("gae", gae_lambda=0.95),
    **{f"paper's average, N = {n}": Estimator("averaged", n) for n in (2, 4, 8)},
    "GRPO, N = 8": Estimator("group_normalized", 8),
    **{f"per action, N = {n}, K = 1": Estimator("per_action", n) for n in (2, 8)},
    **{f"per action, N = {n}, K = 8": Estimator("per_action", n, 8) for n in (2, 8)},
}
"""Estimators by name, PPO's first. The last but one is what the class does by default."""

PPO = next(iter(ESTIMATORS))
COLUMNS = ("advantage_variance", "agreement", "within_state_variance", "between_state_variance")


def main(argv: Sequence[str] | None = None) -> None:
    """
    Measure and write the rows.

    :param argv: arguments of the command line, those of the process if ``None``
    """
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--envs", nargs="+", default=["CartPole-v1", "Pendulum-v1", "HalfCheetah-v5", "Hopper-v5"])
    parser.add_argument("--stage", type=int, default=20_000, help="PPO's committed steps")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--n-batches", type=int, default=8)
    parser.add_argument("--batch-states", type=int, default=2048)
    parser.add_argument("--policies", type=Path, default=Path("results/policies"), help="folder where PPO's policies are kept")
    parser.add_argument("--output", type=Path, default=RESULTS, help="CSV file of rows")
    options = parser.parse_args(argv)
    th.set_num_threads(1)
    for seed in range(options.seeds):
        for environment in options.envs:
            key = {"environment": environment, "stage": str(options.stage), "seed": str(seed)}
            if not matching(read_rows(options.output), key):
                checkpoint = saved_policy(environment, options.stage, seed, options.policies)
                rows = measure(checkpoint, environment, seed, options.n_batches, options.batch_states)
                append_rows(options.output, [key | row | provenance() for row in rows])
                print(f"{environment}, seed {seed}", flush=True)


def measure(checkpoint: Path, environment: str, seed: int, n_batches: int, batch_states: int) -> Iterator[dict[str, Any]]:
    """
    Measure all estimators at a policy.

    :param checkpoint: the policy
    :param environment: environment id
    :param seed: seed of the batches
    :param n_batches: number of batches
    :param batch_states: their states
    :return: a row per estimator
    """
    estimators = list(ESTIMATORS.values())
    batches = Batches(estimators, max(estimator.n_samples for estimator in estimators))
    model = FrozenPolicy(
        checkpoint,
        environment,
        batch_states,
        seed=seed + 1,
        n_samples=max(estimator.n_samples for estimator in estimators),
        sampling="all",
        branch_horizon=max(estimator.branch_horizon for estimator in estimators),
    )
    model.roll_out(n_batches, lambda rollout: batches.take(rollout, model))
    for estimator in estimators:
        gradients = batches.gradients[estimator]
        yield {
            **estimator._asdict(),
            "n_batches": n_batches,
            "committed_steps": batch_states,
            "agreement": agreement(gradients),
            **averages(batches.rows[estimator]),
        }


def agreement(gradients: Sequence[np.ndarray]) -> float:
    """
    Tell how alike the gradients of independent batches are.

    mean_{i≠j} cos(gᵢ, gⱼ) ≈ S² / (S² + tr Var(g)),    S = |E[g]|

    :param gradients: gradients, each [P]
    :return: 1 without noise, 0 without signal
    """
    pairs = [(a, b) for i, a in enumerate(gradients) for b in gradients[:i]]
    return float(np.mean([cosine(a, b) for a, b in pairs]))


def table(rows: Sequence[Row], cells: Callable[[np.ndarray], Sequence[str]]) -> Iterator[list[str]]:
    """
    Summarise rows.

    :param rows: the rows
    :param cells: writes columns of numbers, [seeds, columns]
    :return: lines of environment, estimator, variance of the advantages over PPO's on the same data, agreement, and the share
        of the estimates' variance that depends on the action
    """
    for environment in dict.fromkeys(row["environment"] for row in rows):
        ppo_variance, *_ = _columns(rows, environment, PPO)
        numbers: list[np.ndarray] = []
        for name in ESTIMATORS:
            variance, agreements, within, between = _columns(rows, environment, name)
            numbers += [variance / ppo_variance, agreements, within / (within + between)]
        texts = iter(cells(np.stack(numbers, axis=1)))
        for name in ESTIMATORS:
            yield [environment, name, next(texts), next(texts), next(texts)]


def _columns(rows: Sequence[Row], environment: str, name: str) -> np.ndarray:
    """Return ``COLUMNS`` of an estimator, by seed."""
    wanted = estimator_of(ESTIMATORS[name]._asdict())
    found = [row for row in rows if row["environment"] == environment and estimator_of(row) == wanted]
    found.sort(key=lambda row: int(row["seed"]))
    return np.array([[float(row[column]) for row in found] for column in COLUMNS])


if __name__ == "__main__":
    main()
