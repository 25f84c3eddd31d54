"""What is compared on the claim tasks: tuned Hybrid GRPO and PPO, and everything else that a user could pick."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from sb3_contrib import QRDQN, TQC, TRPO, CrossQ
from stable_baselines3 import DQN, SAC
from stable_baselines3.common.base_class import BaseAlgorithm

from benchmarks.learning.budgeted.adaptive_ppo import AdaptivePPO
from benchmarks.learning.budgeted.tuning.known_good import TWO_ACTIONS, WITHOUT_BRANCHES
from benchmarks.learning.budgeted.tuning.search_space import Settings, settings_of
from sb3_hybrid_grpo import HybridGRPO

# The last one is in rows alone: rollouts of 2,048 states on the discrete tasks, which another set took the place of.
PPO_VARIANTS = ("ppo", "ppo_1", "ppo_8", "ppo_16", "ppo_2048")
_FEWEST_STEPS = 16
# A budget of minutes never fills the million transitions that SB3 would keep.
_REPLAY: Mapping[str, Any] = {"buffer_size": 100_000}
# SB3's default is 10,000, a good part of these budgets.
_DQN: Mapping[str, Any] = {**_REPLAY, "target_update_interval": 1_000}


class Method(NamedTuple):
    """
    An algorithm with its settings.

    :param algorithm: its class
    :param settings: the settings; arguments that they lack have the algorithm's defaults
    """

    algorithm: type[BaseAlgorithm]
    settings: Settings

    @property
    def gamma(self) -> float:
        """Discount factor."""
        return float(self.settings.arguments.get("gamma", 0.99))


def methods_of(family: str, tuned: Mapping[str, Mapping[str, Any]]) -> dict[str, Method]:
    """
    List what is compared in a family of tasks.

    :param family: ``"continuous"`` or ``"discrete"``
    :param tuned: parameters that tuning has found for ``"ppo"`` and ``"hybrid_grpo"`` in this family
    :return: methods by name
    """
    methods = {"hybrid_grpo": _tuned(HybridGRPO, tuned["hybrid_grpo"]), "ppo": _tuned(AdaptivePPO, tuned["ppo"])}
    for name, own in ("no_branches", WITHOUT_BRANCHES), ("two_actions", TWO_ACTIONS):
        methods[name] = _tuned(HybridGRPO, {**tuned["ppo"], **own})
    methods |= {f"ppo_{n_envs}": _tuned(AdaptivePPO, in_parallel(tuned["ppo"], n_envs)) for n_envs in (1, 8, 16)}
    if tuned["hybrid_grpo"].get("natural"):
        for name, own in ("natural_one", WITHOUT_BRANCHES), ("natural_two", TWO_ACTIONS):
            methods[name] = _tuned(HybridGRPO, {**tuned["hybrid_grpo"], **own, "natural": True})
        if tuned["hybrid_grpo"]["schedule"] == "constant":  # sb3-contrib's TRPO has no schedule
            methods["trpo_tuned"] = _as_trpo(methods["natural_one"])
    if family == "continuous":
        # The RL Zoo normalises for TRPO on MuJoCo, and not for the others.
        methods["trpo"] = Method(TRPO, Settings(1, True, {}))
        return methods | {"sac": _plain(SAC, _REPLAY), "tqc": _plain(TQC, _REPLAY), "crossq": _plain(CrossQ, _REPLAY)}
    return methods | {"trpo": _plain(TRPO, {}), "dqn": _plain(DQN, _DQN), "qrdqn": _plain(QRDQN, _DQN)}


def _as_trpo(method: Method) -> Method:
    """Have TRPO do what ``HybridGRPO`` does without branches: the same natural step, and as many updates of the critic."""
    ours = method.settings.arguments
    shared = ("learning_rate", "n_steps", "batch_size", "gamma", "gae_lambda", "policy_kwargs")
    arguments = {
        "target_kl": ours["trust_region"],
        "n_critic_updates": ours["n_epochs"],
        **{name: ours[name] for name in shared},
    }
    return Method(TRPO, method.settings._replace(arguments=arguments))


def in_parallel(params: Mapping[str, Any], n_envs: int) -> dict[str, Any]:
    """
    Spread a rollout over environments: it stays as long, or becomes as short as they allow.

    :param params: parameters of a trial
    :param n_envs: number of environments
    :return: the same for so many environments
    """
    return {**params, "n_envs": n_envs, "rollout": max(params["rollout"], n_envs * _FEWEST_STEPS)}


def _tuned(algorithm: type[BaseAlgorithm], params: Mapping[str, Any]) -> Method:
    return Method(algorithm, settings_of(params))


def _plain(algorithm: type[BaseAlgorithm], arguments: Mapping[str, Any]) -> Method:
    return Method(algorithm, Settings(1, False, dict(arguments)))
