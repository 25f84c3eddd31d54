"""What a comparison runs: algorithms, shared hyperparameters, and how both become a model."""

import ast
import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch as th
from gymnasium import spaces
from stable_baselines3 import PPO
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from stable_baselines3.common.preprocessing import is_image_space
from stable_baselines3.common.utils import LinearSchedule
from stable_baselines3.common.vec_env import VecEnv, VecNormalize

from sb3_hybrid_grpo import GRPO, PAPER_SETTINGS, FunctionalVecEnv, HybridGRPO, make_parallel_env
from sb3_hybrid_grpo.branching.functional import is_functional_id

ALGORITHMS: Mapping[str, tuple[type[OnPolicyAlgorithm], Mapping[str, Any]]] = {
    "hybrid_grpo": (HybridGRPO, {}),
    "ppo": (PPO, {}),
    "grpo": (GRPO, {}),
    "paper": (HybridGRPO, PAPER_SETTINGS),
}

# PPO's entries in the RL Zoo. Every other environment gets PPO's own defaults and a single copy of itself.
# Activation functions are named as in ``torch.nn``.
ZOO_HYPERPARAMS: Mapping[str, Mapping[str, Any]] = {
    "Pendulum-v1": {
        "n_envs": 4,
        "n_steps": 1024,
        "gae_lambda": 0.95,
        "gamma": 0.9,
        "n_epochs": 10,
        "ent_coef": 0.0,
        "learning_rate": 1e-3,
        "clip_range": 0.2,
        "use_sde": True,
        "sde_sample_freq": 4,
    },
    "CartPole-v1": {
        "n_envs": 8,
        "n_steps": 32,
        "batch_size": 256,
        "gae_lambda": 0.8,
        "gamma": 0.98,
        "n_epochs": 20,
        "ent_coef": 0.0,
        "learning_rate": "lin_0.001",
        "clip_range": "lin_0.2",
    },
    "HalfCheetah-v5": {
        "normalize": True,
        "n_steps": 512,
        "batch_size": 64,
        "n_epochs": 20,
        "gamma": 0.98,
        "gae_lambda": 0.92,
        "learning_rate": 2.0633e-05,
        "clip_range": 0.1,
        "ent_coef": 0.000401762,
        "vf_coef": 0.58096,
        "max_grad_norm": 0.8,
        "policy_kwargs": {
            "log_std_init": -2,
            "ortho_init": False,
            "activation_fn": "ReLU",
            "net_arch": {"pi": [256, 256], "vf": [256, 256]},
        },
    },
}

_SCHEDULED = ("learning_rate", "clip_range", "clip_range_vf")
_TUNABLE = (
    *("learning_rate", "n_steps", "batch_size", "n_epochs", "gamma", "gae_lambda", "clip_range", "clip_range_vf"),
    *("normalize_advantage", "ent_coef", "vf_coef", "max_grad_norm", "use_sde", "sde_sample_freq", "target_kl"),
    "policy_kwargs",
)
HYPERPARAM_DEFAULTS: Mapping[str, Any] = {
    "n_envs": 1,
    "normalize": False,
    **{name: inspect.signature(PPO).parameters[name].default for name in _TUNABLE},
}


class Run(NamedTuple):
    """
    One training run of a comparison.

    :param algo: name of the algorithm, a key of ``ALGORITHMS``
    :param seed: seed of the run
    """

    algo: str
    seed: int

    @property
    def name(self) -> str:
        """Stem of the files that belong to this run."""
        return f"{self.algo}_{self.seed}"


@dataclass(frozen=True)
class Settings:
    """
    What all runs of a comparison share.

    :param env: environment id
    :param timesteps: committed steps to train for, rounded up to whole rollouts by SB3
    :param n_samples: actions sampled per state by the algorithms that sample several, ``None`` for their own defaults
    :param hyperparams: arguments of PPO's constructor, ``n_envs``, and ``normalize`` for a ``VecNormalize``
    :param eval_every: committed steps between two evaluations
    :param eval_episodes: episodes per evaluation
    :param device: device to train on
    :param engine: what carries the training environments, see ``make_parallel_env``; ``None`` for a single process
    :param workers: number of workers of each run
    """

    env: str
    timesteps: int
    n_samples: int | None
    hyperparams: Mapping[str, Any]
    eval_every: int
    eval_episodes: int
    device: str
    engine: str | None = None
    workers: int | None = None


def parse_hyperparam(text: str) -> tuple[str, Any]:
    """
    Read ``key=value``; the value is a Python literal, or ``lin_x`` for a schedule that falls linearly from x to 0.

    :param text: what the user wrote
    :return: name and value
    :raises ValueError: if the name is unknown or the value has the wrong type
    """
    name, separator, literal = text.partition("=")
    if not separator:
        raise ValueError(f"{text!r} is not of the form key=value")
    if name not in HYPERPARAM_DEFAULTS:
        raise ValueError(f"unknown hyperparameter {name!r}; valid ones: {', '.join(HYPERPARAM_DEFAULTS)}")
    if name in _SCHEDULED and literal.startswith("lin_"):
        float(literal.removeprefix("lin_"))
        return name, literal
    try:
        value = ast.literal_eval(literal)
    except (ValueError, SyntaxError):
        raise ValueError(f"the value of {name} is not a Python literal: {literal!r}") from None
    default = HYPERPARAM_DEFAULTS[name]
    expected = (int, float) if isinstance(default, float) else (object if default is None else type(default),)
    if not isinstance(value, expected) or (isinstance(value, bool) and not isinstance(default, bool)):
        raise ValueError(f"{name} must be of type {type(default).__name__}, not {value!r}")
    return name, value


def make_env(
    env_id: str, n_envs: int, seed: int | None = None, engine: str | None = None, workers: int | None = None
) -> VecEnv:
    """
    Make environments.

    :param env_id: id of one of Gymnasium's, or of a functional one
    :param n_envs: number of environments
    :param seed: seed of the first one
    :param engine: what carries them, see ``make_parallel_env``; ``None`` for this process
    :param workers: number of workers
    :return: the vectorised environment
    """
    if engine is not None:
        return make_parallel_env(env_id, n_envs, workers, engine, seed)
    return FunctionalVecEnv(env_id, n_envs, seed) if is_functional_id(env_id) else make_vec_env(env_id, n_envs, seed)


def make_envs(settings: Settings, seed: int) -> tuple[VecEnv, VecEnv]:
    """
    Make the environments of a run.

    :param settings: settings of the comparison
    :param seed: seed of the run
    :return: those to train in, and those to evaluate in
    """
    hyperparams = {**HYPERPARAM_DEFAULTS, **settings.hyperparams}
    env = make_env(settings.env, hyperparams["n_envs"], seed, settings.engine, settings.workers)
    eval_env = make_env(settings.env, settings.eval_episodes)
    if not hyperparams["normalize"]:
        return env, eval_env
    return VecNormalize(env, gamma=hyperparams["gamma"]), VecNormalize(eval_env, training=False, norm_reward=False)


def build_model(settings: Settings, run: Run, env: VecEnv) -> OnPolicyAlgorithm:
    """
    Make the model of a run. Each constructor receives those of the shared settings that it knows.

    :param settings: settings of the comparison
    :param run: algorithm and seed
    :param env: the training environment
    :return: the untrained model
    """
    algorithm, preset = ALGORITHMS[run.algo]
    arguments = {name: _schedule(value) for name, value in settings.hyperparams.items()}
    if settings.n_samples is not None:
        arguments["n_samples"] = settings.n_samples
    if isinstance(arguments.get("policy_kwargs"), dict):
        arguments["policy_kwargs"] = _policy_kwargs(arguments["policy_kwargs"])
    arguments |= {"seed": run.seed, "device": settings.device, **preset}
    known = inspect.signature(algorithm).parameters
    policy = _policy_for(env.observation_space)
    return algorithm(policy=policy, env=env, **{name: value for name, value in arguments.items() if name in known})


def _policy_kwargs(kwargs: Mapping[str, Any]) -> dict[str, Any]:
    activation = kwargs.get("activation_fn")
    return {**kwargs, "activation_fn": getattr(th.nn, activation)} if isinstance(activation, str) else dict(kwargs)


def _schedule(value: Any) -> Any:
    if isinstance(value, str):
        return LinearSchedule(float(value.removeprefix("lin_")), 0.0, 1.0)
    return value


def _policy_for(observation_space: spaces.Space[Any]) -> str:
    if isinstance(observation_space, spaces.Dict):
        return "MultiInputPolicy"
    return "CnnPolicy" if is_image_space(observation_space) else "MlpPolicy"
