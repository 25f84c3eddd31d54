"""Rollouts that keep N sampled actions per state and compute value-boosted advantages from all of them."""

from collections.abc import Generator
from typing import Any

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.buffers import RolloutBuffer
from stable_baselines3.common.vec_env import VecNormalize

from sb3_hybrid_grpo.common import (
    InvalidArgumentError,
    MultiSampleRolloutBufferSamples,
    Sequences,
    check_name,
    check_positive_integer,
)
from sb3_hybrid_grpo.estimation import (
    ESTIMATORS,
    RELATIVE_ADVANTAGES,
    Advantages,
    AnyRewardTransform,
    averaged_advantages,
    branch_estimates,
    committed_estimates,
    gae_tails,
    generalized_advantages,
    hybrid_advantages,
    make_reward_transform,
    mixed_advantages,
    model_share,
    relative_precision,
    soft_rewards,
    value_boosted_estimates,
    without_rounding,
)

_PRECISION_OF_ENTROPIES = 1e-6


class MultiSampleMixin(RolloutBuffer):
    """
    Turns a rollout buffer of SB3 into one with N sampled actions per state; index 0 is the committed action.

    Arrays: ``observations`` [T, E, ...] once per state; ``actions`` [T, E, N, action_dim], ``rewards``, ``next_values``,
    ``terminated``, ``log_probs``, ``log_weights`` [T, E, N]; ``values``, ``entropies``, ``branched`` [T, E].
    ``bonuses`` [T, E] are rewards that the committed transitions alone have, such as intrinsic ones: see ``add_bonuses``.
    ``compute_returns_and_advantage`` adds ``estimates``, ``advantages`` and ``weights`` [T, E, N], ``averaged_advantages`` and
    ``returns`` [T, E].

    Branches of several steps are kept in ``branch_rewards``, ``branch_next_values``, ``branch_terminated`` and
    ``branch_alive`` [T, E, N, K], whose first step the arrays without prefix show. The committed action has no branch: the
    trajectory itself is its continuation.

    :param buffer_size: number of macro-steps T
    :param observation_space: observation space
    :param action_space: action space
    :param device: PyTorch device of the minibatches
    :param gae_lambda: λ of the committed trajectory's advantages and returns
    :param gamma: discount factor
    :param n_envs: number of environments E
    :param n_samples: number of sampled actions N
    :param advantage: name of the estimator: ``"hybrid"``, ``"per_action"``, ``"averaged"`` or ``"group_normalized"``
    :param tail_coef: weight of the λ-tail in the ``"hybrid"`` estimator; by default 0 beside branches of several steps, else 1
    :param reward_transform: name, function or ``RewardTransform`` applied to all rewards
    :param branch_horizon: number of steps K that a branch may take
    :param branch_lambda: λ of the mix of a branch's prefixes
    :param action_sampling: how the actions were sampled: ``"iid"``, ``"enumerate"``, ``"antithetic"``, ``"tempered"`` or
        ``"modelled"``
    :param is_selected: whether the committed action was chosen among the N by their estimates: then it has a branch like the
        others, and the trajectory, which is not the policy's own, counts for nothing
    :param ent_coef: weight of the policy's entropies in rewards, for soft values; 0 if these are not wanted
    :param kwargs: what the buffer of SB3 or sb3-contrib takes beside this
    :raises InvalidArgumentError: if ``n_samples`` is no positive integer or a name is unknown
    """

    action_masks: np.ndarray | None = None
    branch_rewards: np.ndarray
    branch_next_values: np.ndarray
    branch_terminated: np.ndarray
    branch_alive: np.ndarray
    model_share: float = 0.0
    branch_next_entropies: np.ndarray
    entropies: np.ndarray
    bonuses: np.ndarray
    sources: np.ndarray
    log_weights: np.ndarray
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
        tail_coef: float | None = None,
        reward_transform: AnyRewardTransform = "identity",
        branch_horizon: int = 1,
        branch_lambda: float = 1.0,
        action_sampling: str = "iid",
        is_selected: bool = False,
        ent_coef: float = 0.0,
        **kwargs: Any,
    ) -> None:
        check_positive_integer("n_samples", n_samples)
        check_positive_integer("branch_horizon", branch_horizon)
        check_name("advantage", advantage, ESTIMATORS)
        check_name("action_sampling", action_sampling, RELATIVE_ADVANTAGES)
        self.n_samples = n_samples
        self.advantage = advantage
        self.tail_coef = float(n_samples == 1 or branch_horizon == 1) if tail_coef is None else tail_coef
        self.reward_transform = make_reward_transform(reward_transform)
        self.branch_horizon = branch_horizon
        self.branch_lambda = branch_lambda
        self.action_sampling = action_sampling
        self.is_selected = is_selected
        self.ent_coef = ent_coef
        self.is_soft = ent_coef != 0
        super().__init__(
            buffer_size,
            observation_space,
            action_space,
            device=device,
            gae_lambda=gae_lambda,
            gamma=gamma,
            n_envs=n_envs,
            **kwargs,
        )

    def reset(self) -> None:
        """Forget the rollout."""
        super().reset()
        self.model_share = 0.0
        self._end: tuple[th.Tensor, np.ndarray] | None = None
        per_sample = (self.buffer_size, self.n_envs, self.n_samples)
        per_step = (*per_sample, self.branch_horizon)
        self.actions = np.zeros((*per_sample, self.action_dim), dtype=self.action_space.dtype)
        self.log_probs = np.zeros(per_sample, dtype=np.float32)
        self.entropies = np.zeros(per_sample[:2], dtype=np.float32)
        self.bonuses = np.zeros(per_sample[:2], dtype=np.float32)
        self.log_weights = np.zeros(per_sample, dtype=np.float32)
        self.branch_rewards = np.zeros(per_step, dtype=np.float32)
        self.branch_next_values = np.zeros(per_step, dtype=np.float32)
        self.branch_next_entropies = np.zeros(per_step if self.is_soft else (0,), dtype=np.float32)
        self.branch_terminated = np.zeros(per_step, dtype=bool)
        self.branch_alive = np.zeros(per_step, dtype=bool)
        self.sources = np.broadcast_to(np.arange(self.n_samples), per_sample).copy()
        self.rewards = self.branch_rewards[..., 0]
        self.next_values = self.branch_next_values[..., 0]
        self.terminated = self.branch_terminated[..., 0]

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
        alive: np.ndarray | None = None,
        source: np.ndarray | None = None,
        log_weight: np.ndarray | None = None,
        bonus: np.ndarray | None = None,
    ) -> None:
        """
        Add one macro-step of every environment.

        :param obs: states, [E, \\*obs_shape] or a dict of such arrays
        :param action: sampled actions, [E, N, \\*action_shape]
        :param reward: rewards of the actions, or of all steps of their branches, [E, N] or [E, N, K]
        :param episode_start: whether an episode starts with the state, [E]
        :param value: values of the states, [E]; ``None`` if ``values`` is filled for the whole rollout later
        :param log_prob: log-probabilities of the actions, [E, N]; ``None`` if ``log_probs`` is filled later
        :param next_value: values of the next states, shaped like ``reward``. That of the committed action (index 0) counts
            only where its episode was cut off: elsewhere it is the value of the next state of the buffer
        :param terminated: whether the step led to a terminal state, shaped like ``reward``
        :param alive: whether the step was taken, shaped like ``reward``; all by default
        :param source: index of the sample whose outcome an action shares, because it is the same action, [E, N]
        :param log_weight: logarithms of the importance weights of actions that are no samples of the policy, [E, N]
        :param bonus: rewards that the committed actions alone have, [E]
        """
        if isinstance(obs, dict):
            for key, stored in self.observations.items():  # type: ignore[attr-defined]
                stored[self.pos] = np.reshape(obs[key], stored.shape[1:])
        else:
            self.observations[self.pos] = np.reshape(obs, self.observations.shape[1:])
        per_step = self.branch_rewards.shape[1:]
        self.actions[self.pos] = action.reshape(self.actions.shape[1:])
        self.episode_starts[self.pos] = episode_start
        self.branch_rewards[self.pos] = reward.reshape(per_step)
        self.branch_next_values[self.pos] = next_value.reshape(per_step)
        self.branch_terminated[self.pos] = terminated.reshape(per_step)
        self.branch_alive[self.pos] = True if alive is None else alive.reshape(per_step)
        if source is not None:
            self.sources[self.pos] = source
        if log_weight is not None:
            self.log_weights[self.pos] = log_weight
        if bonus is not None:
            self.bonuses[self.pos] = bonus
        if value is not None:
            self.values[self.pos] = value.cpu().numpy().reshape(self.n_envs)
        if log_prob is not None:
            self.log_probs[self.pos] = log_prob.cpu().numpy()
        self.pos += 1
        self.full = self.pos == self.buffer_size

    def sequences(self, rows: slice) -> Sequences | None:
        """
        Return what a recurrent policy remembered before states.

        :param rows: their macro-steps
        :return: the states as sequences of one each; ``None`` if there is nothing to remember
        """
        return None

    @property
    def branched(self) -> np.ndarray:
        """Whether the samples of a state beyond the committed one were evaluated, [T, E]."""
        return np.asarray(self._are_known.all(axis=-1))

    @property
    def _are_known(self) -> np.ndarray:
        return np.take_along_axis(self.branch_alive[..., 0], self.sources, axis=-1)

    @property
    def _compared(self) -> np.ndarray:
        """
        Which steps of the branches count, [T, E, N, K]: no more of them than the committed trajectory has up to the end of the
        rollout, since what the critic errs by would tell the actions apart.
        """
        if self.is_selected or self.action_sampling == "modelled":
            return self.branch_alive
        steps_left = np.arange(len(self.branch_alive), 0, -1)
        return np.asarray(self.branch_alive & (np.arange(self.branch_horizon) < steps_left[:, None])[:, None, None])

    def compute_returns_and_advantage(self, last_values: th.Tensor, dones: np.ndarray) -> None:
        """
        Fit the reward transform, then compute estimates, advantages and the critic's targets.

        The targets are PPO's: GAE(λ) of the committed trajectory plus values. States that were not branched carry PPO's
        advantage on their committed action, centred like the tails, and count as much less as it is noisier. If the committed
        action was selected, targets are the mean of the estimates plus values: branches go on as the policy does.

        May be called again for the same rollout, whose rewards the reward transform has learned from by then.

        :param last_values: values of the states after the last macro-step, [E] or [E, 1]
        :param dones: whether the last macro-step ended the episode, [E]
        :raises InvalidArgumentError: if there are bonuses that have no place in the estimator
        """
        ends = np.concatenate((self.episode_starts[1:], dones[None].astype(np.float32)))
        following = np.concatenate((self.values[1:], last_values.cpu().numpy().reshape(1, self.n_envs)))
        self.next_values[..., 0] = np.where(ends, self.next_values[..., 0], following)
        if self._end is None:
            shared = np.take_along_axis(self.rewards, self.sources, axis=-1)
            self.reward_transform.begin(self.episode_starts[0])
            self.reward_transform.fit(np.where(self._are_known, shared, self.rewards[..., :1]), ends, self.gamma)
        self._end = last_values, dones
        rewards = self.reward_transform(self.branch_rewards)
        if self.is_soft:
            rewards = soft_rewards(rewards, self.entropies, self.branch_next_entropies, self.ent_coef)

        steps = value_boosted_estimates(rewards[..., 0], self.values, self.next_values, self.terminated, self.gamma)[..., 0]
        gae = generalized_advantages(steps + self.bonuses, ends, self.gamma, self.gae_lambda)
        tails = gae_tails(gae, ends, self.gamma, self.gae_lambda, self.branch_horizon)
        self.estimates = branch_estimates(
            rewards,
            self.values,
            self.branch_next_values,
            self.branch_terminated,
            self._compared,
            self.gamma,
            self.branch_lambda,
        )
        if self.is_selected:
            tails = np.zeros_like(gae)
        else:
            self.estimates[..., 0] = committed_estimates(steps, ends, self.gamma, self.branch_lambda, self.branch_horizon)
        self.estimates = np.take_along_axis(self.estimates, self.sources, axis=-1)
        if self.is_soft:
            of_entropies = self.branch_horizon * self.ent_coef * np.abs(self.entropies).max()
            self.estimates = without_rounding(self.estimates, _PRECISION_OF_ENTROPIES * of_entropies)
        self.averaged_advantages = np.where(self.branched, averaged_advantages(self.estimates), self.estimates[..., 0])
        bonuses = committed_estimates(self.bonuses, ends, self.gamma, self.branch_lambda, self.branch_horizon)
        self._estimate_advantages(np.take_along_axis(rewards[..., 0], self.sources, axis=-1), gae, tails, bonuses)
        self.returns = self.values + ((self.weights * self.estimates).sum(axis=-1) if self.is_selected else gae)

    def add_bonuses(self, bonuses: np.ndarray) -> None:
        """
        Reward the committed transitions for something that branches know nothing of, such as their novelty.

        Call it in a callback's ``_on_rollout_end``: returns and advantages are computed again. The actions of a state are
        compared without bonuses, which none of the others could have had. What the committed action brings over the steps that
        a branch looks ahead is then credited to it alone, relative to the rollout's mean, and the critic learns the returns
        with bonuses, as in PPO.

        :param bonuses: rewards, in units of transformed ones, [T, E]
        :raises InvalidArgumentError: if their shape is another, or they have no place in the estimator
        """
        if np.shape(bonuses) != self.bonuses.shape:
            raise InvalidArgumentError(f"bonuses of a rollout have shape {self.bonuses.shape}, not {np.shape(bonuses)}.")
        if self._end is None or self.generator_ready:
            raise InvalidArgumentError("add_bonuses() is for the end of a rollout: call it in `_on_rollout_end`.")
        self.bonuses += bonuses
        self.compute_returns_and_advantage(*self._end)

    def _check_bonuses(self) -> None:
        obstacles = {
            "the committed action was selected by outcomes that know nothing of them": self.is_selected,
            "a model knows nothing of them": self.action_sampling == "modelled",
            "without a critic there is nothing that they could be added to": self.advantage == "group_normalized",
        }
        for reason, holds in obstacles.items():
            if holds:
                raise InvalidArgumentError(
                    f"Committed transitions can have no bonuses (add_bonuses, or rewards changed by a callback): {reason}. "
                    "Add them in a wrapper of the environment, where branches have them as well."
                )

    def _estimate_advantages(self, rewards: np.ndarray, gae: np.ndarray, tails: np.ndarray, bonuses: np.ndarray) -> None:
        has_bonuses = bool(self.bonuses.any())
        if has_bonuses:
            self._check_bonuses()
        branched = self.branched
        self.advantages = np.zeros(rewards.shape, dtype=np.float32)
        self.weights = np.zeros(rewards.shape, dtype=np.float32)
        if branched.any():
            estimates = self.estimates[branched]
            relative = RELATIVE_ADVANTAGES[self.action_sampling](
                estimates, self.log_probs[branched], self.log_weights[branched]
            )
            advantages = self._combine(rewards[branched], estimates, relative, gae[branched], tails[branched])
            if has_bonuses:
                advantages = hybrid_advantages(advantages, bonuses[branched])
            self.advantages[branched], self.weights[branched] = advantages
        if not branched.all():
            unbranched = gae[~branched] - gae[~branched].mean()
            if branched.any():
                unbranched *= relative_precision(advantages, unbranched)
            self.advantages[~branched, 0] = unbranched
            self.weights[~branched, 0] = 1.0

    def _combine(
        self, rewards: np.ndarray, estimates: np.ndarray, relative: Advantages, gae: np.ndarray, tails: np.ndarray
    ) -> Advantages:
        if self.action_sampling != "modelled":
            return ESTIMATORS[self.advantage](rewards, estimates, relative, tails, self.tail_coef)
        self.model_share = model_share(relative.advantages[..., -1], gae, self.n_samples - 1)
        return mixed_advantages(relative, gae - gae.mean(), self.model_share)

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
        def select(stored: Any) -> Any:
            if isinstance(stored, dict):
                return {key: select(part) for key, part in stored.items()}
            return th.from_numpy(stored[batch_inds]).to(self.device)

        return MultiSampleRolloutBufferSamples(
            select(self.observations),
            actions=select(self.actions).float(),
            old_values=self.values[batch_inds, 0],
            old_log_prob=self.log_probs[batch_inds],
            advantages=self.advantages[batch_inds],
            returns=self.returns[batch_inds, 0],
            weights=self.weights[batch_inds],
        )
