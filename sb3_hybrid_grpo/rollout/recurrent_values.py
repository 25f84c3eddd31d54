"""Values and entropies along branches of a recurrent policy: these are sequences, evaluated in few large batches."""

from typing import Any, ClassVar

import numpy as np
import torch as th
from sb3_contrib.common.recurrent.type_aliases import RNNStates
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.type_aliases import PyTorchObs
from stable_baselines3.common.utils import obs_as_tensor

from sb3_hybrid_grpo.common import Observations
from sb3_hybrid_grpo.policies import of_branches
from sb3_hybrid_grpo.rollout.values import DeferredEntropies, DeferredValues


class RecurrentDeferredValues(DeferredValues):
    """
    Values along branches, see ``DeferredValues``: what the policy remembers moves on with each of their steps.

    :param policy: the recurrent policy that is asked
    """

    policy: Any
    """Typed by sb3-contrib as if there were no Dict observations."""

    def __init__(self, policy: ActorCriticPolicy) -> None:
        super().__init__(policy)
        self._forget()

    def _forget(self) -> None:
        self._states: list[tuple[th.Tensor, ...]] = []
        self._places: list[tuple[np.ndarray, int]] = []
        self._n_branches = 0

    def begin(self, memory: RNNStates | None, alive: np.ndarray) -> None:
        """
        Turn to other branches, see ``DeferredValues.begin``.

        :param memory: what is remembered after the states that they leave
        :param alive: which branches there are
        """
        assert memory is not None
        if self._n_pending >= self._chunk_size:
            self.flush()
        self._states.append(of_branches(self._states_of(memory), alive))
        self._alive, self._first, self._k = alive.ravel(), self._n_branches, 0
        self._n_branches += int(alive.sum())

    def write(self, observations: Observations, destination: np.ndarray, mask: np.ndarray) -> None:
        """
        Ask for values after the next step of the branches, see ``DeferredValues.write``.

        :param observations: what the branches that took it have observed
        :param destination: array that gets their values
        :param mask: which branches took it
        """
        self._places.append((self._first + np.flatnonzero(mask.ravel()[self._alive]), self._k))
        self._k += 1
        self._ask(observations, destination, mask)

    def _evaluate_all(self, observations: Observations) -> np.ndarray:
        horizon = 1 + max(k for _, k in self._places)
        places = np.concatenate([branches * horizon + k for branches, k in self._places])
        spread = _spread(observations, places, self._n_branches * horizon)
        states = [th.cat(parts, dim=1) for parts in zip(*self._states, strict=True)]
        values = []
        size = max(self._chunk_size // horizon, 1)
        for start in range(0, self._n_branches, size):
            chunk = _rows(spread, slice(start * horizon, (start + size) * horizon))
            obs = obs_as_tensor(chunk, self.policy.device)  # type: ignore[arg-type]
            chunk_states = tuple(part[:, start : start + size].contiguous() for part in states)
            no_starts = th.zeros(chunk_states[0].shape[1] * horizon, device=self.policy.device)
            values.append(self._evaluate_sequences(obs, chunk_states, no_starts).cpu().numpy().ravel())
        self._forget()
        return np.asarray(np.concatenate(values)[places])

    def _states_of(self, memory: RNNStates) -> tuple[th.Tensor, ...]:
        return memory.vf

    def _evaluate_sequences(self, obs: PyTorchObs, states: tuple[th.Tensor, ...], starts: th.Tensor) -> th.Tensor:
        values: th.Tensor = self.policy.predict_values(obs, states, starts)
        return values


class RecurrentDeferredEntropies(RecurrentDeferredValues):
    """Entropies of the policy along branches, see ``RecurrentDeferredValues``."""

    into: ClassVar[str] = "branch_next_entropies"

    def _states_of(self, memory: RNNStates) -> tuple[th.Tensor, ...]:
        return memory.pi

    def _evaluate_sequences(self, obs: PyTorchObs, states: tuple[th.Tensor, ...], starts: th.Tensor) -> th.Tensor:
        entropies: th.Tensor = self.policy.get_distribution(obs, states, starts)[0].entropy()
        return entropies


def _spread(observations: Observations, places: np.ndarray, n_places: int) -> Observations:
    """Put observations into their places, with zeros in the others: [M, \\*obs_shape] to [n_places, \\*obs_shape]."""
    if isinstance(observations, dict):
        return {key: _spread(part, places, n_places) for key, part in observations.items()}  # type: ignore[misc]
    assert isinstance(observations, np.ndarray)
    spread = np.zeros((n_places, *observations.shape[1:]), dtype=observations.dtype)
    spread[places] = observations
    return spread


def _rows(observations: Observations, rows: slice) -> Observations:
    if isinstance(observations, dict):
        return {key: part[rows] for key, part in observations.items()}
    assert isinstance(observations, np.ndarray)
    return observations[rows]


def make_deferred(policy: ActorCriticPolicy, is_recurrent: bool, uses_critic: bool, is_soft: bool) -> list[DeferredValues]:
    """
    Make what is to be known of the states that branches lead to.

    :param policy: the policy
    :param is_recurrent: whether it remembers
    :param uses_critic: whether there are values
    :param is_soft: whether entropies count
    :return: values and entropies, or one of them, or none
    """
    values, entropies = (
        (RecurrentDeferredValues, RecurrentDeferredEntropies) if is_recurrent else (DeferredValues, DeferredEntropies)
    )
    return [kind(policy) for kind, is_wanted in ((values, uses_critic), (entropies, is_soft)) if is_wanted]
