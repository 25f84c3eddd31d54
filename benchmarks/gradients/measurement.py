"""Measures all estimators at one policy."""

import argparse
import hashlib
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np

from benchmarks.gradients.estimators import Estimator, all_estimators
from benchmarks.gradients.frozen_policy import AllSamplings, FrozenPolicy
from benchmarks.gradients.reference import Reference, measure_reference
from benchmarks.gradients.rollouts import Rollout
from benchmarks.gradients.statistics import (
    advantage_variance,
    averages,
    cosines_at_equal_cost,
    gradient_statistics,
    variance_decomposition,
)

REFERENCE_OPTIONS = (
    *("seed", "split_half", "reference_horizons", "reference_samples"),
    *("reference_fraction", "reference_states", "reference_limit"),
)


def reference_of(checkpoint: Path, environment: str, options: argparse.Namespace) -> Reference:
    """
    Measure the reference gradient of a policy, on states of its own, or find it in ``options.policies``.

    :param checkpoint: the policy
    :param environment: environment id
    :param options: the command line's options
    :return: the reference
    """

    settings = {name: value for name, value in vars(options).items() if name in REFERENCE_OPTIONS}
    digest = hashlib.sha256(checkpoint.read_bytes() + repr((environment, settings)).encode()).hexdigest()[:12]
    file = options.policies / f"{checkpoint.stem}-reference-{digest}.npz"
    if file.exists():
        return Reference.load(file)

    def make_model(horizon: int) -> FrozenPolicy:
        return FrozenPolicy(
            checkpoint,
            environment,
            options.reference_states,
            seed=options.seed + 1000 + horizon,
            n_samples=options.reference_samples,
            sampling="best",
            advantage="per_action",
            branch_horizon=horizon,
            branch_fraction=options.reference_fraction,
        )

    reference = measure_reference(make_model, options.reference_horizons, options.split_half, options.reference_limit)
    reference.save(file)
    return reference


class Batches:
    """
    Evaluates estimators on each batch.

    :param estimators: the estimators
    :param max_samples: number of independent samples of the batches
    """

    def __init__(self, estimators: Sequence[Estimator], max_samples: int) -> None:
        self.estimators = estimators
        self.gradients: dict[Estimator, list[np.ndarray]] = {estimator: [] for estimator in estimators}
        self.rows: dict[Estimator, list[dict[str, float]]] = {estimator: [] for estimator in estimators}
        self._max_samples = max_samples

    def take(self, rollout: Rollout, model: FrozenPolicy) -> None:
        """
        Evaluate a batch.

        :param rollout: the batch
        :param model: the model that collected it
        """
        for estimator in self.estimators:
            columns = model.samplings.columns(estimator.action_sampling, estimator.n_samples)
            horizon = estimator.branch_horizon
            advantages = estimator.advantages(estimator.group(rollout, columns))
            estimates = rollout.estimates(horizon, estimator.branch_lambda)[..., : self._max_samples]
            row = {
                "simulator_steps": rollout.simulator_steps(columns, horizon),
                "advantage_variance": advantage_variance(advantages),
                **variance_decomposition(estimates),
            }
            self.gradients[estimator].append(rollout.gradient(advantages, columns))
            self.rows[estimator].append(row)


def rollout_seconds(
    checkpoint: Path, environment: str, options: argparse.Namespace, n_samples: int, horizon: int, repetitions: int = 3
) -> float:
    """
    Measure the processor time of a batch as ``HybridGRPO`` collects it.

    :param checkpoint: the policy
    :param environment: environment id
    :param options: the command line's options
    :param n_samples: number of actions N
    :param horizon: number of steps per branch K
    :param repetitions: number of short rollouts, after one to warm up, whose median counts
    :return: seconds for ``options.batch_states`` committed steps
    """
    n_steps = options.timing_states
    model = FrozenPolicy(checkpoint, environment, n_steps, options.seed, n_samples, branch_horizon=horizon)
    seconds = []
    for _ in range(1 + repetitions):
        start = time.process_time()
        model.roll_out(1, lambda rollout: None)
        seconds.append(time.process_time() - start)
    return float(np.median(seconds[1:])) * options.batch_states / n_steps


def possible_estimators(environment: str, options: argparse.Namespace) -> list[Estimator]:
    """
    List the estimators to compare.

    :param environment: environment id
    :param options: the command line's options
    :return: those that the actions of the environment allow, PPO's first
    """
    samplings = AllSamplings(max(options.n_samples), gym.make(environment).action_space)
    names = ("estimators", "n_samples", "horizons", "branch_lambdas", "gae_lambdas", "tail_lambdas", "samplings")
    estimators = all_estimators(*(getattr(options, name) for name in names))
    return [each for each in estimators if samplings.columns(each.action_sampling, each.n_samples) is not None]


def measure(
    checkpoint: Path, environment: str, options: argparse.Namespace, estimators: Sequence[Estimator]
) -> Iterator[dict[str, Any]]:
    """
    Measure estimators at a policy.

    :param checkpoint: the policy
    :param environment: environment id
    :param options: the command line's options
    :param estimators: the estimators
    :return: a row per estimator
    """
    reference = reference_of(checkpoint, environment, options)
    print(
        f"{environment}, {checkpoint.stem}: reference from {reference.simulator_steps} simulator steps; cosine of its halves"
    )
    print(*(f"{half:.3f} at {horizon} steps" for horizon, half in reference.all_split_halves.items()), sep=", ", flush=True)

    batches = Batches(estimators, max(options.n_samples))
    model = FrozenPolicy(
        checkpoint,
        environment,
        options.batch_states,
        seed=options.seed + 1,
        n_samples=max(options.n_samples),
        sampling="all",
        branch_horizon=max(options.horizons),
    )
    model.roll_out(options.n_batches, lambda rollout: batches.take(rollout, model))

    shapes = {(1, 1), *((estimator.n_samples, estimator.branch_horizon) for estimator in estimators)}
    seconds = {shape: rollout_seconds(checkpoint, environment, options, *shape) for shape in sorted(shapes)}
    ppo_costs = {"simulator_steps": options.batch_states, "seconds": seconds[1, 1]}
    longest = max(reference.all_split_halves)
    for estimator, rows in batches.rows.items():
        gradients, averaged = np.stack(batches.gradients[estimator]), averages(rows)
        shape = (estimator.n_samples, estimator.branch_horizon)
        costs = {"simulator_steps": averaged["simulator_steps"], "seconds": seconds[shape]}
        yield {
            **estimator._asdict(),
            **gradient_statistics(gradients, reference.gradient),
            "committed_steps": options.batch_states,
            **costs,
            **cosines_at_equal_cost(gradients, reference.gradient, costs, ppo_costs),
            **averaged,
            "reference_horizon": reference.horizon,
            "reference_split_half": reference.split_half,
            "reference_ceiling": reference.ceiling,
            "longest_horizon": longest,
            "longest_split_half": reference.all_split_halves[longest],
        }
