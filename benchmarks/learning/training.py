"""
One learning run in a process of its own.

    python -m benchmarks.learning.training JSON

The argument holds the settings, the seed and the number of evaluations. Lines of JSON go to standard output: progress, and at
last the measurements as columns of a row. The process ends when nobody reads them any more.
"""

import contextlib
import importlib
import json
import os
import sys
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import gymnasium as gym
import numpy as np
from sb3_contrib.common.maskable import evaluation as maskable_evaluation
from sb3_contrib.common.maskable.policies import MaskableActorCriticPolicy
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.utils import LinearSchedule
from stable_baselines3.common.vec_env import VecEnv, VecNormalize, sync_envs_normalization

from benchmarks.learning.disturbed_reward import DisturbedReward
from benchmarks.learning.experiments import ALGORITHMS, POLICIES, Settings, arguments_of
from benchmarks.provenance import provenance

EVAL_EPISODES = 10
_SECONDS_BETWEEN_REPORTS = 0.5

Report = Callable[[int, float], None]


class CurveCallback(BaseCallback):
    """
    Record a learning curve of deterministic actions and raw rewards. The policy changes only between rollouts, so that is
    where it is evaluated: before the first, after the last, and whenever a share of the steps has gone by.

    :param eval_env: environments for one episode each
    :param every: committed steps between evaluations
    :param seed: seed of the run: all algorithms meet the same initial states
    :param report: called now and then with the committed steps and the latest mean return
    """

    def __init__(self, eval_env: VecEnv, every: int, seed: int, report: Report) -> None:
        super().__init__()
        self.points: list[tuple[int, int, float, float]] = []
        self.seconds = 0.0
        self.cpu_seconds = 0.0
        self._eval_env = eval_env
        self._every = every
        self._eval_seed = 1000 * (seed + 1)
        self._report = report
        self._start = self._now()
        self._last_report = 0.0

    def _on_training_start(self) -> None:
        self._start = self._now()

    def _on_rollout_start(self) -> None:
        if not self.points or self.num_timesteps // self._every > self.points[-1][0] // self._every:
            self._evaluate()

    def _on_step(self) -> bool:
        now = time.perf_counter()
        if now - self._last_report > _SECONDS_BETWEEN_REPORTS:
            self._last_report = now
            self._report(self.num_timesteps, self.points[-1][-1])
        return True

    def _on_training_end(self) -> None:
        self._evaluate()

    def _evaluate(self) -> None:
        paused = self._now()
        self.seconds, self.cpu_seconds = (paused - self._start).tolist()
        if isinstance(self._eval_env, VecNormalize):
            sync_envs_normalization(self.training_env, self._eval_env)
        self._eval_env.seed(self._eval_seed)
        is_maskable = isinstance(self.model.policy, MaskableActorCriticPolicy)
        evaluate = maskable_evaluation.evaluate_policy if is_maskable else evaluate_policy
        mean_return, _ = evaluate(self.model, self._eval_env, EVAL_EPISODES)
        simulator_steps = getattr(self.model, "num_simulator_steps", self.num_timesteps)
        self.points.append((self.num_timesteps, simulator_steps, round(self.cpu_seconds, 3), round(float(mean_return), 4)))
        self._start += self._now() - paused

    @staticmethod
    def _now() -> np.ndarray:
        """Return seconds on the clock, and of the processor's time, that of children included."""
        return np.array([time.perf_counter(), sum(os.times()[:4])])


def wrap(env: gym.Env, settings: Settings, disturbed: bool) -> gym.Env:
    """
    Wrap a single environment.

    :param env: the environment
    :param settings: settings of the run
    :param disturbed: whether rewards are disturbed, if they are in training
    :return: the environment
    """
    if settings["env_wrapper"]:
        module, _, name = settings["env_wrapper"].partition(":")
        env = getattr(importlib.import_module(module), name)(env)
    if disturbed and (settings["reward_scale"] != 1 or settings["reward_noise"]):
        env = DisturbedReward(env, settings["reward_scale"], settings["reward_noise"])
    return env


def make_envs(settings: Settings, seed: int) -> tuple[VecEnv, VecEnv]:
    """
    Make the environments of a run.

    :param settings: its settings
    :param seed: its seed
    :return: those to train in, and those to evaluate in: same observations, raw rewards
    """
    wrappers = [partial(wrap, settings=settings, disturbed=disturbed) for disturbed in (True, False)]
    env: VecEnv = make_vec_env(settings["id"], settings["n_envs"], seed=seed, wrapper_class=wrappers[0])
    eval_env: VecEnv = make_vec_env(settings["id"], EVAL_EPISODES, wrapper_class=wrappers[1])
    if settings["normalize"]:
        env = VecNormalize(env, gamma=settings["gamma"])
        eval_env = VecNormalize(eval_env, training=False, norm_reward=False)
    return env, eval_env


def train(settings: Settings, seed: int, evaluations: int, report: Report) -> dict[str, Any]:
    """
    Train and evaluate.

    :param settings: settings of the run
    :param seed: its seed
    :param evaluations: number of evaluations
    :param report: called now and then with the committed steps and the latest mean return
    :return: columns of its row; of the curve's points each is [committed steps, simulator steps, processor seconds, mean
        return], and seconds of training, the processor's or the clock's, leave evaluations out
    """
    start = time.perf_counter()
    origin = provenance()
    env, eval_env = make_envs(settings, seed)
    arguments = {
        name: LinearSchedule(float(value.removeprefix("lin_")), 0.0, 1.0) if str(value).startswith("lin_") else value
        for name, value in arguments_of(settings).items()
    }
    algorithm = settings["algorithm"]
    model = ALGORITHMS[algorithm](POLICIES.get(algorithm, "MlpPolicy"), env, seed=seed, device="cpu", **arguments)
    curve = CurveCallback(eval_env, max(settings["steps"] // evaluations, 1), seed, report)
    model.learn(settings["steps"], callback=curve)
    env.close()
    eval_env.close()
    return {
        **origin,
        "committed_steps": model.num_timesteps,
        "simulator_steps": getattr(model, "num_simulator_steps", model.num_timesteps),
        "training_seconds": round(curve.seconds, 3),
        "training_cpu_seconds": round(curve.cpu_seconds, 3),
        "wall_seconds": round(time.perf_counter() - start, 3),
        "curve": json.dumps(curve.points),
    }


def main() -> None:
    """Train the run of the command line."""
    # Libraries print to standard output, too.
    with os.fdopen(os.dup(sys.stdout.fileno()), "w") as output, contextlib.redirect_stdout(sys.stderr):

        def send(message: dict[str, Any]) -> None:
            output.write(json.dumps(message) + "\n")
            output.flush()

        row = train(**json.loads(sys.argv[1]), report=lambda steps, last_return: send({"steps": steps, "return": last_return}))
        send({"row": row})


if __name__ == "__main__":
    main()
