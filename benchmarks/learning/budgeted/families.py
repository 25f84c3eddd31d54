"""Tasks that share one set of settings, and what their scores are measured by."""

from collections.abc import Mapping
from typing import NamedTuple

from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import VecEnv, VecNormalize

from benchmarks.learning.budgeted import minatar  # noqa: F401  registers its games

EVAL_EPISODES = 5


class Task(NamedTuple):
    """
    An environment to train in.

    :param id: environment id
    :param low: return that counts 0: of random actions
    :param high: return that counts 1. Where the RL Zoo's benchmark has the environment, the mean return of its PPO, trained
        for a million steps or more (rounded; of version -v3 or -v4 for MuJoCo); for MinAtar, the order of what PPO and DQN
        have after a million frames
    """

    id: str
    low: float
    high: float

    def normalize(self, mean_return: float) -> float:
        """
        Measure a return.

        :param mean_return: mean return of an evaluation
        :return: its score
        """
        return (mean_return - self.low) / (self.high - self.low)


FAMILIES: Mapping[str, tuple[Task, ...]] = {
    "continuous": (
        Task("HalfCheetah-v5", -282.0, 5800.0),
        Task("Hopper-v5", 17.0, 2400.0),
        Task("Swimmer-v5", 1.0, 280.0),
        Task("Pendulum-v1", -1208.0, -170.0),
    ),
    "discrete": (
        Task("Acrobot-v1", -497.0, -75.0),
        Task("MinAtarFlat/breakout-v0", 0.4, 10.0),
    ),
}
"""The tasks that settings are tuned on. Those that claims are made about are others."""


def make_envs(task_id: str, n_envs: int, normalize: bool, gamma: float, seed: int) -> tuple[VecEnv, VecEnv]:
    """
    Make the environments of a run.

    :param task_id: environment id
    :param n_envs: number of environments to train in
    :param normalize: whether observations and rewards are normalised
    :param gamma: discount factor of the returns that rewards are normalised by
    :param seed: seed of the training environments
    :return: those to train in, and those to evaluate in, one for each episode: same observations, raw rewards
    """
    env: VecEnv = make_vec_env(task_id, n_envs, seed=seed)
    eval_env: VecEnv = make_vec_env(task_id, EVAL_EPISODES)
    if normalize:
        env = VecNormalize(env, gamma=gamma)
        eval_env = VecNormalize(eval_env, training=False, norm_reward=False)
    return env, eval_env
