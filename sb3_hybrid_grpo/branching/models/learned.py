"""Outcomes from a model of the environment that is learned along the way, for environments that no one can branch."""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.preprocessing import is_image_space, preprocess_obs
from stable_baselines3.common.vec_env import VecEnv
from torch import nn
from torch.nn import functional as F

from sb3_hybrid_grpo.common import BranchOutcome, Committed, Observations, Transitions, UnbranchableEnvError

_CAPACITY = 50_000
_BATCH_SIZE = 256
_LEARNING_RATE = 1e-3


class Prediction(NamedTuple):
    """
    What a model expects of B actions.

    :param observations: next observations, [B, d]
    :param rewards: rewards, [B]
    :param terminated: whether the episode ends in a terminal state, [B]
    :param variance: mean variance of the members' predictions, in units of the variance of changes and rewards, [B]
    """

    observations: np.ndarray
    rewards: np.ndarray
    terminated: np.ndarray
    variance: np.ndarray


class Ensemble(nn.Module):
    """
    Networks that predict the change of the observation, the reward and the end of the episode, each for itself.

    Source: an ensemble of models trained on bootstrapped minibatches, as in PETS (https://arxiv.org/abs/1805.12114), without
    its predicted variances.

    :param n_inputs: size of an observation and an action together
    :param obs_dim: size of an observation d
    :param n_members: number of networks
    :param n_units: number of units in each of two hidden layers
    """

    input_mean: th.Tensor
    input_std: th.Tensor
    target_mean: th.Tensor
    target_std: th.Tensor

    def __init__(self, n_inputs: int, obs_dim: int, n_members: int = 5, n_units: int = 128) -> None:
        super().__init__()
        self.n_members = n_members
        sizes = (n_inputs, n_units, n_units, obs_dim + 2)
        shapes = list(pairwise(sizes))
        self.weights = nn.ParameterList(nn.Parameter(th.randn(n_members, n, m) / n**0.5) for n, m in shapes)
        self.biases = nn.ParameterList(nn.Parameter(th.zeros(n_members, 1, m)) for _, m in shapes)
        for name, size in (("input", n_inputs), ("target", obs_dim + 1)):
            self.register_buffer(f"{name}_mean", th.zeros(size))
            self.register_buffer(f"{name}_std", th.ones(size))
        self.optimizer = th.optim.Adam(self.parameters(), lr=_LEARNING_RATE, fused=True)

    def forward(self, inputs: th.Tensor) -> tuple[th.Tensor, th.Tensor]:
        """
        Predict, with inputs of its own for each network.

        :param inputs: observations and actions, [M, B, n]
        :return: changes of the observation and reward, standardised, [M, B, d + 1], and logits of the episode's end, [M, B]
        """
        latent = (inputs - self.input_mean) / self.input_std
        for weight, bias in zip(self.weights[:-1], self.biases[:-1], strict=True):
            latent = F.silu(th.baddbmm(bias, latent, weight))
        outputs = th.baddbmm(self.biases[-1], latent, self.weights[-1])
        return outputs[..., :-1], outputs[..., -1]

    @th.no_grad()
    def predict_all(self, inputs: th.Tensor) -> tuple[th.Tensor, th.Tensor]:
        """
        Predict with each network, one after the other: what a single one computes stays in the processor's cache.

        :param inputs: observations and actions, [B, n]
        :return: as of ``forward``
        """
        standardised = (inputs - self.input_mean) / self.input_std
        outputs = th.empty(self.n_members, len(inputs), self.biases[-1].shape[-1])
        for member in range(self.n_members):
            latent = standardised
            for weight, bias in zip(self.weights[:-1], self.biases[:-1], strict=True):
                latent = F.silu(th.addmm(bias[member], latent, weight[member]), inplace=True)
            th.addmm(self.biases[-1][member], latent, self.weights[-1][member], out=outputs[member])
        return outputs[..., :-1], outputs[..., -1]

    def fit(self, inputs: th.Tensor, targets: th.Tensor, terminated: th.Tensor, n_steps: int) -> None:
        """
        Train on transitions. Where an episode ended the next observation is unknown, and only the end counts.

        :param inputs: observations and actions, [S, n]
        :param targets: changes of the observation and reward, [S, d + 1]
        :param terminated: whether the episode ended in a terminal state, [S]
        :param n_steps: number of gradient steps
        """
        goes_on = terminated == 0
        for name, values in (("input", inputs), ("target", targets[goes_on])):
            getattr(self, f"{name}_mean").copy_(values.mean(dim=0))
            getattr(self, f"{name}_std").copy_(values.std(dim=0).clamp(min=1e-6))
        targets = (targets - self.target_mean) / self.target_std
        for _ in range(n_steps):
            batch = th.randint(len(inputs), (self.n_members, _BATCH_SIZE))
            predicted, logits = self(inputs[batch])
            errors = (predicted - targets[batch]).square().mean(dim=-1) * goes_on[batch]
            loss = errors.mean() + F.binary_cross_entropy_with_logits(logits, terminated[batch])
            self.optimizer.zero_grad()
            (self.n_members * loss).backward()
            self.optimizer.step()

    @th.no_grad()
    def predict(self, inputs: th.Tensor, members: th.Tensor) -> Prediction:
        """
        Predict, with one network for each transition.

        :param inputs: observations and actions, [B, n]
        :param members: index of the network to believe, [B]
        :return: its prediction, and how far all of them are apart
        """
        standardised, logits = self.predict_all(inputs)
        rows = th.arange(len(inputs))
        chosen = standardised[members, rows] * self.target_std + self.target_mean
        observations = inputs[:, : chosen.shape[1] - 1] + chosen[:, :-1]
        return Prediction(
            observations.numpy(),
            chosen[:, -1].numpy(),
            (logits[members, rows] > 0).numpy(),
            _variance(standardised).mean(dim=-1).numpy(),
        )


def _variance(members: th.Tensor) -> th.Tensor:
    """Return the variance over the first axis. PyTorch's takes thirty times as long there."""
    deviations = members - members.mean(dim=0)
    return deviations.square_().sum(dim=0) / (len(members) - 1)


class LearnedBrancher:
    """
    Branches in a model of the environment, trained on the committed transitions after each rollout.

    ``is_ready`` tells whether it may be used: on transitions that it was not trained on, its error of one step must be below
    the spread between the actions of a state, which is what it has to resolve. A branch is cut short, and goes on with the
    critic's value, where the networks are further apart than that.

    :param venv: the training environment
    :raises UnbranchableEnvError: if observations are no vectors
    """

    uses_simulator = False
    can_remember = True

    def __init__(self, venv: VecEnv) -> None:
        space = venv.observation_space
        if not isinstance(space, spaces.Box) or is_image_space(space):
            raise UnbranchableEnvError(
                f"brancher='learned' learns a model of vectors, and observations are {space}. Ways out: (1) brancher='auto'; "
                "(2) train without branching, with n_samples=1."
            )
        self._action_space = venv.action_space
        self._obs_dim = spaces.flatdim(space)
        some_action = np.zeros((1, *(self._action_space.shape or ())), dtype=self._action_space.dtype)
        self.model = Ensemble(self._obs_dim + self._encode(some_action).shape[1], self._obs_dim)
        self.is_ready = False
        self.error = np.inf
        self.spread = 0.0
        self._is_trained = False
        self.transitions: list[th.Tensor] = []
        self._remembered: list[np.ndarray] = []

    def _encode(self, actions: np.ndarray) -> th.Tensor:
        """Return actions [B, \\*action_shape] as numbers [B, m]."""
        encoded = preprocess_obs(th.as_tensor(actions), self._action_space, normalize_images=False)
        assert isinstance(encoded, th.Tensor)
        return encoded.float().reshape(len(actions), int(np.prod(encoded.shape[1:])))

    def inputs(self, observations: np.ndarray, actions: np.ndarray) -> th.Tensor:
        """
        Put observations and actions together.

        :param observations: observations, [B, d]
        :param actions: actions as the environment takes them, [B, \\*action_shape]
        :return: inputs of the model, [B, n]
        """
        flat = th.as_tensor(observations.reshape(len(observations), self._obs_dim), dtype=th.float32)
        return th.cat((flat, self._encode(actions)), dim=1)

    def learn_from(self, transitions: Transitions) -> None:
        """
        Measure the error on the transitions of a rollout, then train on them and those before.

        :param transitions: the committed transitions, and other actions at their states
        """
        inputs = self.inputs(transitions.observations, transitions.actions)
        changes = transitions.next_observations.reshape(len(inputs), self._obs_dim) - inputs[:, : self._obs_dim].numpy()
        targets = th.as_tensor(np.column_stack((changes, transitions.rewards)), dtype=th.float32)
        terminated = th.as_tensor(transitions.terminated, dtype=th.float32)
        if self._is_trained:
            self._measure(inputs, targets, terminated, transitions)
        new = (inputs, targets, terminated)
        self.transitions = (
            [th.cat(parts)[-_CAPACITY:] for parts in zip(self.transitions, new, strict=True)]
            if self.transitions
            else list(new)
        )
        # Changes of the observation are known, and vary, from two transitions on that do not end the episode.
        if int((self.transitions[2] == 0).sum()) > 1:
            self.model.fit(self.transitions[0], self.transitions[1], self.transitions[2], n_steps=max(len(inputs) // 10, 100))
            self._is_trained = True

    @th.no_grad()
    def _measure(self, inputs: th.Tensor, targets: th.Tensor, terminated: th.Tensor, transitions: Transitions) -> None:
        goes_on = terminated == 0
        if not goes_on.any():
            return
        standardised = (targets - self.model.target_mean) / self.model.target_std
        predicted = self.model.predict_all(inputs)[0].mean(dim=0)
        self.error = float((predicted - standardised)[goes_on].square().mean())
        groups = [
            self.model.predict_all(self.inputs(transitions.observations, actions))[0].mean(dim=0)
            for actions in transitions.other_actions.swapaxes(0, 1)
        ]
        self.spread = float(_variance(th.stack([predicted, *groups])).mean())
        self.is_ready = self.error < self.spread

    def state_dict(self) -> dict[str, Any]:
        """Return the networks and what is known of them, but not ``transitions``, as in SB3's off-policy checkpoints."""
        return {
            "model": self.model.state_dict(),
            "is_trained": self._is_trained,
            "is_ready": self.is_ready,
            "error": self.error,
            "spread": self.spread,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """
        Go on with networks from a checkpoint.

        :param state: what ``state_dict`` returned
        """
        self.model.load_state_dict(state["model"])
        self._is_trained = state["is_trained"]
        self.is_ready, self.error, self.spread = state["is_ready"], state["error"], state["spread"]

    def remember(self, obs: Observations) -> None:
        """
        Keep the present states.

        :param obs: their observations, [E, d]
        """
        assert isinstance(obs, np.ndarray)
        self._remembered.append(obs.reshape(len(obs), -1).astype(np.float32))

    def confirm(self) -> None:
        """Do nothing: they are kept."""

    def forget(self) -> None:
        """Forget the states that were kept."""
        self._remembered = []

    def recall(self) -> "ModelBranches":
        """
        Branch from the states that were kept, and forget them.

        :return: a brancher of all of them at once
        """
        states = np.stack(self._remembered, axis=1)
        self.forget()
        return ModelBranches(self, states)

    def open(self, actions: np.ndarray, alive: np.ndarray, horizon: int, obs: Observations | None = None) -> BranchOutcome:
        """Branch from the present states, see ``ModelBranches.open``."""
        assert isinstance(obs, np.ndarray)
        self._present = ModelBranches(self, obs.reshape(len(obs), 1, -1).astype(np.float32))
        return self._present.open(actions, alive, horizon)

    def advance(self, actions: np.ndarray, alive: np.ndarray) -> BranchOutcome:
        """Go on, see ``ModelBranches.advance``."""
        return self._present.advance(actions, alive)

    def close(self) -> None:
        """Do nothing: the branches are forgotten when the next ones are opened."""

    def observed(
        self, outcome: BranchOutcome, earlier: Sequence[BranchOutcome] = (), committed: Committed | None = None
    ) -> BranchOutcome:
        """Return the outcome: the model predicts what the policy sees."""
        return outcome


class ModelBranches:
    """
    A ``Brancher`` from many states at once, in the model of a ``LearnedBrancher``.

    :param brancher: the model
    :param states: observations, [E, T, d]
    """

    uses_simulator = False

    def __init__(self, brancher: LearnedBrancher, states: np.ndarray) -> None:
        self._brancher = brancher
        self._states = states
        self._observations = np.empty(0)
        self._members = np.empty(0, dtype=int)

    def open(self, actions: np.ndarray, alive: np.ndarray, horizon: int, obs: Observations | None = None) -> BranchOutcome:
        """
        Open branches at the remembered states and take their first steps: all branches of a state in the same network.

        :param actions: actions as the environment takes them, [E, T · n, \\*action_shape]
        :param alive: which of them are branched, [E, T · n]
        :param horizon: number of steps that a branch may take in all
        :param obs: not needed
        :return: what the networks predict, zero where not ``alive``
        """
        n_envs, n_states = self._states.shape[:2]
        n_branches = alive.shape[1] // n_states
        members = np.arange(n_envs * n_states).reshape(n_envs, n_states) % self._brancher.model.n_members
        self._members = members.repeat(n_branches, axis=1)
        self._observations = self._states.repeat(n_branches, axis=1)
        return self.advance(actions, alive)

    def advance(self, actions: np.ndarray, alive: np.ndarray) -> BranchOutcome:
        """
        Take a further step in the open branches.

        :param actions: actions as the environment takes them, [E, T · n, \\*action_shape]
        :param alive: which branches go on, [E, T · n]
        :return: what the networks predict, zero where not ``alive``
        """
        inputs = self._brancher.inputs(self._observations[alive], actions[alive])
        prediction = self._brancher.model.predict(inputs, th.as_tensor(self._members[alive]))
        self._observations = self._observations.copy()
        self._observations[alive] = prediction.observations
        rewards, ends = np.zeros(alive.shape, dtype=np.float32), np.zeros((2, *alive.shape), dtype=bool)
        rewards[alive] = prediction.rewards
        ends[0][alive] = prediction.terminated
        ends[1][alive] = prediction.variance > self._brancher.spread
        return BranchOutcome(np.where(alive[..., None], self._observations, 0), rewards, *ends)

    def close(self) -> None:
        """Do nothing: the branches are forgotten when the next ones are opened."""

    def observed(
        self, outcome: BranchOutcome, earlier: Sequence[BranchOutcome] = (), committed: Committed | None = None
    ) -> BranchOutcome:
        """Return the outcome: the model predicts what the policy sees."""
        return outcome
