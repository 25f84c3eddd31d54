"""A rollout's data, which serve many estimators at once, and the gradients that follow from them."""

import numpy as np
import torch as th
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.utils import obs_as_tensor

from sb3_hybrid_grpo.estimation.advantages import Advantages
from sb3_hybrid_grpo.estimation.estimates import (
    branch_estimates,
    committed_estimates,
    generalized_advantages,
    value_boosted_estimates,
)
from sb3_hybrid_grpo.estimation.losses import normalize
from sb3_hybrid_grpo.policies.evaluators import evaluate_actions
from sb3_hybrid_grpo.rollout.multi_sample import MultiSampleMixin
from sb3_hybrid_grpo.rollout.values import flatten_observations


class Rollout:
    """
    A rollout of T macro-steps in E environments with all its branches.

    :param policy: the policy that collected it
    :param buffer: its buffer
    :param last_dones: whether the last macro-step ended the episode, [E]
    """

    def __init__(self, policy: ActorCriticPolicy, buffer: MultiSampleMixin, last_dones: np.ndarray) -> None:
        self.buffer = buffer
        self.gamma = buffer.gamma
        self.dones = np.concatenate((buffer.episode_starts[1:], np.float32(last_dones)[None]))
        outcomes = (buffer.rewards, buffer.values, buffer.next_values, buffer.terminated)
        self.steps = value_boosted_estimates(*outcomes, self.gamma)[..., 0]
        obs = obs_as_tensor(flatten_observations(buffer.observations), policy.device)
        actions = th.from_numpy(np.float32(buffer.actions)).flatten(end_dim=1)
        self._log_probs = evaluate_actions(policy, obs, actions)[1]
        self._parameters = list(policy.parameters())
        self._known: dict[tuple[str, int, float], np.ndarray] = {}

    def estimates(self, horizon: int, branch_lambda: float = 1.0) -> np.ndarray:
        """
        Return the value-boosted estimates of all actions from the first K steps of the branches.

        :param horizon: number of steps K
        :param branch_lambda: λ of the mix of prefixes
        :return: δ, [T, E, N]
        """
        key = ("estimates", horizon, branch_lambda)
        if key not in self._known:
            self._known[key] = self._estimates(horizon, branch_lambda)
        return self._known[key]

    def _estimates(self, horizon: int, branch_lambda: float) -> np.ndarray:
        buffer = self.buffer
        arrays = (buffer.branch_next_values, buffer.branch_terminated, buffer.branch_alive)
        estimates = branch_estimates(
            buffer.branch_rewards[..., :horizon],
            buffer.values,
            *(array[..., :horizon] for array in arrays),
            gamma=self.gamma,
            branch_lambda=branch_lambda,
        )
        estimates[..., 0] = committed_estimates(self.steps, self.dones, self.gamma, branch_lambda, horizon)
        return np.take_along_axis(estimates, buffer.sources, axis=-1)

    def gae(self, gae_lambda: float) -> np.ndarray:
        """
        Return PPO's generalized advantage estimates along the committed trajectory.

        :param gae_lambda: λ
        :return: the estimates, [T, E]
        """
        key = ("gae", 0, gae_lambda)
        if key not in self._known:
            self._known[key] = generalized_advantages(self.steps, self.dones, self.gamma, gae_lambda)
        return self._known[key]

    def simulator_steps(self, columns: np.ndarray, horizon: int) -> int:
        """
        Count what a part of the data took.

        :param columns: indices of the actions
        :param horizon: number of steps K
        :return: committed and branch steps
        """
        alive = self.buffer.branch_alive[..., 1:, :horizon].sum(axis=-1)
        used = np.zeros(self.buffer.sources.shape, dtype=bool)
        np.put_along_axis(used, self.buffer.sources[..., columns], True, axis=-1)
        return int(used[..., 0].size + (alive * used[..., 1:]).sum())

    def gradient(self, advantages: Advantages, columns: np.ndarray, normalized: bool = True) -> np.ndarray:
        """
        Return the first-order gradient of the clipped objective, at the policy that sampled the actions.

        g = 1/B Σ_b Σᵢ w[b,i] A[b,i] ∇ log π(a[b,i] | s[b])

        :param advantages: advantages A and weights w of the actions, [T, E, n]
        :param columns: indices of these actions, [n]
        :param normalized: whether A is standardised over the batch before, as in training
        :return: the gradient with respect to all parameters of the actor, one vector
        """
        flat, weights = (np.float32(part).reshape(-1, len(columns)) for part in advantages)
        if normalized:
            flat = normalize(flat, weights)
        coefficients = th.zeros_like(self._log_probs)
        coefficients[:, th.from_numpy(columns)] = th.from_numpy(weights * flat / len(flat))
        parts = th.autograd.grad(self._log_probs, self._parameters, coefficients, retain_graph=True, allow_unused=True)
        return th.cat([part.flatten() for part in parts if part is not None]).numpy()
