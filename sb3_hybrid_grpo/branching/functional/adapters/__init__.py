"""Environments of JAX's libraries as functional ones, by ids such as ``gymnax:CartPole-v1``."""

import importlib
import importlib.util

from sb3_hybrid_grpo.branching.functional.contract import FunctionalEnv
from sb3_hybrid_grpo.common import InvalidArgumentError, MissingExtraError

_LIBRARIES = {
    "gymnax": "gymnax",
    "brax": "brax",
    "playground": "mujoco_playground",
    "jumanji": "jumanji",
    "pgx": "pgx",
}
"""Prefixes of ids, and the packages that they need."""


def is_functional_id(env_id: str) -> bool:
    """
    Tell whether an id is that of a functional environment.

    :param env_id: an id
    :return: whether it begins with the name of a known library
    """
    return env_id.partition(":")[0] in _LIBRARIES and ":" in env_id


def make_functional_env(env_id: str) -> FunctionalEnv:
    """
    Make an environment of one of JAX's libraries.

    :param env_id: ``gymnax:``, ``brax:``, ``playground:``, ``jumanji:`` or ``pgx:`` and a name
    :return: the environment
    :raises InvalidArgumentError: if the library has no such environment, or none that a single agent can act in
    :raises MissingExtraError: if the library is not installed
    """
    library, _, name = env_id.partition(":")
    if not is_functional_id(env_id):
        prefixes = ", ".join(f"{prefix}:NAME" for prefix in _LIBRARIES)
        raise InvalidArgumentError(f"{env_id!r} is no id of a functional environment: {prefixes}.")
    for package in ("jax", _LIBRARIES[library]):
        if importlib.util.find_spec(package) is None:
            raise MissingExtraError(
                f'{env_id} needs {package}, which is not installed: pip install "sb3-hybrid-grpo[jax]" brings JAX and gymnax. '
                "Brax, MuJoCo Playground, jumanji and pgx are `pip install brax`, `playground`, `jumanji` and `pgx`."
            )
    module = importlib.import_module(f"{__name__}.from_{library}")
    env: FunctionalEnv = module.make(name)
    return env
