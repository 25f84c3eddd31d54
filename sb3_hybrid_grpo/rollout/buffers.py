"""Rollout buffers that keep N sampled actions per state."""

from collections.abc import Callable
from typing import Any

import numpy as np
from gymnasium import spaces
from sb3_contrib.common.maskable.buffers import MaskableDictRolloutBuffer, MaskableRolloutBuffer
from sb3_contrib.common.recurrent.buffers import RecurrentDictRolloutBuffer, RecurrentRolloutBuffer, create_sequencers
from sb3_contrib.common.recurrent.type_aliases import RNNStates
from stable_baselines3.common.buffers import DictRolloutBuffer, RolloutBuffer
from stable_baselines3.common.vec_env import VecNormalize

from sb3_hybrid_grpo.common import InvalidArgumentError, MultiSampleRolloutBufferSamples, Sequences
from sb3_hybrid_grpo.policies import in_single_steps
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


class RecurrentMixin(MultiSampleMixin):
    """
    Adds what a recurrent policy remembered before the states, as sb3-contrib's buffers keep it: ``hidden_states_pi``,
    ``cell_states_pi``, ``hidden_states_vf`` and ``cell_states_vf`` [T, layers, E, units]. Minibatches are its sequences.

    :param buffer_size: number of macro-steps T
    :param args: see ``MultiSampleMixin``
    :param kwargs: see ``MultiSampleMixin``
    """

    hidden_state_shape: tuple[int, int, int, int]

    def __init__(self, buffer_size: int, *args: Any, **kwargs: Any) -> None:
        # The policy, whose shapes these are, is made after the buffer.
        super().__init__(buffer_size, *args, hidden_state_shape=(buffer_size, 0, 0, 0), **kwargs)

    def make_room_for(self, memory: RNNStates) -> None:
        """
        Prepare to keep what a policy remembers.

        :param memory: what it remembers at some state, [layers, E, units] each
        """
        self.hidden_state_shape = (self.buffer_size, *memory.pi[0].shape)
        self.reset()

    def add(self, *args: Any, lstm_states: RNNStates, **kwargs: Any) -> None:  # type: ignore[override]
        """
        Add one macro-step of every environment, see ``MultiSampleMixin.add``.

        :param args: what is added
        :param lstm_states: what the policy remembered before the states: zero where an episode starts, [layers, E, units] each
        :param kwargs: what else is added
        """
        for name, states in zip(_STATES, (*lstm_states.pi, *lstm_states.vf), strict=True):
            getattr(self, name)[self.pos] = states.cpu().numpy()
        super().add(*args, **kwargs)

    def sequences(self, rows: slice) -> Sequences:
        """
        Return what the policy remembered before states, see ``MultiSampleMixin.sequences``.

        :param rows: their macro-steps
        :return: the states as sequences of one each
        """
        return in_single_steps(
            self._memory(lambda states: states[rows].swapaxes(0, 1).reshape(states.shape[1], -1, states.shape[3]))
        )

    def _get_samples(  # type: ignore[override]
        self, batch_inds: np.ndarray, env_change: np.ndarray, env: VecNormalize | None = None
    ) -> MultiSampleRolloutBufferSamples:
        starts, pad, pad_and_flatten = create_sequencers(self.episode_starts[batch_inds], env_change[batch_inds], self.device)

        def padded(stored: Any) -> Any:
            if isinstance(stored, dict):
                return {key: padded(part) for key, part in stored.items()}
            return pad(stored[batch_inds]).flatten(end_dim=1)

        sequences = Sequences(
            self._memory(lambda states: states[batch_inds][starts].swapaxes(0, 1)),
            pad_and_flatten(np.ones(len(batch_inds), dtype=bool), padding_value=False),
        )
        return super()._get_samples(batch_inds)._replace(observations=padded(self.observations), sequences=sequences)

    def _memory(self, select: Callable[[np.ndarray], np.ndarray]) -> RNNStates:
        """Pick states of both LSTMs, [layers, M, units] each."""
        hidden_pi, cell_pi, hidden_vf, cell_vf = (self.to_torch(select(getattr(self, name))).contiguous() for name in _STATES)
        return RNNStates((hidden_pi, cell_pi), (hidden_vf, cell_vf))


class RecurrentMultiSampleRolloutBuffer(RecurrentMixin, RecurrentRolloutBuffer):  # type: ignore[misc]
    """``RecurrentRolloutBuffer`` with N sampled actions per state, see ``MultiSampleMixin``."""


class RecurrentMultiSampleDictRolloutBuffer(RecurrentMixin, RecurrentDictRolloutBuffer):  # type: ignore[misc]
    """``RecurrentDictRolloutBuffer`` with N sampled actions per state, see ``MultiSampleMixin``."""


def multi_sample_buffer_class(
    buffer_class: type[RolloutBuffer] | None,
    observation_space: spaces.Space[Any],
    is_maskable: bool = False,
    is_recurrent: bool = False,
) -> type[MultiSampleMixin]:
    """
    Choose the buffer for an observation space.

    :param buffer_class: what the user passed; SB3's own buffers, as in a checkpoint of PPO, count as no choice
    :param observation_space: observation space
    :param is_maskable: whether it must keep masks of invalid actions
    :param is_recurrent: whether it must keep what a recurrent policy remembers
    :return: a buffer class with N samples per state
    :raises InvalidArgumentError: if the user's class cannot keep N samples
    """
    is_dict = isinstance(observation_space, spaces.Dict)
    required = MaskableMixin if is_maskable else RecurrentMixin if is_recurrent else MultiSampleMixin
    own = _OWN_CLASSES[required]
    if buffer_class is None or buffer_class in _STOCK_CLASSES:
        return own[is_dict]
    if not issubclass(buffer_class, required):
        raise InvalidArgumentError(
            f"`rollout_buffer_class` must derive from {own[0].__name__} or {own[1].__name__}, which keep several actions per "
            f"state{_BESIDE.get(required, '')}; {buffer_class} does not."
        )
    return buffer_class


_STATES = ("hidden_states_pi", "cell_states_pi", "hidden_states_vf", "cell_states_vf")
_STOCK_CLASSES = (
    *(RolloutBuffer, DictRolloutBuffer),
    *(MaskableRolloutBuffer, MaskableDictRolloutBuffer),
    *(RecurrentRolloutBuffer, RecurrentDictRolloutBuffer),
)
_OWN_CLASSES: dict[type[MultiSampleMixin], tuple[type[MultiSampleMixin], type[MultiSampleMixin]]] = {
    MultiSampleMixin: (MultiSampleRolloutBuffer, MultiSampleDictRolloutBuffer),
    MaskableMixin: (MaskableMultiSampleRolloutBuffer, MaskableMultiSampleDictRolloutBuffer),
    RecurrentMixin: (RecurrentMultiSampleRolloutBuffer, RecurrentMultiSampleDictRolloutBuffer),
}
"""By what they keep, then by whether observations are dicts."""
_BESIDE = {MaskableMixin: " and masks of invalid actions", RecurrentMixin: " and what the policy remembers"}
