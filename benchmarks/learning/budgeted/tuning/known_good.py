"""Settings that are known to work, with which every study begins: the same for PPO and Hybrid GRPO."""

from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.learning.budgeted.tuning.search_space import search_space

# SB3's defaults
_PPO = {
    "learning_rate": 3e-4,
    "schedule": "constant",
    "rollout": 2048,
    "n_envs": 1,
    "batch_size": 64,
    "n_epochs": 10,
    "one_minus_gamma": 0.01,
    "one_minus_lambda": 0.05,
    "clip_range": 0.2,
    "ent_coef": 1e-6,
    "max_grad_norm": 0.5,
    "normalize": False,
    "width": 64,
    "activation": "tanh",
    "kl_control": "none",
    "kl": 0.02,
    "max_learning_rate": 1e-2,
    "log_std_init": 0.0,
    "noise_together": False,
}
# The RL Zoo's for HalfCheetah, whose networks and normalisation Hopper and others have, too
_ZOO = {
    **_PPO,
    "learning_rate": 2.0633e-5,
    "rollout": 512,
    "n_epochs": 20,
    "one_minus_gamma": 0.02,
    "one_minus_lambda": 0.08,
    "clip_range": 0.1,
    "ent_coef": 4e-4,
    "max_grad_norm": 0.8,
    "normalize": True,
    "width": 256,
    "activation": "relu",
    "log_std_init": -2.0,
}
_SMALL = {**_ZOO, "learning_rate": 6e-5, "rollout": 128}
# Several environments share the costs of a step.
_EIGHT = {
    **_SMALL,
    "n_envs": 8,
    "learning_rate": 3e-4,
    "n_epochs": 10,
    "clip_range": 0.2,
    "width": 64,
    "log_std_init": -1.0,
    "kl_control": "desired",
}
# The RL Zoo's for Swimmer
_SWIMMER = {
    **_PPO,
    "learning_rate": 6e-4,
    "rollout": 4096,
    "n_envs": 4,
    "batch_size": 256,
    "one_minus_gamma": 1e-4,
    "one_minus_lambda": 0.02,
    "normalize": True,
}
# The RL Zoo's for Acrobot and CartPole
_ACROBOT = {**_PPO, "rollout": 4096, "n_envs": 16, "n_epochs": 4, "one_minus_lambda": 0.06, "normalize": True}
_CARTPOLE = {
    **_PPO,
    "learning_rate": 1e-3,
    "schedule": "linear",
    "rollout": 256,
    "n_envs": 8,
    "batch_size": 256,
    "n_epochs": 20,
    "one_minus_gamma": 0.02,
    "one_minus_lambda": 0.2,
}
# The usual for games
_GAMES = {**_PPO, "learning_rate": 2.5e-4, "rollout": 1024, "n_envs": 8, "batch_size": 256, "n_epochs": 4, "ent_coef": 0.01}
_SMALL_DISCRETE = {**_PPO, "rollout": 128, "normalize": True, "kl_control": "target"}

KNOWN_GOOD: Mapping[str, Sequence[Mapping[str, Any]]] = {
    "continuous": (
        {**_SMALL, "kl_control": "target"},
        _SMALL,
        _ZOO,
        _PPO,
        _SWIMMER,
        {**_SMALL, "learning_rate": 1.5e-4, "width": 64, "log_std_init": -1.0, "kl_control": "desired"},
        {**_EIGHT, "rollout": 256},
        {**_EIGHT, "rollout": 1024, "activation": "tanh", "log_std_init": 0.0},
    ),
    "discrete": (
        _SMALL_DISCRETE,
        {**_SMALL_DISCRETE, "kl_control": "desired"},
        _ACROBOT,
        _CARTPOLE,
        _GAMES,
        _PPO,
        {**_SMALL_DISCRETE, "rollout": 256, "n_envs": 8, "learning_rate": 1e-3, "ent_coef": 0.01, "kl_control": "desired"},
    ),
}

_HYBRID = {
    "n_samples": 4,
    "branch_horizon": 8,
    "branch_lambda": 1.0,
    "branch_fraction": 1.0,
    "tail_coef": 0.0,
    "refit_critic": True,
    "actor_limit": "0.005",
    "natural": False,
}
# The class's default
_TWO_SAMPLES = {**_HYBRID, "n_samples": 2}

WITHOUT_BRANCHES: Mapping[str, Any] = {
    **_HYBRID,
    "n_samples": 1,
    "branch_horizon": 1,
    "tail_coef": 1.0,
    "refit_critic": False,
    "actor_limit": "none",
}
"""With these Hybrid GRPO is PPO, in its own loop and with its own updates."""

TWO_ACTIONS: Mapping[str, Any] = {**WITHOUT_BRANCHES, "n_samples": 2, "branch_horizon": 2}
"""The cheapest branches that brought something: the second action is followed for two steps."""

CHEAP: Sequence[Mapping[str, Any]] = (
    WITHOUT_BRANCHES,
    TWO_ACTIONS,
    {**_HYBRID, "n_samples": 4, "branch_horizon": 1, "tail_coef": 1.0, "refit_critic": False, "actor_limit": "0.5"},
    {**_HYBRID, "n_samples": 2, "branch_fraction": 0.25, "refit_critic": False, "actor_limit": "none"},
)
"""Own settings of Hybrid GRPO with which a step costs about what one of PPO costs."""


# Trust regions, as TRPO has them by default: long rollouts, a long horizon, and steps that are limited by their KL divergence
_TRUST = {
    **_PPO,
    "learning_rate": 1e-3,
    "n_envs": 4,
    "batch_size": 128,
    "n_epochs": 4,
    "normalize": True,
    "kl_control": "desired",
    "kl": 0.01,
}
# What 25 seconds have found for discrete actions: for PPO, and for Hybrid GRPO without branches
_SHORT_DISCRETE = {
    **_PPO,
    "learning_rate": 1.5e-3,
    "rollout": 256,
    "n_envs": 16,
    "n_epochs": 1,
    "one_minus_gamma": 0.02,
    "one_minus_lambda": 0.02,
    "clip_range": 0.14,
    "max_grad_norm": 0.95,
    "normalize": True,
}
_LONG_DISCRETE = {
    **_SHORT_DISCRETE,
    "learning_rate": 5e-4,
    "rollout": 4096,
    "batch_size": 128,
    "n_epochs": 2,
    "one_minus_gamma": 8e-3,
    "one_minus_lambda": 0.23,
    "clip_range": 0.29,
    "max_grad_norm": 0.36,
}
_TRUST_DISCRETE = {**_TRUST, "n_envs": 16}
# What was best for PPO in minutes, when it was repeated
_REPEATED_BEST_OF_PPO = {
    **_GAMES,
    "normalize": True,
    "n_envs": 16,
    "rollout": 2048,
    "one_minus_lambda": 0.1,
    "kl_control": "desired",
}
KNOWN_GOOD_IN_MINUTES: Mapping[str, Sequence[Mapping[str, Any]]] = {
    "continuous": (
        _TRUST,
        {**_TRUST, "n_epochs": 10, "kl": 0.02, "batch_size": 64},
        {**_TRUST, "n_envs": 16},
        {**_TRUST, "n_epochs": 10, "kl": 0.02, "batch_size": 64, "n_envs": 16},
        {**_TRUST, "n_envs": 16, "noise_together": True},
        {**_TRUST, "one_minus_gamma": 1e-3, "one_minus_lambda": 0.02},
        {**_TRUST, "rollout": 1024, "log_std_init": -1.0, "width": 128},
        {**_TRUST, "rollout": 4096, "n_envs": 8, "one_minus_gamma": 5e-3},
        {**_EIGHT, "rollout": 1024, "activation": "tanh", "log_std_init": 0.0},
    ),
    "discrete": (
        _SHORT_DISCRETE,
        _TRUST_DISCRETE,
        _LONG_DISCRETE,
        {**_GAMES, "normalize": True},
        {**_TRUST_DISCRETE, "one_minus_lambda": 0.2, "kl": 0.03},
        _REPEATED_BEST_OF_PPO,
        {**_SHORT_DISCRETE, "n_epochs": 2, "width": 128},
        {**_LONG_DISCRETE, "rollout": 1024, "learning_rate": 1e-3},
        {**_TRUST_DISCRETE, "one_minus_lambda": 0.2, "kl": 0.03, "rollout": 1024},
        {**_TRUST_DISCRETE, "one_minus_lambda": 0.1, "kl": 0.03},
        {**_TRUST_DISCRETE, "one_minus_lambda": 0.2, "kl": 0.06},
        {**_TRUST_DISCRETE, "one_minus_lambda": 0.2, "kl": 0.03, "ent_coef": 0.01},
    ),
}
"""Where a training takes minutes."""

_NATURAL_SHARED = {
    **_TRUST,
    "learning_rate": 3e-3,
    "rollout": 1024,
    "clip_range": 0.4,
    "max_grad_norm": 5.0,
    "kl_control": "none",
    "kl": 0.02,
}
# Settings of 25 seconds, which see less far
_NATURAL_SHORT = {
    **_NATURAL_SHARED,
    "rollout": 512,
    "one_minus_gamma": 0.0148,
    "one_minus_lambda": 0.164,
    "kl": 0.04,
    "log_std_init": -2.1,
}
# Between them
_NATURAL_BETWEEN = {**_NATURAL_SHARED, "kl": 0.03, "one_minus_lambda": 0.1, "log_std_init": -1.0}
NATURAL: Sequence[Mapping[str, Any]] = (
    {**_NATURAL_SHARED, **WITHOUT_BRANCHES, "natural": True},
    {**_NATURAL_SHORT, **TWO_ACTIONS, "natural": True},
    {**_NATURAL_BETWEEN, **TWO_ACTIONS, "natural": True},
    {**_NATURAL_SHORT, **WITHOUT_BRANCHES, "natural": True, "one_minus_gamma": 0.005, "log_std_init": -1.0},
    {**_NATURAL_BETWEEN, **WITHOUT_BRANCHES, "natural": True},
    {**_NATURAL_BETWEEN, **TWO_ACTIONS, "natural": True, "n_epochs": 8},
    {**_NATURAL_BETWEEN, **TWO_ACTIONS, "natural": True, "rollout": 2048},
    {**_NATURAL_BETWEEN, **TWO_ACTIONS, "natural": True, "log_std_init": -0.5, "one_minus_lambda": 0.07},
    {**_NATURAL_BETWEEN, **TWO_ACTIONS, "natural": True, "branch_horizon": 4, "branch_fraction": 0.5},
    {**_NATURAL_SHARED, **TWO_ACTIONS, "natural": True},
)
"""Natural-gradient steps, for continuous actions: few states, a large divergence, and a critic that follows quickly."""

_NOISE_OF_ONE = {"log_std_init": 0.0, "noise_together": True}
NATURAL_HELD: Sequence[Mapping[str, Any]] = (
    {**_NATURAL_BETWEEN, **WITHOUT_BRANCHES, "natural": True},
    {**_NATURAL_BETWEEN, **TWO_ACTIONS, "natural": True},
    {**_NATURAL_BETWEEN, **WITHOUT_BRANCHES, "natural": True, "log_std_init": -0.5},
    {**_NATURAL_BETWEEN, **WITHOUT_BRANCHES, "natural": True, "log_std_init": 0.0},
    {**_NATURAL_BETWEEN, **WITHOUT_BRANCHES, "natural": True, "n_envs": 16},
    {**_NATURAL_BETWEEN, **WITHOUT_BRANCHES, "natural": True, "n_envs": 16, "schedule": "linear"},
    {**_NATURAL_BETWEEN, **WITHOUT_BRANCHES, "natural": True, "n_envs": 16, "schedule": "linear", **_NOISE_OF_ONE},
)
"""What came of them once the spread of actions had its own pace, and a task was to be held."""

_NATURAL_DISCRETE = {**_NATURAL_SHARED, **WITHOUT_BRANCHES, "natural": True, "n_envs": 16, "rollout": 2048, "kl": 0.03}
NATURAL_DISCRETE: Sequence[Mapping[str, Any]] = (
    {**_NATURAL_DISCRETE, "one_minus_lambda": 0.1},
    {**_NATURAL_DISCRETE, "kl": 0.01},
    {**_NATURAL_DISCRETE, **TWO_ACTIONS, "natural": True, "one_minus_lambda": 0.1},
    {**_NATURAL_DISCRETE, "one_minus_lambda": 0.2, "rollout": 1024},
    {**_NATURAL_DISCRETE, "one_minus_lambda": 0.1, "kl": 0.06},
    {**_NATURAL_DISCRETE, "one_minus_lambda": 0.1, "ent_coef": 0.01},
    {**_NATURAL_DISCRETE, "one_minus_lambda": 0.1, "rollout": 4096, "kl": 0.06},
    {**_NATURAL_DISCRETE, "one_minus_lambda": 0.1, "learning_rate": 1e-3, "width": 128},
    {**_NATURAL_DISCRETE, "one_minus_lambda": 0.2},
    {**_NATURAL_DISCRETE, "one_minus_lambda": 0.1, "rollout": 1024, "kl": 0.02},
    {**_NATURAL_DISCRETE, "one_minus_lambda": 0.2, "rollout": 1024, "ent_coef": 0.01},
    {**_NATURAL_DISCRETE, **TWO_ACTIONS, "natural": True, "one_minus_lambda": 0.2, "rollout": 1024, "kl": 0.02},
)
"""Natural-gradient steps, for discrete actions."""

_FIRST_IN_MINUTES = {
    "continuous": NATURAL_HELD,
    "discrete": (*NATURAL_DISCRETE, {**_REPEATED_BEST_OF_PPO, **WITHOUT_BRANCHES}),
}


def first_trials(family: str, algorithm: str, in_minutes: bool = False) -> list[dict[str, Any]]:
    """
    List the parameters of the first trials of a study.

    :param family: name of the family of tasks
    :param algorithm: ``"ppo"`` or ``"hybrid_grpo"``
    :param in_minutes: whether trainings take minutes rather than half of one
    :return: parameters, small rollouts with four samples and long ones with two; in minutes natural-gradient steps, and then
        alternately without branches and with the cheapest ones
    """
    known = search_space(family, algorithm)
    if in_minutes:
        pairs = [(shared, (WITHOUT_BRANCHES, TWO_ACTIONS)[i % 2]) for i, shared in enumerate(KNOWN_GOOD_IN_MINUTES[family])]
    else:
        pairs = [(shared, _HYBRID if shared["rollout"] < 512 else _TWO_SAMPLES) for shared in KNOWN_GOOD[family]]
    trials = [{**shared, **own} for shared, own in pairs]
    if in_minutes and algorithm == "hybrid_grpo":
        trials = [*_FIRST_IN_MINUTES[family], *trials, *(NATURAL if family == "continuous" else ())]
    return [{name: value for name, value in trial.items() if name in known} for trial in trials]
