"""A trial: one set of settings, trained on each task of a family."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.vec_env import VecEnv

from benchmarks.learning.budgeted.adaptive_ppo import AdaptivePPO
from benchmarks.learning.budgeted.rows import provenance
from benchmarks.learning.budgeted.tasks.families import FAMILIES, Task, make_envs
from benchmarks.learning.budgeted.training import Budget, Curve, train
from benchmarks.learning.budgeted.tuning.search_space import settings_of
from benchmarks.learning.budgeted.tuning.trials import TrialRow
from benchmarks.learning.variants import VARIANTS
from sb3_hybrid_grpo import HybridGRPO

ALGORITHMS: Mapping[str, type[BaseAlgorithm]] = {"hybrid_grpo": HybridGRPO, "ppo": AdaptivePPO}
EVALUATED_SHARES = tuple(i / 10 for i in range(1, 10))


def train_task(algorithm: str, task: Task, params: Mapping[str, Any], seed: int, seconds: float) -> Curve:
    """
    Train on one task.

    :param algorithm: name in ``ALGORITHMS`` or ``VARIANTS``
    :param task: the task
    :param params: parameters of the trial
    :param seed: seed of the training
    :param seconds: its processor seconds
    :return: its learning curve
    """
    settings = settings_of(params)

    def make_model(env: VecEnv) -> BaseAlgorithm:
        arguments = settings.for_actions(env.action_space)
        return {**ALGORITHMS, **VARIANTS}[algorithm]("MlpPolicy", env, seed=seed, device="cpu", **arguments)

    gamma = settings.arguments["gamma"]
    env, eval_env = make_envs(task.id, settings.n_envs, settings.normalize, gamma, seed, settings.staggered)
    return train(make_model, env, Budget(eval_env, seconds, [seconds * share for share in EVALUATED_SHARES], seed))


def run_trial(
    family: str,
    algorithm: str,
    number: int,
    params: Mapping[str, Any],
    seed: int,
    seconds: float,
    is_hopeless: Callable[[int, float], bool] = lambda step, mean_so_far: False,
) -> TrialRow:
    """
    Train on each task of a family.

    :param family: name in ``FAMILIES``
    :param algorithm: name in ``ALGORITHMS``
    :param number: number of the trial
    :param params: its parameters
    :param seed: seed of its trainings
    :param seconds: processor seconds of each
    :param is_hopeless: told the mean score after each task, says whether to stop
    :return: the finished trial
    """
    scores: dict[str, float] = {}
    curves: dict[str, Curve] = {}
    state = "complete"
    for step, task in enumerate(FAMILIES[family]):
        curve = train_task(algorithm, task, params, seed, seconds)
        curves[task.id] = curve
        scores[task.id] = round(task.normalize(curve.area(seconds, low=task.low)), 5)
        mean_so_far = sum(scores.values()) / len(scores)
        if is_hopeless(step, mean_so_far) and step + 1 < len(FAMILIES[family]):
            state = "pruned"
            break
    return TrialRow(
        family=family,
        algorithm=algorithm,
        number=number,
        seed=seed,
        state=state,
        value=mean_so_far,
        params=params,
        scores=scores,
        curves={task: curve.points for task, curve in curves.items()},
        errors={task: curve.error for task, curve in curves.items() if curve.error},
        seconds=seconds,
        provenance=provenance(float(np.mean([curve.work_seconds for curve in curves.values()]))),
    )
