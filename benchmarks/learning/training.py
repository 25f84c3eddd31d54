"""One learning run: what the processes of ``benchmarks.learning.run`` do."""

import importlib
import json
import time
from functools import partial
from typing import Any

import gymnasium as gym
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.utils import LinearSchedule
from stable_baselines3.common.vec_env import VecEnv, VecNormalize

from benchmarks.learning.disturbed_reward import DisturbedReward
from benchmarks.learning.experiments import ALGORITHMS, POLICIES, Run, Settings, arguments_of, settings_of
from benchmarks.provenance import provenance
from sb3_hybrid_grpo.compare.curve import CurveCallback
from sb3_hybrid_grpo.compare.pool import Report

EVAL_EPISODES = 10


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


def train(evaluations: int, run: Run, report: Report) -> dict[str, Any]:
    """
    Train and evaluate.

    :param evaluations: number of evaluations
    :param run: the run
    :param report: called now and then with the committed steps and the latest mean return
    :return: columns of its row; of the curve's points each is [committed steps, simulator steps, processor seconds, mean
        return], and seconds of training, the processor's or the clock's, leave evaluations out
    """
    start = time.perf_counter()
    origin = provenance()
    settings = settings_of(run.config, run.environment)
    env, eval_env = make_envs(settings, run.seed)
    arguments = {
        name: LinearSchedule(float(value.removeprefix("lin_")), 0.0, 1.0) if str(value).startswith("lin_") else value
        for name, value in arguments_of(settings).items()
    }
    algorithm = settings["algorithm"]
    model = ALGORITHMS[algorithm](POLICIES.get(algorithm, "MlpPolicy"), env, seed=run.seed, device="cpu", **arguments)
    curve = CurveCallback(eval_env, max(settings["steps"] // evaluations, 1), run.seed, report)
    model.learn(settings["steps"], callback=curve)
    env.close()
    points = [
        (point.committed_steps, point.simulator_steps, round(point.cpu_seconds, 3), round(point.return_mean, 4))
        for point in curve.points
    ]
    last = curve.points[-1]
    return {
        **origin,
        "committed_steps": last.committed_steps,
        "simulator_steps": last.simulator_steps,
        "training_seconds": round(last.seconds, 3),
        "training_cpu_seconds": round(last.cpu_seconds, 3),
        "wall_seconds": round(time.perf_counter() - start, 3),
        "curve": json.dumps(points),
        "settings": json.dumps(settings),
    }
