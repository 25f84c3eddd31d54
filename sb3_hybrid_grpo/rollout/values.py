"""Values and log-probabilities of a whole rollout, from few large passes through the policy."""

from collections.abc import Iterator
from typing import ClassVar

import numpy as np
import torch as th
from sb3_contrib.common.recurrent.type_aliases import RNNStates
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.type_aliases import PyTorchObs
from stable_baselines3.common.utils import obs_as_tensor

from sb3_hybrid_grpo.common import Observations
from sb3_hybrid_grpo.policies import RowByRow, chunk_size, evaluate_actions
from sb3_hybrid_grpo.rollout.multi_sample import MultiSampleMixin


def evaluate_rollout(policy: ActorCriticPolicy, buffer: MultiSampleMixin, with_values: bool = True) -> None:
    """
    Fill the buffer's log-probabilities, entropies and values, in few large batches.

    Equal states have equal values, bit for bit, here and in branches: else rounding would tell their actions apart.

    :param policy: the policy that collected the rollout
    :param buffer: a rollout whose ``values`` and ``log_probs`` are still missing
    :param with_values: whether values are needed
    """
    row_by_row = RowByRow(policy)
    for rows in _chunks(buffer):
        obs = obs_as_tensor(flatten_observations(buffer.observations, rows), policy.device)  # type: ignore[arg-type]
        actions = buffer.to_torch(buffer.actions[rows].astype(np.float32, copy=False)).flatten(end_dim=1)
        all_masks = buffer.action_masks
        masks = None if all_masks is None else all_masks[rows].reshape(-1, all_masks.shape[-1])
        with th.no_grad(), row_by_row:
            values, log_prob, entropy = evaluate_actions(policy, obs, actions, masks, buffer.sequences(rows))
        if with_values:
            buffer.values[rows] = values.cpu().numpy().reshape(-1, buffer.n_envs)
        if entropy is not None:
            buffer.entropies[rows] = entropy.cpu().numpy().reshape(-1, buffer.n_envs)
        buffer.log_probs[rows] = log_prob.cpu().numpy().reshape(-1, buffer.n_envs, buffer.n_samples)


def _chunks(buffer: MultiSampleMixin) -> Iterator[slice]:
    size = max(chunk_size(buffer.observation_space) // buffer.n_envs, 1)
    return (slice(start, start + size) for start in range(0, buffer.buffer_size, size))


def flatten_observations(observations: Observations, rows: slice = slice(None)) -> Observations:
    """
    Merge the first two axes of observations.

    :param observations: observations, [T, E, \\*obs_shape] or a dict of such arrays
    :param rows: rows to select first
    :return: observations, [T · E, \\*obs_shape] or a dict of such arrays
    """
    if isinstance(observations, dict):
        return {key: flatten_observations(part, rows) for key, part in observations.items()}  # type: ignore[misc]
    assert isinstance(observations, np.ndarray)
    selected = observations[rows]
    return selected.reshape(-1, *selected.shape[2:])


def select_observations(observations: Observations, mask: np.ndarray) -> Observations:
    """
    Pick observations.

    :param observations: observations, [E, n, \\*obs_shape] or a dict of such arrays
    :param mask: which of them, [E, n]
    :return: M observations, [M, \\*obs_shape] or a dict of such arrays
    """
    if isinstance(observations, dict):
        return {key: part[mask] for key, part in observations.items()}
    assert isinstance(observations, np.ndarray)
    return np.asarray(observations[mask])


class DeferredValues:
    """
    Values of next observations, computed in large batches so that none is kept for long: the same, bit for bit, whatever is
    computed with them.

    ``into`` is the buffer's array for them.

    :param policy: the policy that is asked
    """

    into: ClassVar[str] = "branch_next_values"

    def __init__(self, policy: ActorCriticPolicy) -> None:
        self.policy = policy
        self._row_by_row = RowByRow(policy)
        self._chunk_size = chunk_size(policy.observation_space)
        self._observations: list[Observations] = []
        self._destinations: list[tuple[np.ndarray, np.ndarray]] = []
        self._n_pending = 0

    def begin(self, memory: RNNStates | None, alive: np.ndarray) -> None:
        """
        Turn to other branches, before their first step is written: for policies that remember.

        :param memory: what is remembered after the S states that they leave, [layers, S, units] each
        :param alive: which branches there are, of B / S from each state, any shape of B elements
        """

    def write(self, observations: Observations, destination: np.ndarray, mask: np.ndarray) -> None:
        """
        Ask for values.

        :param observations: M observations, [M, \\*obs_shape] or a dict of such arrays
        :param destination: array that gets their values, at the latest on ``flush``
        :param mask: its M places where they go
        """
        self._ask(observations, destination, mask)
        # Half a chunk goes by itself: putting it together with another would cost more than a pass saves.
        if self._n_pending >= self._chunk_size // 2:
            self.flush()

    def _ask(self, observations: Observations, destination: np.ndarray, mask: np.ndarray) -> None:
        self._observations.append(observations)
        self._destinations.append((destination, mask))
        self._n_pending += int(mask.sum())

    def flush(self) -> None:
        """Write all values that are still due."""
        if not self._destinations:
            return
        with th.no_grad(), self._row_by_row:
            values = self._evaluate_all(_join(self._observations))
        start = 0
        for destination, mask in self._destinations:
            end = start + int(mask.sum())
            destination[mask] = values[start:end]
            start = end
        self._observations, self._destinations, self._n_pending = [], [], 0

    def _evaluate_all(self, observations: Observations) -> np.ndarray:
        obs = obs_as_tensor(observations, self.policy.device)  # type: ignore[arg-type]
        return self.evaluate(obs).cpu().numpy().ravel()

    def evaluate(self, obs: PyTorchObs) -> th.Tensor:
        """
        Evaluate the policy.

        :param obs: observations
        :return: what is asked for, [B] or [B, 1]
        """
        return self.policy.predict_values(obs)


class DeferredEntropies(DeferredValues):
    """Entropies of the policy at next observations, see ``DeferredValues``."""

    into = "branch_next_entropies"

    def evaluate(self, obs: PyTorchObs) -> th.Tensor:
        """
        Evaluate the policy.

        :param obs: observations
        :return: entropies, [B]
        """
        entropies = self.policy.get_distribution(obs).entropy()
        assert entropies is not None
        return entropies


def _join(parts: list[Observations]) -> Observations:
    first = parts[0]
    if len(parts) == 1:
        return first
    if isinstance(first, dict):
        return {key: _join([part[key] for part in parts]) for key in first}  # type: ignore[misc, call-overload]
    return np.concatenate(parts)  # type: ignore[arg-type]
