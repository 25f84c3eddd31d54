"""
What learning experiments run, read from small files: configurations, environments, and suites of both.

``configs/NAME.json`` holds an algorithm and arguments of its constructor; ``suites/NAME.json`` names configurations and
environments with their committed steps. All algorithms share PPO's defaults and the RL Zoo's entries of PPO, which are in
``sb3_hybrid_grpo.compare.settings`` and, for more environments, in ``environments.json``.
"""

import importlib
import inspect
import json
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import gymnasium as gym
from sb3_contrib import TRPO, MaskablePPO, RecurrentPPO
from stable_baselines3 import PPO
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm

from benchmarks import HERE
from sb3_hybrid_grpo import GRPO, HybridGRPO
from sb3_hybrid_grpo.compare.settings import HYPERPARAM_DEFAULTS, ZOO_HYPERPARAMS

SUITES = sorted(path.stem for path in (HERE / "suites").glob("*.json"))
ALGORITHMS: Mapping[str, type[OnPolicyAlgorithm]] = {
    "ppo": PPO,
    "trpo": TRPO,
    "hybrid_grpo": HybridGRPO,
    "grpo": GRPO,
    "maskable_ppo": MaskablePPO,
    "maskable_hybrid_grpo": HybridGRPO,
    "recurrent_ppo": RecurrentPPO,
    "recurrent_hybrid_grpo": HybridGRPO,
}
POLICIES = {
    "maskable_hybrid_grpo": "MaskableMlpPolicy",
    "recurrent_ppo": "MlpLstmPolicy",
    "recurrent_hybrid_grpo": "MlpLstmPolicy",
}
"""Policies that are no ``"MlpPolicy"``."""

Settings = dict[str, Any]

_ENVIRONMENT_DEFAULTS = {"n_envs": 1, "env_wrapper": None}
# On MuJoCo the suites compare with PPO's own defaults.
_ZOO = {name: ZOO_HYPERPARAMS[name] for name in ("CartPole-v1", "Pendulum-v1")}
_UNRECORDED = (
    *("policy", "env", "seed", "device", "verbose", "stats_window_size", "tensorboard_log", "_init_setup_model"),
    *("rollout_buffer_class", "rollout_buffer_kwargs"),
)


class Environment(NamedTuple):
    """
    An environment in a suite. Rewards are disturbed in training only.

    :param id: environment id, after the module that registers it, if any, and a colon
    :param steps: committed steps to train for, rounded up to whole rollouts
    :param reward_scale: factor of the rewards
    :param reward_noise: scale of the heavy-tailed noise added to the rewards
    :param normalize: whether ``VecNormalize`` is asked for where the environment's entry does not
    """

    id: str
    steps: int
    reward_scale: float = 1.0
    reward_noise: float = 0.0
    normalize: bool = False

    @property
    def name(self) -> str:
        """Name in tables and rows."""
        scale = "" if self.reward_scale == 1 else f" rewards × {self.reward_scale:g}"
        noise = "" if self.reward_noise == 0 else f" noise × {self.reward_noise:g}"
        normalized = " normalised" if self.normalize else ""
        return self.id.rpartition(":")[2] + scale + noise + normalized

    def undisturbed(self) -> "Environment":
        """Return the same environment with its own rewards."""
        return self._replace(reward_scale=1.0, reward_noise=0.0, normalize=False)

    def is_installed(self) -> bool:
        """Tell whether Gymnasium knows the environment, once the module before the colon of its id is imported."""
        module, _, env_id = self.id.rpartition(":")
        try:
            if module:
                importlib.import_module(module)
            gym.spec(env_id)
        except (gym.error.Error, ModuleNotFoundError):
            return False
        return True


class Suite(NamedTuple):
    """
    An experiment.

    :param name: its name
    :param question: what it answers
    :param environments: where to train
    :param configs: names of the configurations to train
    :param evaluations: number of evaluations of a run, beside the one before it
    """

    name: str
    question: str
    environments: tuple[Environment, ...]
    configs: tuple[str, ...]
    evaluations: int


class Run(NamedTuple):
    """
    One training.

    :param config: name of the configuration
    :param environment: where to train
    :param seed: seed of the run
    """

    config: str
    environment: Environment
    seed: int

    @property
    def name(self) -> str:
        """Name for people."""
        return f"{self.config} {self.environment.name} seed {self.seed}"


def load_suite(name: str) -> Suite:
    """
    Read a suite.

    :param name: its name, or the path of its file
    :return: the suite
    """
    path = Path(name) if name.endswith(".json") else HERE / "suites" / f"{name}.json"
    content = json.loads(path.read_text(encoding="utf-8"))
    return Suite(
        name=path.stem,
        question=content["question"],
        environments=tuple(Environment(**environment) for environment in content["environments"]),
        configs=tuple(content["configs"]),
        evaluations=content["evaluations"],
    )


def runs_of(suite: Suite, seeds: int) -> Iterator[Run]:
    """
    List the runs of a suite, all of a seed before the next seed.

    :param suite: the suite
    :param seeds: number of seeds
    :return: its runs in environments that are installed
    """
    installed = [environment for environment in suite.environments if environment.is_installed()]
    for seed in range(seeds):
        for environment in installed:
            for config in suite.configs:
                yield Run(config, environment, seed)


def settings_of(config: str, environment: Environment) -> Settings:
    """
    Spell out a configuration in an environment: what is not in its file is in the environment's entry or a default.

    :param config: name of the configuration
    :param environment: where to train
    :return: everything that determines a training but the seed, ready for JSON
    """
    content = json.loads((HERE / "configs" / f"{config}.json").read_text(encoding="utf-8"))
    entries = _ZOO | json.loads((HERE / "environments.json").read_text(encoding="utf-8"))
    entry = dict(entries.get(environment.id.rpartition(":")[2], {}))
    own = {name: entry.pop(name) for name in ("n_envs", "normalize", "env_wrapper") if name in entry}
    settings = {"algorithm": content["algorithm"], **_ENVIRONMENT_DEFAULTS, **environment._asdict(), **own}
    return settings | _arguments(content["algorithm"], entry, content["kwargs"])


def arguments_of(settings: Settings) -> dict[str, Any]:
    """
    Pick the constructor's arguments.

    :param settings: settings of a run
    :return: arguments of its algorithm
    """
    known = inspect.signature(ALGORITHMS[settings["algorithm"]]).parameters
    return {name: value for name, value in settings.items() if name in known}


def agree(recorded: Settings, wanted: Settings) -> bool:
    """
    Tell whether a row was made with the settings that are wanted now. A row outlives the introduction of an option, which was
    at its default before, and its removal.

    :param recorded: settings of a row
    :param wanted: settings of a run
    :return: whether nothing differs that both have
    """
    before = _ENVIRONMENT_DEFAULTS | Environment._field_defaults | _defaults(wanted["algorithm"]) | recorded
    return all(before[name] == value for name, value in wanted.items())


@cache
def _defaults(algorithm: str) -> Mapping[str, Any]:
    return {
        name: _as_read(parameter.default) for name, parameter in inspect.signature(ALGORITHMS[algorithm]).parameters.items()
    }


def _as_read(value: Any) -> Any:
    """Return a value as it is when it has been written to JSON and read."""
    return list(value) if isinstance(value, tuple) else value


def _arguments(algorithm: str, hyperparams: Mapping[str, Any], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    known = inspect.signature(ALGORITHMS[algorithm]).parameters
    unknown = kwargs.keys() - known.keys()
    if unknown:
        raise ValueError(f"{algorithm} has no arguments {', '.join(sorted(unknown))}")
    defaults = {name: value for name, value in _defaults(algorithm).items() if name not in _UNRECORDED}
    if algorithm == "trpo":
        defaults |= {name: HYPERPARAM_DEFAULTS[name] for name in ("learning_rate", "batch_size")}
        # Its critic is what TRPO trains in epochs.
        hyperparams = {**hyperparams, "n_critic_updates": hyperparams.get("n_epochs", HYPERPARAM_DEFAULTS["n_epochs"])}
    return defaults | {name: value for name, value in hyperparams.items() if name in known} | dict(kwargs)
