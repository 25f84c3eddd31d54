"""Train one run, evaluate it between updates, and keep the evaluations out of its clock."""

import time
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm

from sb3_hybrid_grpo.compare.settings import Run, Settings, build_model, make_env

_SECONDS_BETWEEN_REPORTS = 0.2


class Evaluation(NamedTuple):
    """
    One point of a learning curve.

    :param algo: name of the algorithm
    :param env: environment id
    :param seed: seed of the run
    :param committed_steps: steps of the committed trajectories so far
    :param simulator_steps: all steps that the simulator took so far, branches included
    :param seconds: time spent training so far, evaluations excluded
    :param return_mean: mean return of the evaluation episodes
    :param return_std: standard deviation of the return over the evaluation episodes
    """

    algo: str
    env: str
    seed: int
    committed_steps: int
    simulator_steps: int
    seconds: float
    return_mean: float
    return_std: float


ProgressReport = Callable[[int, float], None]


class CurveCallback(BaseCallback):
    """
    Record a learning curve. The policy changes only between rollouts, so that is where it is evaluated:
    before the first, after the last, and whenever ``eval_every`` steps have gone by.

    :param settings: settings of the comparison
    :param run: algorithm and seed
    :param report: called a few times per second with the committed steps and the latest mean return
    """

    def __init__(self, settings: Settings, run: Run, report: ProgressReport) -> None:
        super().__init__()
        self.evaluations: list[Evaluation] = []
        self._settings = settings
        self._run = run
        self._report = report
        self._eval_env = make_env(settings.env, settings.eval_episodes)
        self._clock_start = 0.0
        self._last_report = 0.0

    def _on_training_start(self) -> None:
        self._clock_start = time.perf_counter()

    def _on_rollout_start(self) -> None:
        every = self._settings.eval_every
        if not self.evaluations or self.num_timesteps // every > self.evaluations[-1].committed_steps // every:
            self._evaluate()

    def _on_step(self) -> bool:
        now = time.perf_counter()
        if now - self._last_report > _SECONDS_BETWEEN_REPORTS:
            self._last_report = now
            self._report(self.num_timesteps, self.evaluations[-1].return_mean)
        return True

    def _on_training_end(self) -> None:
        self._evaluate()
        self._eval_env.close()

    def _evaluate(self) -> None:
        start = time.perf_counter()
        # Every algorithm meets the same initial states.
        self._eval_env.seed(1000 * (self._run.seed + 1))
        returns, _ = evaluate_policy(self.model, self._eval_env, self._settings.eval_episodes, return_episode_rewards=True)
        self.evaluations.append(
            Evaluation(
                algo=self._run.algo,
                env=self._settings.env,
                seed=self._run.seed,
                committed_steps=self.num_timesteps,
                simulator_steps=getattr(self.model, "num_simulator_steps", self.num_timesteps),
                seconds=round(start - self._clock_start, 3),
                return_mean=float(np.mean(returns)),
                return_std=float(np.std(returns)),
            )
        )
        self._clock_start += time.perf_counter() - start


def train(settings: Settings, run: Run, report: ProgressReport) -> tuple[OnPolicyAlgorithm, list[Evaluation]]:
    """
    Train one run from scratch.

    :param settings: settings of the comparison
    :param run: algorithm and seed
    :param report: called a few times per second with the committed steps and the latest mean return
    :return: the trained model and its learning curve
    """
    env = make_env(settings.env, settings.hyperparams.get("n_envs", 1), run.seed)
    curve = CurveCallback(settings, run, report)
    model = build_model(settings, run, env).learn(settings.timesteps, callback=curve)
    env.close()
    return model, curve.evaluations
