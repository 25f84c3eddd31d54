"""What callbacks find in ``self.locals``: PPO's variables under PPO's names, computed when they are read."""

from collections.abc import Callable, Iterator, Mapping
from functools import cached_property
from typing import Any

import numpy as np
import torch as th
from stable_baselines3.common.callbacks import BaseCallback, CallbackList
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.type_aliases import PyTorchObs
from stable_baselines3.common.utils import obs_as_tensor

from sb3_hybrid_grpo.common import Observations, Sequences
from sb3_hybrid_grpo.policies import evaluate_actions


class CommittedStep:
    """
    What PPO has computed by the time of a step, and rollouts of many samples compute later and in large batches.

    :param policy: the policy, as it is during the rollout
    :param obs: observations of the states, [E, \\*obs_shape] or a dict of such arrays
    :param actions: committed actions, [E, \\*action_shape]
    :param action_masks: which actions are valid, [E, M], for a maskable policy
    :param values: values of the states, [E], if they are known
    :param log_probs: log-probabilities of the sampled actions, index 0 is the committed one, [E, N], likewise
    :param sequences: what a recurrent policy remembered before the states
    """

    def __init__(
        self,
        policy: ActorCriticPolicy,
        obs: Observations,
        actions: np.ndarray,
        action_masks: np.ndarray | None = None,
        values: th.Tensor | None = None,
        log_probs: th.Tensor | None = None,
        sequences: Sequences | None = None,
    ) -> None:
        self._policy = policy
        self._obs = obs
        self._actions = actions
        self._action_masks = action_masks
        self._sequences = sequences
        if values is not None and log_probs is not None:
            self._evaluated = values, log_probs[:, 0]

    @cached_property
    def obs_tensor(self) -> PyTorchObs:
        """Observations of the states on the policy's device."""
        return obs_as_tensor(self._obs, self._policy.device)  # type: ignore[arg-type]

    @property
    def values(self) -> th.Tensor:
        """Values of the states, [E, 1]."""
        return self._evaluated[0].reshape(-1, 1)

    @property
    def log_probs(self) -> th.Tensor:
        """Log-probabilities of the committed actions, [E]."""
        return self._evaluated[1]

    @cached_property
    def _evaluated(self) -> tuple[th.Tensor, th.Tensor]:
        actions = th.as_tensor(self._actions.reshape(len(self._actions), 1, -1), device=self._policy.device).float()
        with th.no_grad():
            values, log_probs, _ = evaluate_actions(
                self._policy, self.obs_tensor, actions, self._action_masks, self._sequences
            )
        return values, log_probs[:, 0]


_COMPUTED = ("obs_tensor", "values", "log_probs")
_ON_DEMAND = object()
_NOT_YET_COMPUTED = dict.fromkeys(_COMPUTED, _ON_DEMAND)


def _completed(name: str) -> Callable[..., Any]:
    """Return a method of ``dict`` that sees all values."""
    method = getattr(dict, name)

    def call(self: "CallbackLocals", *arguments: Any) -> Any:
        for key in _COMPUTED:
            self.get(key)
        return method(self, *arguments)

    return call


class CallbackLocals(dict[str, Any]):
    """
    Local variables of a rollout by name. ``obs_tensor``, ``values`` and ``log_probs`` are computed when they are read.

    Callbacks have it in ``self.locals``, which SB3 then updates at each step with itself.
    """

    _committed: CommittedStep | tuple[Any, ...]

    def renew(self, variables: Mapping[str, Any], *committed: Any) -> None:
        """
        Go on to the next step.

        :param variables: variables of the step
        :param committed: arguments of the ``CommittedStep`` that the others are computed from
        """
        self._committed = committed
        super().update(variables)
        super().update(_NOT_YET_COMPUTED)

    def __getitem__(self, name: str) -> Any:
        value = super().__getitem__(name)
        if value is _ON_DEMAND:
            if isinstance(self._committed, tuple):
                self._committed = CommittedStep(*self._committed)
            value = getattr(self._committed, name)
            self[name] = value
        return value

    def __iter__(self) -> Iterator[str]:
        # Because of this method `dict(...)` and `{}.update(...)` ask for each value, where they would copy what is stored.
        return super().__iter__()

    def get(self, name: str, default: Any = None) -> Any:
        """Return a variable, or ``default`` if there is none of that name."""
        return self[name] if name in self else default

    def update(self, /, *others: Any, **variables: Any) -> None:
        """Take over variables, unless they are these themselves."""
        if others and others[0] is self:
            others = ()
        if others or variables:
            super().update(*others, **variables)

    items = _completed("items")
    values = _completed("values")
    copy = _completed("copy")
    pop = _completed("pop")
    popitem = _completed("popitem")
    setdefault = _completed("setdefault")
    __or__ = _completed("__or__")
    __ror__ = _completed("__ror__")
    __eq__ = _completed("__eq__")
    __repr__ = _completed("__repr__")


def locals_of(callback: BaseCallback) -> CallbackLocals:
    """
    Return where a callback looks variables up.

    :param callback: the callback of a rollout
    :return: its ``CallbackLocals``, or new ones if it is none that ``RolloutCallback`` shows them to
    """
    return callback.locals if isinstance(callback.locals, CallbackLocals) else CallbackLocals(callback=callback)


class RolloutCallback(CallbackList):
    """
    Shows a callback, and all that are in it, ``CallbackLocals`` from the start of the training on.

    :param callback: the user's callback, which has been given its model
    """

    def __init__(self, callback: BaseCallback) -> None:
        super().__init__([callback])
        self.model = callback.model

    def on_training_start(self, locals_: dict[str, Any], globals_: dict[str, Any]) -> None:
        """
        Pass the event on.

        :param locals_: local variables of ``learn``
        :param globals_: global variables of SB3's module
        """
        super().on_training_start(CallbackLocals(locals_, callback=self.callbacks[0]), globals_)
