"""Which class of SB3 or sb3-contrib a policy derives from: the latter's take masks of invalid actions, or remember."""

import inspect
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch as th
from sb3_contrib.common.maskable.policies import MaskableActorCriticPolicy
from sb3_contrib.common.recurrent.policies import RecurrentActorCriticPolicy
from stable_baselines3.common.policies import ActorCriticPolicy, BasePolicy

from sb3_hybrid_grpo.common import InvalidArgumentError

_RECURRENT_METHODS = ("forward", "get_distribution", "predict_values", "evaluate_actions")


def is_maskable(policy_class: type[BasePolicy]) -> bool:
    """
    Tell whether a policy takes masks.

    :param policy_class: the policy's class
    :return: whether it is one of sb3-contrib's maskable policies
    """
    return issubclass(policy_class, MaskableActorCriticPolicy)


def is_recurrent(policy_class: type[BasePolicy]) -> bool:
    """
    Tell whether a policy remembers what it has seen of an episode.

    :param policy_class: the policy's class
    :return: whether it is one of sb3-contrib's recurrent policies
    """
    return issubclass(policy_class, RecurrentActorCriticPolicy)


def check_policy_class(policy_class: type[BasePolicy], policy_kwargs: Mapping[str, Any], use_sde: bool) -> None:
    """
    Check that a policy can be trained.

    :param policy_class: the policy's class
    :param policy_kwargs: arguments of its constructor
    :param use_sde: whether it is to explore with gSDE
    :raises InvalidArgumentError: if it is none for PPO, would squash what SB3 cannot squash, or has its own way to remember
    """
    if not (is_maskable(policy_class) or issubclass(policy_class, ActorCriticPolicy)):
        raise InvalidArgumentError(f"{policy_class.__name__} is no ActorCriticPolicy, which PPO and its kin need.")
    if policy_kwargs.get("squash_output") and not use_sde:
        raise InvalidArgumentError(
            "SB3 squashes the actions of gSDE alone: with policy_kwargs={'squash_output': True}, set use_sde=True as well."
        )
    if "lstm_states" not in inspect.signature(policy_class.forward).parameters:
        return
    known = RecurrentActorCriticPolicy
    own = [name for name in _RECURRENT_METHODS if getattr(policy_class, name, None) is not getattr(known, name)]
    if own:
        raise InvalidArgumentError(
            f"{policy_class.__name__} is recurrent, with its own {', '.join(own)}: what a policy remembers in branches is "
            f"known for {known.__name__} of sb3-contrib. Derive from that, and change its networks or `lstm_kwargs` instead."
        )


def stock_class(policy_class: type[BasePolicy]) -> type[ActorCriticPolicy]:
    """
    Return the class whose methods a policy inherits where it does not bring its own.

    :param policy_class: the policy's class
    :return: SB3's or sb3-contrib's policy; the maskable one is no subclass of the former, but does the same
    """
    if is_recurrent(policy_class):
        return RecurrentActorCriticPolicy
    return MaskableActorCriticPolicy if is_maskable(policy_class) else ActorCriticPolicy  # type: ignore[return-value]


def overrides_forward(policy_class: type[BasePolicy]) -> bool:
    """
    Tell whether a policy brings a ``forward`` of its own, which SB3 lets decide about actions, values and log-probabilities.

    :param policy_class: the policy's class
    :return: whether rollouts must call it
    """
    return policy_class.forward is not stock_class(policy_class).forward


def uncompiled(policy: BasePolicy) -> BasePolicy:
    """
    Return what ``torch.compile`` was given.

    :param policy: a policy, or the compiled module around it, which looks attributes up in it but is of another class
    :return: the policy
    """
    return getattr(policy, "_orig_mod", policy)


def class_of(policy: BasePolicy) -> type[ActorCriticPolicy]:
    """
    Return the class that a policy was written as.

    :param policy: the policy, compiled or not
    :return: its class
    """
    return type(uncompiled(policy))  # type: ignore[return-value]


def masking(action_masks: np.ndarray | th.Tensor | None) -> dict[str, Any]:
    """
    Return what a policy's methods take beside observations and actions.

    :param action_masks: which actions are valid, [B, M]; ``None`` for policies without masks
    :return: keyword arguments
    """
    return {} if action_masks is None else {"action_masks": action_masks}


def without_sde(policy_class: type[BasePolicy]) -> Callable[..., BasePolicy]:
    """
    Let a maskable policy be made as SB3 makes policies.

    :param policy_class: a policy that knows no gSDE
    :return: a constructor that passes over ``use_sde``
    """
    return lambda *args, use_sde, **kwargs: policy_class(*args, **kwargs)
