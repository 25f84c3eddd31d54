"""The learning curve of a training, kept out of its clock."""

import os
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from sb3_contrib.common.maskable.evaluation import evaluate_policy as evaluate_maskable_policy
from sb3_contrib.common.maskable.policies import MaskableActorCriticPolicy
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.vec_env import VecEnv, VecNormalize, sync_envs_normalization

from sb3_hybrid_grpo.compare.pool import Report

_SECONDS_BETWEEN_REPORTS = 0.2


class Point(NamedTuple):
    """
    An evaluation.

    :param committed_steps: steps of the committed trajectories so far
    :param simulator_steps: all steps that the simulator took so far, branches included
    :param seconds: time spent training so far, evaluations excluded
    :param cpu_seconds: the processor's time of the same, that of finished children included
    :param return_mean: mean return of the evaluation episodes
    :param return_std: standard deviation of the return over the evaluation episodes
    """

    committed_steps: int
    simulator_steps: int
    seconds: float
    cpu_seconds: float
    return_mean: float
    return_std: float


class CurveCallback(BaseCallback):
    """
    Record a learning curve of deterministic actions. The policy changes only between rollouts, so that is where it is
    evaluated: before the first, after the last, and whenever ``every`` steps have gone by.

    :param eval_env: environments for one episode each; a ``VecNormalize`` gets the statistics of the training's
    :param every: committed steps between evaluations
    :param seed: seed of the run: all algorithms meet the same initial states
    :param report: called a few times per second with the committed steps and the latest mean return
    """

    def __init__(self, eval_env: VecEnv, every: int, seed: int, report: Report) -> None:
        super().__init__()
        self.points: list[Point] = []
        self._eval_env = eval_env
        self._every = every
        self._eval_seed = 1000 * (seed + 1)
        self._report = report
        self._clock_start = _now()
        self._last_report = 0.0

    def _on_training_start(self) -> None:
        self._clock_start = _now()

    def _on_rollout_start(self) -> None:
        if not self.points or self.num_timesteps // self._every > self.points[-1].committed_steps // self._every:
            self._evaluate()

    def _on_step(self) -> bool:
        now = time.perf_counter()
        if now - self._last_report > _SECONDS_BETWEEN_REPORTS:
            self._last_report = now
            self._report(self.num_timesteps, self.points[-1].return_mean)
        return True

    def _on_training_end(self) -> None:
        self._evaluate()
        self._report(self.num_timesteps, self.points[-1].return_mean)
        self._eval_env.close()

    def _evaluate(self) -> None:
        paused = _now()
        seconds, cpu_seconds = (paused - self._clock_start).tolist()
        if isinstance(self._eval_env, VecNormalize):
            sync_envs_normalization(self.training_env, self._eval_env)
        self._eval_env.seed(self._eval_seed)
        is_maskable = isinstance(self.model.policy, MaskableActorCriticPolicy)
        evaluate: Callable[..., Any] = evaluate_maskable_policy if is_maskable else evaluate_policy
        returns, _ = evaluate(self.model, self._eval_env, self._eval_env.num_envs, return_episode_rewards=True)
        self.points.append(
            Point(
                committed_steps=self.num_timesteps,
                simulator_steps=getattr(self.model, "num_simulator_steps", self.num_timesteps),
                seconds=seconds,
                cpu_seconds=cpu_seconds,
                return_mean=float(np.mean(returns)),
                return_std=float(np.std(returns)),
            )
        )
        self._clock_start += _now() - paused


def _now() -> np.ndarray:
    """Return seconds on the clock, and of the processor's time."""
    return np.array([time.perf_counter(), sum(os.times()[:4])])
