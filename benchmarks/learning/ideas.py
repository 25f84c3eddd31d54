"""
Try ideas on tuning tasks: what Hybrid GRPO has for its own, beside PPO, with the same settings for what both have.

    python -m benchmarks.learning.ideas --seeds 5
    python -m benchmarks.learning.ideas --report
    python -m benchmarks.learning.ideas --ideas natural natural_16 natural_16_linear --seeds 2 --seconds 60 \
        --tuned benchmarks/results/tuning_held --folder benchmarks/results/research_minutes \
        --tasks HalfCheetah-v5 Hopper-v5 Swimmer-v5 Pendulum-v1 InvertedPendulum-v5

The common settings are those that tuning has found for PPO, so that an idea has to earn its seconds in PPO's own regime.
Finished runs are rows of ``ideas.csv`` and are not made again.
"""

import argparse
import sys
import time
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch as th
from scipy.stats import trim_mean

from benchmarks.learning.budgeted.rows import append_row, provenance, read_rows
from benchmarks.learning.budgeted.tasks.families import FAMILIES, Task
from benchmarks.learning.budgeted.tuning.known_good import NATURAL_DISCRETE, NATURAL_HELD, TWO_ACTIONS, WITHOUT_BRANCHES
from benchmarks.learning.budgeted.tuning.trial import train_task
from benchmarks.learning.budgeted.tuning.trials import finished_trials, ranking, with_former_choices
from benchmarks.learning.tune import FOLDER, SECONDS

_SMALL = {"rollout": 64}
_LONG = {"rollout": 1024}
_BOUNDED = {"max_learning_rate": 1e-3}

IDEAS: Mapping[str, Mapping[str, Any]] = {
    "ppo": {},
    "n1": WITHOUT_BRANCHES,
    "n2_k2": TWO_ACTIONS,
    # Share of branched states
    "n2_k2_half": {**TWO_ACTIONS, "branch_fraction": 0.5},
    # Number of actions
    "n3_k2": {**TWO_ACTIONS, "n_samples": 3},
    "n4_k2": {**TWO_ACTIONS, "n_samples": 4},
    "n8_k2": {**TWO_ACTIONS, "n_samples": 8},
    "n16_k2": {**TWO_ACTIONS, "n_samples": 16},
    "n4_k4": {**TWO_ACTIONS, "n_samples": 4, "branch_horizon": 4, "tail_coef": 0.0},
    # Horizon
    "n2_k1": {**TWO_ACTIONS, "branch_horizon": 1},
    "n2_k4": {**TWO_ACTIONS, "branch_horizon": 4, "tail_coef": 0.0},
    "n2_k8_quarter": {**TWO_ACTIONS, "branch_horizon": 8, "tail_coef": 0.0, "branch_fraction": 0.25},
    "n4_k1_tail": {**WITHOUT_BRANCHES, "n_samples": 4},
    # The critic's and the actor's gradients
    "n4_k1_tail_limit": {**WITHOUT_BRANCHES, "n_samples": 4, "actor_limit": "0.5"},
    "n4_k1_tail_refit": {**WITHOUT_BRANCHES, "n_samples": 4, "refit_critic": True},
    # Length of rollouts, with PPO's as the control
    "ppo_small": _SMALL,
    "ppo_long": _LONG,
    "n2_k2_small": {**TWO_ACTIONS, **_SMALL},
    "n2_k2_long": {**TWO_ACTIONS, **_LONG},
    # Reward transforms
    "n2_k2_identity": {**TWO_ACTIONS, "reward_transform": "identity"},
    "n2_k2_tanh": {**TWO_ACTIONS, "reward_transform": "tanh"},
    "n2_k2_zscore": {**TWO_ACTIONS, "reward_transform": "zscore"},
    # The paper's form, its parts, and GRPO, which has no critic
    "paper": {**WITHOUT_BRANCHES, "n_samples": 4, "advantage": "averaged", "reward_transform": "tanh"},
    "paper_identity": {**WITHOUT_BRANCHES, "n_samples": 4, "advantage": "averaged", "reward_transform": "identity"},
    "per_action": {**WITHOUT_BRANCHES, "n_samples": 4, "advantage": "per_action"},
    "grpo": {**WITHOUT_BRANCHES, "n_samples": 4, "advantage": "group_normalized", "variant": "GroupRelative"},
    # Exploration and choice of the committed action
    "n2_k2_soft_values": {**TWO_ACTIONS, "soft_values": True},
    "n2_k2_temperature": {**TWO_ACTIONS, "sampling_temperature": 1.5},
    "n2_k2_best": {**TWO_ACTIONS, "action_selection": "best"},
    # What HybridGRPO has beside branches
    "n1_small": {**WITHOUT_BRANCHES, **_SMALL},
    "n1_limit": {**WITHOUT_BRANCHES, "actor_limit": "0.5"},
    "n1_refit": {**WITHOUT_BRANCHES, "refit_critic": True},
    # Not in the package
    "n1_recomputed": {**WITHOUT_BRANCHES, "variant": "RecomputedAdvantages"},
    "n1_scaled_back": {**WITHOUT_BRANCHES, "variant": "ScaledBack"},
    "n1_recomputed_scaled_back": {**WITHOUT_BRANCHES, "variant": "RecomputedScaledBack"},
    "n1_noise_scale": {**WITHOUT_BRANCHES, "variant": "NoiseScaledRollouts"},
    "n2_k2_noise_scale": {**TWO_ACTIONS, "variant": "NoiseScaledRollouts"},
    "n2_k2_small_scaled_back": {**TWO_ACTIONS, **_SMALL, "variant": "ScaledBack"},
    "n2_growing": {**TWO_ACTIONS, "branch_horizon": 4, "variant": "GrowingHorizon"},
    "n2_k2_informative": {**TWO_ACTIONS, "branch_fraction": 0.5, "variant": "InformativeStates"},
    "n2_k2_branch_critic": {**TWO_ACTIONS, "variant": "BranchCritic"},
    # Natural steps, whose settings are all their own: noise of 1/e in each dimension of an action, or of 1 in all together
    "natural": NATURAL_HELD[0],
    "natural_noise_together": {**NATURAL_HELD[3], "noise_together": True},
    # Along averaged gradients
    "natural_averaged": {**NATURAL_HELD[0], "variant": "AveragedGradient"},
    # In sixteen environments, which share the costs of a step
    "natural_16": NATURAL_HELD[4],
    "natural_16_staggered": {**NATURAL_HELD[4], "staggered": True},
    # With earlier rollouts in the loss
    "natural_16_reused_2": {**NATURAL_HELD[4], "variant": "ReusedRollouts"},
    "natural_16_reused_3": {**NATURAL_HELD[4], "variant": "ThreeReusedRollouts"},
    # Shorter with time, with PPO's as the control
    "natural_16_linear": NATURAL_HELD[5],
    "natural_16_linear_0.05": {**NATURAL_HELD[5], "kl": 0.05},
    "natural_16_linear_together": NATURAL_HELD[6],
    "ppo_16_linear": {"n_envs": 16, "schedule": "linear"},
    "ppo_16_linear_free": {"n_envs": 16, "schedule": "linear", "kl_control": "none"},
    # Discrete actions: in minibatches, and in natural steps
    "ppo_half": {"rollout": 1024},
    "ppo_quick": {"learning_rate": 1e-3, "batch_size": 128, "one_minus_lambda": 0.2, "kl": 0.03},
    "ppo_free": {"learning_rate": 1e-3, "kl_control": "none"},
    "ppo_bounded": _BOUNDED,
    "ppo_half_bounded": {"rollout": 1024, **_BOUNDED},
    "discrete": WITHOUT_BRANCHES,
    "discrete_bounded": {**WITHOUT_BRANCHES, **_BOUNDED},
    "discrete_half_bounded": {**WITHOUT_BRANCHES, "rollout": 1024, **_BOUNDED},
    "discrete_short": {**WITHOUT_BRANCHES, "rollout": 512},
    "discrete_natural": NATURAL_DISCRETE[3],
    "discrete_natural_entropy": NATURAL_DISCRETE[10],
    "discrete_natural_linear": {**NATURAL_DISCRETE[3], "schedule": "linear"},
    "discrete_natural_short": {**NATURAL_DISCRETE[3], "rollout": 512},
    "discrete_natural_linear_entropy": {**NATURAL_DISCRETE[10], "schedule": "linear"},
    "discrete_natural_linear_entropy_long": {**NATURAL_DISCRETE[10], "schedule": "linear", "rollout": 2048},
    # Short where little is at stake
    "discrete_stakes": {**NATURAL_DISCRETE[10], "variant": "Stakes"},
    "discrete_stakes_linear": {**NATURAL_DISCRETE[10], "schedule": "linear", "variant": "Stakes"},
    # Exploration that depends on the state
    "natural_16_linear_sde": {**NATURAL_HELD[5], "use_sde": True, "log_std_init": -2.0},
    "natural_16_linear_sde_wide": {**NATURAL_HELD[5], "use_sde": True},
}
"""What an idea changes. Those without any of Hybrid GRPO's own settings are PPO's."""


class IdeaRow(NamedTuple):
    """
    A finished run.

    :param idea: its name
    :param task: environment id
    :param seed: its seed
    :param score: area under the curve over processor seconds, 0 for random actions
    :param curve: its points: processor seconds, committed steps, simulator steps, mean return
    :param error: what ended it early, if anything
    :param params: its settings
    :param seconds: processor seconds of training
    :param provenance: code and machine
    """

    idea: str
    task: str
    seed: int
    score: float
    curve: Sequence[Sequence[float]]
    error: str
    params: Mapping[str, Any]
    seconds: float
    provenance: Mapping[str, str]


def run_idea(idea: str, task: Task, common: Mapping[str, Any], seed: int, seconds: float) -> IdeaRow:
    """
    Train with an idea.

    :param idea: its name
    :param task: the task
    :param common: settings that all ideas share
    :param seed: seed of the training
    :param seconds: its processor seconds
    :return: the finished run
    """
    params = {**common, **IDEAS[idea]}
    curve = train_task(params.get("variant", _algorithm(params)), task, params, seed, seconds)
    score = round(task.normalize(curve.area(seconds, low=task.low)), 5)
    return IdeaRow(idea, task.id, seed, score, curve.points, curve.error, params, seconds, provenance(curve.work_seconds))


def _algorithm(params: Mapping[str, Any]) -> str:
    return "hybrid_grpo" if "n_samples" in params else "ppo"


def _completed(family: str, params: Mapping[str, Any]) -> dict[str, Any]:
    return with_former_choices(family, _algorithm(params), params)


def print_report(rows: Sequence[IdeaRow]) -> None:
    """
    Print a table in Markdown: mean of the middle half, extremes and number of runs, and the median cost of a step.
    Single runs are left out.

    :param rows: finished runs
    """
    tasks = list(dict.fromkeys(row.task for row in rows))
    print("| idea | " + " | ".join(f"{task} | ms per step" for task in tasks) + " |\n|" + "---|" * (2 * len(tasks) + 1))
    for idea in dict.fromkeys(row.idea for row in rows):
        cells = []
        for task in tasks:
            runs = [row for row in rows if (row.idea, row.task) == (idea, task)]
            if len(runs) < 2:
                cells += ["", ""]
                continue
            scores = [row.score for row in runs]
            costs = [1000 * row.curve[-1][0] / row.curve[-1][1] for row in runs if row.curve[-1][1]]
            extremes = f"{min(scores):.2f} to {max(scores):.2f}; {len(runs)}"
            cells += [f"{trim_mean(scores, 0.25):.2f} ({extremes})", f"{np.median(costs):.2f}" if costs else ""]
        if any(cells):
            print(f"| {idea} | " + " | ".join(cells) + " |")


def main(argv: Sequence[str] | None = None) -> int:
    """
    Make the missing runs, or report.

    :param argv: arguments of the command line, ``sys.argv`` by default
    :return: exit code
    """
    parser = argparse.ArgumentParser(prog="python -m benchmarks.learning.ideas", description=__doc__.partition("\n\n")[0])
    parser.add_argument("--family", choices=list(FAMILIES), default="continuous", help="family of tasks (%(default)s)")
    parser.add_argument("--tasks", nargs="+", default=["HalfCheetah-v5", "Hopper-v5"], help="environment ids (%(default)s)")
    parser.add_argument("--ideas", nargs="+", default=list(IDEAS), choices=list(IDEAS), help="default: all")
    parser.add_argument("--seeds", type=int, default=0, help="number of seeds that each idea shall have")
    parser.add_argument("--seconds", type=float, default=SECONDS, help="processor seconds of each training (%(default)s)")
    parser.add_argument("--tuned", type=Path, default=FOLDER, help="where the trials are (%(default)s)")
    parser.add_argument("--folder", type=Path, default=FOLDER.parent / "research", help="where ideas.csv is (%(default)s)")
    parser.add_argument("--report", action="store_true", help="print a table")
    options = parser.parse_args(argv)
    th.set_num_threads(1)
    warnings.simplefilter("ignore")
    path = options.folder / "ideas.csv"
    if options.seeds:
        common = ranking(finished_trials(options.tuned), options.family, "ppo")[0][0].params
        for seed in range(options.seeds):
            for task in FAMILIES[options.family]:
                for idea in options.ideas if task.id in options.tasks else ():
                    rows = [row for row in read_rows(path, IdeaRow) if (row.idea, row.task) == (idea, task.id)]
                    params = _completed(options.family, {**common, **IDEAS[idea]})
                    if any(_completed(options.family, row.params) != params for row in rows):
                        parser.error(f"{path} has {idea} on {task.id} with other settings than those tuned for PPO now.")
                    done = {(row.idea, row.task, row.seed, row.seconds) for row in rows}
                    if (idea, task.id, seed, options.seconds) not in done:
                        row = run_idea(idea, task, common, seed, options.seconds)
                        append_row(path, row)
                        print(time.strftime("%H:%M:%S"), *row[:4], row.curve[-1], row.error, flush=True)
    if options.report:
        rows = read_rows(path, IdeaRow)
        print_report([row for row in rows if row.task in options.tasks and row.seconds == options.seconds])
    return 0


if __name__ == "__main__":
    sys.exit(main())
