"""The hyperparameters of a model as numbers and texts."""

import inspect
import re
from collections.abc import Iterator, Mapping
from contextlib import suppress
from typing import Any, TypeAlias

import numpy as np
import torch as th
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.utils import ConstantSchedule, FloatSchedule, LinearSchedule
from stable_baselines3.common.vec_env import VecEnv

Hyperparameter: TypeAlias = bool | str | float | None

# Gymnasium's text of an environment: <TimeLimit<CartPoleEnv<CartPole-v1>>>, or <Walk instance>, which has no id.
_ID = re.compile(r"\w<([^<>\s]+)>+$")
_NO_HYPERPARAMETERS = {"self", "policy", "env", "tensorboard_log", "verbose", "_init_setup_model"}


def hyperparameters(model: BaseAlgorithm) -> dict[str, Hyperparameter]:
    """
    List the arguments of a model's constructor as they are now, with the names of its algorithm, policy and environment.

    :param model: any algorithm of SB3
    :return: numbers, texts and ``None`` by their names; those of dictionaries are like ``policy_kwargs.net_arch``
    """
    values: dict[str, Hyperparameter] = {"algorithm": type(model).__name__, "policy": model.policy_class.__name__}
    env = model.get_env()
    if env is not None:
        values["n_envs"] = env.num_envs
        values["env"] = _id_of(env)
    for name in inspect.signature(type(model).__init__).parameters:
        if name not in _NO_HYPERPARAMETERS and hasattr(model, name):
            values.update(_entries(name, getattr(model, name)))
    return values


def _id_of(env: VecEnv) -> str | None:
    if hasattr(env, "envs"):
        return getattr(env.envs[0].spec, "id", None)
    # As text: a specification may hold functions, with which no worker can answer.
    with suppress(Exception):
        found = _ID.search(str(env.env_method("__str__", indices=0)[0]))
        return found.group(1) if found else None
    return None


def _entries(name: str, value: Any) -> Iterator[tuple[str, Hyperparameter]]:
    if isinstance(value, Mapping):
        for key, item in value.items():
            yield from _entries(f"{name}.{key}", item)
    else:
        yield name, _described(value)


def _described(value: Any) -> Hyperparameter:
    if isinstance(value, FloatSchedule):
        return _described(value.value_schedule)
    if isinstance(value, ConstantSchedule):
        return float(value.val)
    if isinstance(value, np.generic):
        value = value.item()
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, list | tuple):
        return str([_described(item) for item in value])
    if isinstance(value, LinearSchedule | th.device):
        return str(value)
    # The text of other objects has their address in it, and changes from run to run.
    return str(getattr(value, "__qualname__", type(value).__qualname__))
