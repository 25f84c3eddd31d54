"""Rollout buffers that keep N sampled actions per state."""

from collections.abc import Generator
from typing import Any

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.buffers import DictRolloutBuffer, RolloutBuffer
from stable_baselines3.common.vec_env import VecNormalize

from sb3_hybrid_grpo.common.advantages import (
    ESTIMATORS,
    averaged_advantages,
    gae_tails,
    generalized_advantages,
    value_boosted_estimates,
)
from sb3_hybrid_grpo.common.reward_transforms import AnyRewardTransform, make_reward_transform
from sb3_hybrid_grpo.common.type_aliases import InvalidArgumentError, MultiSampleRolloutBufferSamples


class MultiSampleMixin(RolloutBuffer):
    """
    Turns a rollout buffer of SB3 into one with N sampled actions per state; index 0 is the committed action.

    Arrays: ``observations`` [T, E, ...] once per state; ``actions`` [T, E, N, action_dim], ``rewards``, ``next_values``,
    ``terminated``, ``log_probs`` [T, E, N]; ``values`` [T, E]. ``compute_returns_and_advantage`` adds ``estimates``,
    ``advantages`` and ``weights`` [T, E, N], ``averaged_advantages`` and ``returns`` [T, E].

    :param buffer_size: number of macro-steps T
    :param observation_space: observation space
    :param action_space: action space
    :param device: PyTorch device of the minibatches
    :param gae_lambda: λ of the committed trajectory's advantages and returns
    :param gamma: discount factor
    :param n_envs: number of environments E
    :param n_samples: number of sampled actions N
    :param advantage: name of the estimator: ``"hybrid"``, ``"per_action"``, ``"averaged"`` or ``"group_normalized"``
    :param tail_coef: weight of the λ-tail in the ``"hybrid"`` estimator
    :param reward_transform: name, function or ``RewardTransform`` applied to all rewards
    :raises InvalidArgumentError: if ``n_samples`` is no positive integer or a name is unknown
    """

    next_values: np.ndarray
    terminated: np.ndarray
    estimates: np.ndarray
    averaged_advantages: np.ndarray
    weights: np.ndarray

    def __init__(
        self,
        buffer_size: int,
        observation_space: spaces.Space[Any],
        action_space: spaces.Space[Any],
        device: th.device | str = "auto",
        gae_lambda: float = 1,
        gamma: float = 0.99,
        n_envs: int = 1,
        n_samples: int = 1,
        advantage: str = "hybrid",
        tail_coef: float = 1.0,
        reward_transform: AnyRewardTransform = "identity",
    ) -> None:
        check_n_samples(n_samples)
        check_advantage(advantage, ESTIMATORS)
        self.n_samples = n_samples
        self.advantage = advantage
        self.tail_coef = tail_coef
        self.reward_transform = make_reward_transform(reward_transform)
        super().__init__(buffer_size, observation_space, action_space, device, gae_lambda, gamma, n_envs)

    def reset(self) -> None:
        """Forget the rollout."""
        super().reset()
        per_sample = (self.buffer_size, self.n_envs, self.n_samples)
        self.actions = np.zeros((*per_sample, self.action_dim), dtype=self.action_space.dtype)
        self.rewards = np.zeros(per_sample, dtype=np.float32)
        self.next_values = np.zeros(per_sample, dtype=np.float32)
        self.terminated = np.zeros(per_sample, dtype=bool)
        self.log_probs = np.zeros(per_sample, dtype=np.float32)

    def add(  # type: ignore[override]
        self,
        obs: np.ndarray | dict[str, np.ndarray],
        action: np.ndarray,
        reward: np.ndarray,
        episode_start: np.ndarray,
        value: th.Tensor | None = None,
        log_prob: th.Tensor | None = None,
        *,
        next_value: np.ndarray,
        terminated: np.ndarray,
    ) -> None:
        """
        Add one macro-step of every environment.

        :param obs: states, [E, \\*obs_shape] or a dict of such arrays
        :param action: sampled actions, [E, N, \\*action_shape]
        :param reward: their rewards, [E, N]
        :param episode_start: whether an episode starts with the state, [E]
        :param value: values of the states, [E]; ``None`` if ``values`` is filled for the whole rollout later
        :param log_prob: log-probabilities of the actions, [E, N]; ``None`` if ``log_probs`` is filled later
        :param next_value: values of the next states, [E, N]. That of the committed action (index 0) counts only where its
            episode was cut off: elsewhere it is the value of the next state of the buffer
        :param terminated: whether the action led to a terminal state, [E, N]
        """
        if isinstance(obs, dict):
            for key, stored in self.observations.items():  # type: ignore[attr-defined]
                stored[self.pos] = np.reshape(obs[key], stored.shape[1:])
        else:
            self.observations[self.pos] = np.reshape(obs, self.observations.shape[1:])
        self.actions[self.pos] = action.reshape(self.actions.shape[1:])
        self.rewards[self.pos] = reward
        self.episode_starts[self.pos] = episode_start
        self.next_values[self.pos] = next_value
        self.terminated[self.pos] = terminated
        if value is not None:
            self.values[self.pos] = value.cpu().numpy().reshape(self.n_envs)
        if log_prob is not None:
            self.log_probs[self.pos] = log_prob.cpu().numpy()
        self.pos += 1
        self.full = self.pos == self.buffer_size

    def compute_returns_and_advantage(self, last_values: th.Tensor, dones: np.ndarray) -> None:
        """
        Fit the reward transform, then compute estimates, advantages and the critic's targets.

        The targets are PPO's: GAE(λ) of the committed trajectory plus values.

        :param last_values: values of the states after the last macro-step, [E] or [E, 1]
        :param dones: whether the last macro-step ended the episode, [E]
        """
        ends = np.concatenate((self.episode_starts[1:], dones[None].astype(np.float32)))
        following = np.concatenate((self.values[1:], last_values.cpu().numpy().reshape(1, self.n_envs)))
        self.next_values[..., 0] = np.where(ends, self.next_values[..., 0], following)
        self.reward_transform.fit(self.rewards, ends, self.gamma)
        rewards = self.reward_transform(self.rewards)
        self.estimates = value_boosted_estimates(rewards, self.values, self.next_values, self.terminated, self.gamma)
        gae = generalized_advantages(self.estimates[..., 0], ends, self.gamma, self.gae_lambda)
        tails = gae_tails(gae, ends, self.gamma, self.gae_lambda)
        self.averaged_advantages = averaged_advantages(self.estimates)
        self.advantages, self.weights = ESTIMATORS[self.advantage](rewards, self.estimates, tails, self.tail_coef)
        self.returns = gae + self.values

    def get(  # type: ignore[override]
        self, batch_size: int | None = None
    ) -> Generator[MultiSampleRolloutBufferSamples, None, None]:
        """
        Yield minibatches of states in random order.

        :param batch_size: number of states; all of them by default
        :return: a generator of minibatches
        """
        if not self.generator_ready:
            self.weights = self.swap_and_flatten(self.weights)
        return super().get(batch_size)  # type: ignore[return-value]

    def _get_samples(  # type: ignore[override]
        self, batch_inds: np.ndarray, env: VecNormalize | None = None
    ) -> MultiSampleRolloutBufferSamples:
        if isinstance(self.observations, dict):
            observations: Any = {key: self.to_torch(stored[batch_inds]) for key, stored in self.observations.items()}
        else:
            observations = self.to_torch(self.observations[batch_inds])
        return MultiSampleRolloutBufferSamples(
            observations,
            actions=self.to_torch(self.actions[batch_inds].astype(np.float32, copy=False)),
            old_values=self.to_torch(self.values[batch_inds].flatten()),
            old_log_prob=self.to_torch(self.log_probs[batch_inds]),
            advantages=self.to_torch(self.advantages[batch_inds]),
            returns=self.to_torch(self.returns[batch_inds].flatten()),
            weights=self.to_torch(self.weights[batch_inds]),
        )


class MultiSampleRolloutBuffer(MultiSampleMixin, RolloutBuffer):
    """``RolloutBuffer`` with N sampled actions per state, see ``MultiSampleMixin``."""


class MultiSampleDictRolloutBuffer(MultiSampleMixin, DictRolloutBuffer):  # type: ignore[misc]
    """``DictRolloutBuffer`` with N sampled actions per state, see ``MultiSampleMixin``."""


def check_n_samples(n_samples: int) -> None:
    """
    Check the number of sampled actions.

    :param n_samples: what the user passed
    :raises InvalidArgumentError: if it is no positive integer
    """
    if isinstance(n_samples, bool) or not isinstance(n_samples, int | np.integer) or n_samples < 1:
        raise InvalidArgumentError(f"`n_samples` must be an integer of at least 1, not {n_samples!r}.")


def check_advantage(advantage: str, names: Any) -> None:
    """
    Check the name of an estimator.

    :param advantage: what the user passed
    :param names: the valid names
    :raises InvalidArgumentError: if it is none of them
    """
    if advantage not in names:
        raise InvalidArgumentError(f"Unknown advantage {advantage!r}: choose one of {', '.join(map(repr, names))}.")


def multi_sample_buffer_class(
    buffer_class: type[RolloutBuffer] | None, observation_space: spaces.Space[Any]
) -> type[MultiSampleMixin]:
    """
    Choose the buffer for an observation space.

    :param buffer_class: what the user passed; SB3's own buffers, as in a checkpoint of PPO, count as no choice
    :param observation_space: observation space
    :return: a buffer class with N samples per state
    :raises InvalidArgumentError: if the user's class cannot keep N samples
    """
    if buffer_class is None or buffer_class in (RolloutBuffer, DictRolloutBuffer):
        return MultiSampleDictRolloutBuffer if isinstance(observation_space, spaces.Dict) else MultiSampleRolloutBuffer
    if not issubclass(buffer_class, MultiSampleMixin):
        raise InvalidArgumentError(
            f"`rollout_buffer_class` must derive from MultiSampleRolloutBuffer or MultiSampleDictRolloutBuffer, which keep "
            f"several actions per state; {buffer_class} does not."
        )
    return buffer_class
