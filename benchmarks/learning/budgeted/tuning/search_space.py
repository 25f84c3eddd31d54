"""What is tuned: the same for PPO and Hybrid GRPO where both have the argument, and what only Hybrid GRPO has."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from gymnasium import spaces
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from stable_baselines3.common.utils import LinearSchedule
from torch import nn

Params = Mapping[str, Any]

SHARED: Mapping[str, BaseDistribution] = {
    "learning_rate": FloatDistribution(1e-5, 3e-3, log=True),
    "schedule": CategoricalDistribution(["constant", "linear"]),
    "rollout": CategoricalDistribution([64, 128, 256, 512, 1024, 2048, 4096]),
    "n_envs": CategoricalDistribution([1, 2, 4, 8, 16]),
    "batch_size": CategoricalDistribution([32, 64, 128, 256]),
    "n_epochs": IntDistribution(1, 20, log=True),
    "one_minus_gamma": FloatDistribution(1e-4, 0.1, log=True),
    "one_minus_lambda": FloatDistribution(5e-3, 0.3, log=True),
    "clip_range": FloatDistribution(0.1, 0.4),
    "ent_coef": FloatDistribution(1e-6, 0.03, log=True),
    "max_grad_norm": FloatDistribution(0.3, 5.0, log=True),
    "normalize": CategoricalDistribution([False, True]),
    "width": CategoricalDistribution([64, 128, 256]),
    "activation": CategoricalDistribution(["tanh", "relu"]),
    "kl_control": CategoricalDistribution(["none", "target", "desired"]),
    "kl": FloatDistribution(3e-3, 0.1, log=True),
    "max_learning_rate": FloatDistribution(3e-4, 1e-2, log=True),
}
"""
Rollouts are counted in states, all environments together. Linear schedules, of the learning rate and of the divergence of
natural steps, fall to zero with the budget. The greatest learning rate is that of a desired divergence alone.
"""

NOISE_TOGETHER = "noise_together"
"""Whether ``log_std_init`` is that of a whole action's noise, σ, of which each of its D dimensions has σ / √D."""

CONTINUOUS: Mapping[str, BaseDistribution] = {
    "log_std_init": FloatDistribution(-2.5, 0.0),
    NOISE_TOGETHER: CategoricalDistribution([False, True]),
}

OWN: Mapping[str, BaseDistribution] = {
    "n_samples": CategoricalDistribution([1, 2, 3, 4, 6, 8]),
    "branch_horizon": CategoricalDistribution([1, 2, 4, 8, 16]),
    "branch_lambda": FloatDistribution(0.7, 1.0),
    "branch_fraction": CategoricalDistribution([0.25, 0.5, 1.0]),
    "tail_coef": FloatDistribution(0.0, 1.0),
    "refit_critic": CategoricalDistribution([False, True]),
    "actor_limit": CategoricalDistribution(["none", "0.005", "0.05", "0.5"]),
    "natural": CategoricalDistribution([False, True]),
}
"""Arguments of Hybrid GRPO alone. With a natural-gradient step ``kl`` is its divergence, and ``kl_control`` has no meaning."""

RESEARCHED = ("use_sde", "action_selection", "advantage", "reward_transform", "sampling_temperature", "soft_values")
"""Further ones, which are not tuned; PPO has ``use_sde``, too."""

STAGGERED = "staggered"
"""Whether an episode of each environment is cut at a time of its own. Not tuned."""

_SPELT_OUT = ("actor_limit", "natural")
_ACTIVATIONS = {"tanh": nn.Tanh, "relu": nn.ReLU}


class Settings(NamedTuple):
    """
    What parameters of a trial mean.

    :param n_envs: number of environments
    :param normalize: whether they are normalised
    :param arguments: arguments of the algorithm's constructor
    :param noise_together: whether its initial standard deviation is that of all dimensions of an action together
    :param staggered: whether an episode of each environment is cut at a time of its own
    """

    n_envs: int
    normalize: bool
    arguments: dict[str, Any]
    noise_together: bool = False
    staggered: bool = False

    def for_actions(self, space: spaces.Space[Any]) -> dict[str, Any]:
        """
        Spell out the arguments for a task.

        :param space: its action space
        :return: arguments of the algorithm's constructor
        """
        if not self.noise_together:
            return self.arguments
        policy_kwargs = self.arguments["policy_kwargs"]
        each = policy_kwargs["log_std_init"] - np.log(spaces.flatdim(space)) / 2
        return {**self.arguments, "policy_kwargs": {**policy_kwargs, "log_std_init": float(each)}}


def search_space(family: str, algorithm: str) -> dict[str, BaseDistribution]:
    """
    List the parameters of a study.

    :param family: name of the family of tasks
    :param algorithm: ``"ppo"`` or ``"hybrid_grpo"``
    :return: distributions by name
    """
    return {
        **SHARED,
        **(CONTINUOUS if family == "continuous" else {}),
        **(OWN if algorithm == "hybrid_grpo" else {}),
    }


def settings_of(params: Params) -> Settings:
    """
    Spell out a trial.

    :param params: parameters of a study
    :return: the settings that they mean
    """
    rate = params["learning_rate"]
    policy_kwargs: dict[str, Any] = {
        "net_arch": [params["width"]] * 2,
        "activation_fn": _ACTIVATIONS[params["activation"]],
        "ortho_init": params["activation"] == "tanh",
    }
    if "log_std_init" in params:
        policy_kwargs["log_std_init"] = params["log_std_init"]
    arguments: dict[str, Any] = {
        "learning_rate": LinearSchedule(rate, 0.0, 1.0) if params["schedule"] == "linear" else rate,
        "n_steps": max(params["rollout"] // params["n_envs"], 1),
        "batch_size": min(params["batch_size"], params["rollout"]),
        "n_epochs": params["n_epochs"],
        "gamma": 1 - params["one_minus_gamma"],
        "gae_lambda": 1 - params["one_minus_lambda"],
        "clip_range": params["clip_range"],
        "ent_coef": params["ent_coef"],
        "max_grad_norm": params["max_grad_norm"],
        "policy_kwargs": policy_kwargs,
    }
    if params.get("natural"):
        kl = params["kl"]
        arguments["trust_region"] = f"lin_{kl}" if params["schedule"] == "linear" else kl
    elif params["kl_control"] != "none":
        arguments[f"{params['kl_control']}_kl"] = params["kl"]
        if params["kl_control"] == "desired" and "max_learning_rate" in params:
            arguments["learning_rate_bounds"] = (1e-6, params["max_learning_rate"])
    own = (*OWN, *RESEARCHED)
    arguments |= {name: value for name, value in params.items() if name in own and name not in _SPELT_OUT}
    if "actor_limit" in params:
        limit = params["actor_limit"]
        arguments["max_actor_grad_norm"] = None if limit == "none" else float(limit)
    flags = {name: params.get(name, False) for name in (NOISE_TOGETHER, STAGGERED)}
    return Settings(params["n_envs"], params["normalize"], arguments, **flags)
