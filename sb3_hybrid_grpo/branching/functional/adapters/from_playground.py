"""MuJoCo Playground, whose environments have Brax's interface."""

from mujoco_playground import registry

from sb3_hybrid_grpo.branching.functional.adapters.from_brax import BraxEnv
from sb3_hybrid_grpo.common import InvalidArgumentError


def make(name: str) -> BraxEnv:
    """
    Make an environment.

    :param name: its name in MuJoCo Playground
    :return: the environment
    :raises InvalidArgumentError: if there is none
    """
    if name not in registry.ALL_ENVS:
        raise InvalidArgumentError(f"MuJoCo Playground has no environment {name!r}. It has {', '.join(registry.ALL_ENVS)}.")
    return BraxEnv(registry.load(name), registry.get_default_config(name).episode_length)
