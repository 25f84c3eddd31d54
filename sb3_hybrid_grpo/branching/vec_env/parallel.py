"""Environments in workers with one line."""

from collections.abc import Callable
from typing import Any

import gymnasium as gym
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import VecEnv

from sb3_hybrid_grpo.branching.functional import FunctionalVecEnv, is_functional_id
from sb3_hybrid_grpo.branching.vec_env.workers import GroupedSubprocVecEnv, RayVecEnv, WorkersVecEnv
from sb3_hybrid_grpo.common import InvalidArgumentError, check_name

ENGINES: dict[str, type[WorkersVecEnv]] = {"process": GroupedSubprocVecEnv, "ray": RayVecEnv}


def make_parallel_env(
    env_id: str | Callable[..., gym.Env[Any, Any]],
    n_envs: int = 1,
    n_workers: int | None = None,
    engine: str = "process",
    seed: int | None = None,
    wrapper_class: Callable[[gym.Env[Any, Any]], gym.Env[Any, Any]] | None = None,
    env_kwargs: dict[str, Any] | None = None,
    wrapper_kwargs: dict[str, Any] | None = None,
    monitor_dir: str | None = None,
    monitor_kwargs: dict[str, Any] | None = None,
    start_index: int = 0,
    **vec_env_kwargs: Any,
) -> VecEnv:
    """
    Make environments in workers, as ``make_vec_env`` of SB3 makes them in one process: behind ``Monitor``, each with a seed.

    :param env_id: id of an environment, its class, or a function that makes it; a functional one, such as
        ``"gymnax:CartPole-v1"``, needs no workers: it becomes a ``FunctionalVecEnv``
    :param n_envs: number of environments
    :param n_workers: number of workers, see ``GroupedSubprocVecEnv`` and ``RayVecEnv``
    :param engine: ``"process"`` for processes of this machine, ``"ray"`` for actors of Ray
    :param seed: seed of the first environment
    :param wrapper_class: wrapper of each environment, or a function that wraps it
    :param env_kwargs: arguments of the environment
    :param wrapper_kwargs: arguments of the wrapper
    :param monitor_dir: folder for the files of ``Monitor``
    :param monitor_kwargs: arguments of ``Monitor``
    :param start_index: index of the first environment
    :param vec_env_kwargs: further arguments of ``GroupedSubprocVecEnv`` or ``RayVecEnv``, such as ``restart_workers``
    :return: the vectorised environment
    :raises InvalidArgumentError: if an argument has a value that cannot work
    """
    check_name("engine", engine, ENGINES)
    if isinstance(env_id, str) and is_functional_id(env_id):
        if wrapper_class is not None or env_kwargs:
            raise InvalidArgumentError(
                f"{env_id} is a functional environment, which takes no wrapper_class and no env_kwargs."
            )
        return FunctionalVecEnv(env_id, n_envs, seed)
    return make_vec_env(
        env_id,
        n_envs,
        seed,
        start_index,
        monitor_dir,
        wrapper_class,
        env_kwargs,
        ENGINES[engine],  # type: ignore[arg-type]
        {"n_workers": n_workers, **vec_env_kwargs},
        monitor_kwargs,
        wrapper_kwargs,
    )
