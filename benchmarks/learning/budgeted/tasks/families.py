"""Tasks that share one set of settings, and what their scores are measured by."""

from collections.abc import Mapping
from typing import NamedTuple

from gymnasium import spaces
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import VecEnv, VecNormalize

from benchmarks.learning.budgeted.tasks import minatar, minigrid  # noqa: F401  register their environments
from benchmarks.learning.budgeted.tasks.staggering import stagger

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
        # Learned in seconds, it must be held for a minute.
        Task("InvertedPendulum-v5", 5.1, 1000.0),
    ),
    "discrete": (
        Task("Acrobot-v1", -497.0, -75.0),
        Task("MinAtarFlat/breakout-v0", 0.4, 10.0),
        # Goals that must be found
        Task("MiniGridFlat/DoorKey-6x6-v0", 0.0, 0.95),
        Task("MiniGridFlat/Empty-Random-5x5-v0", 0.4, 0.95),
    ),
}
"""The tasks that settings are tuned on."""

CLAIM_TASKS: Mapping[str, Mapping[str, float]] = {
    "continuous": {
        "Walker2d-v5": 1.4,
        "Ant-v5": -79.3,
        "Reacher-v5": -42.7,
        "InvertedDoublePendulum-v5": 50.1,
        "Humanoid-v5": 105.3,
        "MountainCarContinuous-v0": -33.1,
    },
    "discrete": {
        "CartPole-v1": 21.7,
        "LunarLander-v3": -191.6,
        "MinAtarFlat/asterix-v0": 0.5,
        "MinAtarFlat/space_invaders-v0": 3.9,
        "MiniGridFlat/DoorKey-5x5-v0": 0.0,
        "MiniGridFlat/Empty-Random-6x6-v0": 0.3,
        "Taxi-v4": -755.9,
    },
}
"""The tasks that claims are made about: nothing was tuned on them. With the mean return of random actions in 30 episodes."""

RANDOM_RETURNS: Mapping[str, float] = {
    **{task.id: task.low for tasks in FAMILIES.values() for task in tasks},
    **{task: low for tasks in CLAIM_TASKS.values() for task, low in tasks.items()},
}
"""Mean returns of random actions."""


def make_envs(
    task_id: str, n_envs: int, normalize: bool, gamma: float, seed: int, staggered: bool = False
) -> tuple[VecEnv, VecEnv]:
    """
    Make the environments of a run.

    :param task_id: environment id
    :param n_envs: number of environments to train in
    :param normalize: whether observations and rewards are normalised
    :param gamma: discount factor of the returns that rewards are normalised by
    :param seed: seed of the training environments
    :param staggered: whether an episode of each environment is cut, see ``stagger``
    :return: those to train in, and those to evaluate in, one for each episode: same observations, raw rewards. Observations
        that are no numbers stay as they are
    """
    env: VecEnv = make_vec_env(task_id, n_envs, seed=seed)
    if staggered:
        env = stagger(env)
    eval_env: VecEnv = make_vec_env(task_id, EVAL_EPISODES)
    if normalize:
        are_numbers = isinstance(env.observation_space, spaces.Box)
        env = VecNormalize(env, norm_obs=are_numbers, gamma=gamma)
        eval_env = VecNormalize(eval_env, training=False, norm_obs=are_numbers, norm_reward=False)
    return env, eval_env
