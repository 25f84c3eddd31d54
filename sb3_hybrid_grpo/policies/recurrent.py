"""Recurrent policies of sb3-contrib: what they remember of the committed trajectories, and of branches that leave these."""

from typing import Any

import numpy as np
import torch as th
from sb3_contrib.common.recurrent.type_aliases import RNNStates
from stable_baselines3.common.distributions import Distribution
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.type_aliases import PyTorchObs
from stable_baselines3.common.utils import obs_as_tensor

from sb3_hybrid_grpo.common import InvalidArgumentError, Observations, Sequences
from sb3_hybrid_grpo.policies.actors import Actor
from sb3_hybrid_grpo.policies.plain_mlp import Replica


class RecurrentActor(Actor):
    """
    Samples from a recurrent policy, and remembers the committed trajectories for it.

    :param policy: the policy
    :param memory: what it remembers before the first states, [layers, E, units] each
    """

    policy: Any
    """Typed by sb3-contrib as if there were no Dict observations."""

    memory: RNNStates

    def __init__(self, policy: ActorCriticPolicy, memory: RNNStates) -> None:
        super().__init__(policy)
        self.memory = memory

    def observe(self, obs: Observations, episode_starts: np.ndarray) -> None:
        """
        Take in the present states, see ``Actor.observe``.

        :param obs: states
        :param episode_starts: whether an episode starts with a state, [E]
        """
        self.present = in_single_steps(_forgotten(self.memory, episode_starts))
        with th.no_grad():
            obs_tensor = obs_as_tensor(obs, self.policy.device)  # type: ignore[arg-type]
            # The mode is of no use, but this pass moves the memories of actor and critic, and draws no random numbers.
            *_, self.memory = self.policy(obs_tensor, self.present.lstm_states, self.present.no_starts, deterministic=True)

    def next_values(self, obs: PyTorchObs, envs: slice = slice(None), episode_starts: np.ndarray | None = None) -> th.Tensor:
        """
        Predict values of states that follow the present ones, see ``Actor.next_values``.

        :param obs: the states
        :param envs: the environments that they are in
        :param episode_starts: whether an episode starts with a state
        :return: values
        """
        memory = self.memory if episode_starts is None else _forgotten(self.memory, episode_starts)
        states = tuple(part[:, envs].contiguous() for part in memory.vf)
        values: th.Tensor = self.policy.predict_values(obs, states, th.zeros(states[0].shape[1], device=self.policy.device))
        return values

    def in_branches(self, memory: RNNStates | None, alive: np.ndarray) -> Actor:
        """
        Return an actor that remembers each branch, see ``Actor.in_branches``.

        :param memory: what is remembered after the states
        :param alive: which branches go on
        :return: the actor
        """
        assert memory is not None
        return _BranchActor(self.policy, of_branches(memory.pi, alive))

    def replica(self) -> Replica:
        """
        Refuse: what it remembers of each branch stays in this process, see ``Actor.replica``.

        :raises InvalidArgumentError: always
        """
        raise InvalidArgumentError("a recurrent policy remembers the way that led to each state")

    def _distribution(self, obs: PyTorchObs, action_masks: Any) -> Distribution:
        distribution: Distribution = self.policy.action_dist
        return distribution


class _BranchActor(Actor):
    """Goes on in branches, and remembers each of them: ``pi`` are the actor's states, [layers, M, units] each."""

    policy: Any

    def __init__(self, policy: ActorCriticPolicy, pi: tuple[th.Tensor, ...]) -> None:
        super().__init__(policy)
        self._pi = pi

    def keep(self, survivors: np.ndarray) -> None:
        """
        Forget the branches that have ended.

        :param survivors: which of the branches go on, [M]
        """
        if not survivors.all():
            self._pi = tuple(states[:, survivors] for states in self._pi)

    def _distribution(self, obs: PyTorchObs, action_masks: Any) -> Distribution:
        no_starts = th.zeros(self._pi[0].shape[1], device=self.policy.device)
        distribution: Distribution
        distribution, self._pi = self.policy.get_distribution(obs, self._pi, no_starts)
        return distribution


def of_branches(states: tuple[th.Tensor, ...], alive: np.ndarray) -> tuple[th.Tensor, ...]:
    """
    Hand states of an LSTM on to the branches that leave there.

    :param states: its states in S places, [layers, S, units] each
    :param alive: which branches there are, of B / S in each place, [B] or any shape of as many elements
    :return: states of the M branches that there are, [layers, M, units] each
    """
    n_branches = alive.size // states[0].shape[1]
    places = np.flatnonzero(alive) // n_branches
    return tuple(part[:, places].contiguous() for part in states)


def in_single_steps(memory: RNNStates) -> Sequences:
    """
    Describe states each of which is a sequence by itself.

    :param memory: what is remembered before them, [layers, B, units] each
    :return: the sequences
    """
    states = memory.pi[0]
    return Sequences(memory, th.ones(states.shape[1], dtype=th.bool, device=states.device))


def _forgotten(memory: RNNStates, episode_starts: np.ndarray) -> RNNStates:
    """Forget what was before the episodes that start, [E]."""
    goes_on = 1 - th.as_tensor(episode_starts, device=memory.pi[0].device).float()[:, None]
    return RNNStates(*(tuple(part * goes_on for part in states) for states in memory))


def remembering(present: Sequences | None) -> dict[str, RNNStates]:
    """
    Return what a buffer keeps of states beside what it keeps for any policy.

    :param present: the states as sequences of one each; ``None`` for policies without memory
    :return: keyword arguments
    """
    return {} if present is None else {"lstm_states": present.lstm_states}


def no_memory(policy: ActorCriticPolicy, n_envs: int) -> RNNStates:
    """
    Return what is remembered before anything has been seen.

    :param policy: a recurrent policy
    :param n_envs: number of environments E
    :return: zeros, [layers, E, units] each
    """
    layers, _, units = policy.lstm_hidden_state_shape  # type: ignore[misc]
    hidden_pi, cell_pi, hidden_vf, cell_vf = (th.zeros(layers, n_envs, units, device=policy.device) for _ in range(4))
    return RNNStates((hidden_pi, cell_pi), (hidden_vf, cell_vf))
