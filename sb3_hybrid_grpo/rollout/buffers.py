"""Rollout buffers that keep N sampled actions per state."""

from typing import Any

import numpy as np
from gymnasium import spaces
from sb3_contrib.common.maskable.buffers import MaskableDictRolloutBuffer, MaskableRolloutBuffer
from stable_baselines3.common.buffers import DictRolloutBuffer, RolloutBuffer
from stable_baselines3.common.vec_env import VecNormalize

from sb3_hybrid_grpo.common import InvalidArgumentError, MultiSampleRolloutBufferSamples
from sb3_hybrid_grpo.rollout.multi_sample import MultiSampleMixin


class MultiSampleRolloutBuffer(MultiSampleMixin, RolloutBuffer):
    """``RolloutBuffer`` with N sampled actions per state, see ``MultiSampleMixin``."""


class MultiSampleDictRolloutBuffer(MultiSampleMixin, DictRolloutBuffer):  # type: ignore[misc]
    """``DictRolloutBuffer`` with N sampled actions per state, see ``MultiSampleMixin``."""


class MaskableMixin(MultiSampleMixin):
    """Adds which actions are valid in the states: ``action_masks`` [T, E, M], as sb3-contrib's buffers keep them."""

    action_masks: np.ndarray

    def add(self, *args: Any, action_masks: np.ndarray | None = None, **kwargs: Any) -> None:
        """
        Add one macro-step of every environment, see ``MultiSampleMixin.add``.

        :param args: what is added
        :param action_masks: which actions are valid, [E, M]; all of them by default
        :param kwargs: what else is added
        """
        if action_masks is not None:
            self.action_masks[self.pos] = action_masks.reshape(self.action_masks.shape[1:])
        super().add(*args, **kwargs)

    def _get_samples(  # type: ignore[override]
        self, batch_inds: np.ndarray, env: VecNormalize | None = None
    ) -> MultiSampleRolloutBufferSamples:
        return super()._get_samples(batch_inds)._replace(action_masks=self.to_torch(self.action_masks[batch_inds]))


class MaskableMultiSampleRolloutBuffer(MaskableMixin, MaskableRolloutBuffer):  # type: ignore[misc]
    """``MaskableRolloutBuffer`` with N sampled actions per state, see ``MultiSampleMixin``."""


class MaskableMultiSampleDictRolloutBuffer(MaskableMixin, MaskableDictRolloutBuffer):  # type: ignore[misc]
    """``MaskableDictRolloutBuffer`` with N sampled actions per state, see ``MultiSampleMixin``."""


def multi_sample_buffer_class(
    buffer_class: type[RolloutBuffer] | None, observation_space: spaces.Space[Any], is_maskable: bool = False
) -> type[MultiSampleMixin]:
    """
    Choose the buffer for an observation space.

    :param buffer_class: what the user passed; SB3's own buffers, as in a checkpoint of PPO, count as no choice
    :param observation_space: observation space
    :param is_maskable: whether it must keep masks of invalid actions
    :return: a buffer class with N samples per state
    :raises InvalidArgumentError: if the user's class cannot keep N samples
    """
    is_dict = isinstance(observation_space, spaces.Dict)
    own = _OWN_CLASSES[is_maskable]
    if buffer_class is None or buffer_class in _STOCK_CLASSES:
        return own[is_dict]
    required = MaskableMixin if is_maskable else MultiSampleMixin
    if not issubclass(buffer_class, required):
        raise InvalidArgumentError(
            f"`rollout_buffer_class` must derive from {own[0].__name__} or {own[1].__name__}, which keep several actions per "
            f"state{' and masks of invalid actions' if is_maskable else ''}; {buffer_class} does not."
        )
    return buffer_class


_STOCK_CLASSES = (RolloutBuffer, DictRolloutBuffer, MaskableRolloutBuffer, MaskableDictRolloutBuffer)
_OWN_CLASSES: tuple[tuple[type[MultiSampleMixin], type[MultiSampleMixin]], ...] = (
    (MultiSampleRolloutBuffer, MultiSampleDictRolloutBuffer),
    (MaskableMultiSampleRolloutBuffer, MaskableMultiSampleDictRolloutBuffer),
)
"""By whether they keep masks, then by whether observations are dicts."""
