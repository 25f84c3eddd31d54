"""Group Relative Policy Optimization, the critic-free baseline."""

import inspect
from collections.abc import Mapping
from typing import Any, ClassVar, TypeVar

from stable_baselines3.common.type_aliases import MaybeCallback

from sb3_hybrid_grpo.common import InvalidArgumentError
from sb3_hybrid_grpo.hybrid_grpo import HybridGRPO

SelfGRPO = TypeVar("SelfGRPO", bound="GRPO")

_SETTINGS: Mapping[str, Any] = {
    "advantage": "group_normalized",
    "branch_horizon": 1,
    "refit_critic": False,
    "max_actor_grad_norm": None,
}
_WITHOUT_MEANING = {
    "gae_lambda",
    "clip_range_vf",
    "vf_coef",
    "tail_coef",
    "branch_lambda",
    "branch_fraction",
    "branch_time_limit",
    "action_sampling",
    "sampling_temperature",
    "action_selection",
    "soft_values",
}


def _signature() -> inspect.Signature:
    """Derive the constructor's arguments from those of ``HybridGRPO``."""
    signature = inspect.signature(HybridGRPO.__init__)
    parameters = {
        name: parameter
        for name, parameter in signature.parameters.items()
        if name not in _WITHOUT_MEANING and name not in _SETTINGS
    }
    parameters["n_samples"] = parameters["n_samples"].replace(default=4)
    return signature.replace(parameters=list(parameters.values()))


class GRPO(HybridGRPO):
    """
    Group Relative Policy Optimization (GRPO), on single steps of an environment

    Paper: https://arxiv.org/abs/2402.03300

    The baseline that Hybrid GRPO is compared with: the same N branched actions per state, but no critic. The advantage of
    an action is its transformed reward, normalised within the group of its state. It sees one step ahead only.

    The arguments are those of ``HybridGRPO``, in the same order and with the same meaning, but four samples by default, and
    without ``advantage``, ``tail_coef``, ``gae_lambda``, ``clip_range_vf``, ``vf_coef``, ``branch_horizon``,
    ``branch_lambda``, ``branch_fraction``, ``branch_time_limit``, ``action_sampling``, ``sampling_temperature``,
    ``action_selection``, ``soft_values``, ``refit_critic`` and ``max_actor_grad_norm``. ``gamma`` is used by reward
    transforms only, and ``target_kl`` stops the whole update.

    :param args: see ``HybridGRPO``
    :param kwargs: see ``HybridGRPO``
    :raises InvalidArgumentError: if an argument has a value that cannot work
    :raises UnbranchableEnvError: if N > 1 and the environment cannot be branched exactly
    """

    advantage_names: ClassVar[tuple[str, ...]] = ("group_normalized",)
    uses_critic: ClassVar[bool] = False

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        bound = _SIGNATURE.bind(self, *args, **kwargs)
        bound.apply_defaults()
        del bound.arguments["self"]
        super().__init__(**bound.arguments, **_SETTINGS)

    def _check_arguments(self) -> None:
        super()._check_arguments()
        if self.n_samples == 1:
            raise InvalidArgumentError("GRPO compares the actions of a state: `n_samples` must be at least 2, not 1.")

    def learn(
        self: SelfGRPO,
        total_timesteps: int,
        callback: MaybeCallback = None,
        log_interval: int = 1,
        tb_log_name: str = "GRPO",
        *args: Any,
        **kwargs: Any,
    ) -> SelfGRPO:
        """
        Return a trained model, see ``HybridGRPO.learn``.

        :param total_timesteps: The total number of committed steps to train for
        :param callback: Callback(s) called at every committed step
        :param log_interval: Number of rollouts between logs
        :param tb_log_name: the name of the run for TensorBoard logging
        :param args: see ``HybridGRPO.learn``
        :param kwargs: see ``HybridGRPO.learn``
        :return: the trained model
        """
        return super().learn(total_timesteps, callback, log_interval, tb_log_name, *args, **kwargs)


_SIGNATURE = _signature()
GRPO.__init__.__signature__ = _SIGNATURE  # type: ignore[attr-defined]
