"""Rollouts that workers collect by themselves."""

from collections.abc import Sequence
from copy import deepcopy
from functools import partial
from typing import Any, cast

import numpy as np
import torch as th
from stable_baselines3.common.buffers import RolloutBuffer
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.vec_env import VecEnv

from sb3_hybrid_grpo.common import Brancher, CollectingBrancher, InvalidArgumentError
from sb3_hybrid_grpo.hybrid_grpo.macro_steps import MacroSteps
from sb3_hybrid_grpo.policies import Actor, Samples, overrides_forward, sendable
from sb3_hybrid_grpo.rollout import (
    DeferredValues,
    FragmentCollector,
    MultiSampleMixin,
    NoiseAhead,
    Playback,
    PlayedBranches,
    RolloutBranches,
    branches_at_once,
    follow,
)


class Fragments(MacroSteps):
    """
    The mixin that has workers collect whole rollouts, see ``rollout_in_workers``.

    The main process then goes through each of them as if its steps were being taken, so that callbacks, wrappers and the
    buffer see what they would have seen.
    """

    rollout_in_workers: bool
    _playback: Playback | None = None

    def collect_rollouts(
        self, env: VecEnv, callback: BaseCallback, rollout_buffer: RolloutBuffer, n_rollout_steps: int
    ) -> bool:
        """
        Collect macro-steps with the current policy, in workers if that was asked for.

        :param env: The training environment
        :param callback: Callback that will be called at each committed step, once all have been taken
        :param rollout_buffer: Buffer to fill with macro-steps
        :param n_rollout_steps: Number of macro-steps to collect per environment
        :return: whether the rollout was completed: ``False`` if the callback ended it
        :raises InvalidOutcomeError: if the environment returns NaN or infinity
        :raises BranchError: if the environment raises in a branch
        """
        try:
            return super().collect_rollouts(env, callback, rollout_buffer, n_rollout_steps)
        finally:
            playback, self._playback = self._playback, None
            if playback is not None:
                self._last_obs, self._last_episode_starts = playback.finish()

    def _begin_rollout(self, env: VecEnv, n_steps: int) -> None:
        super()._begin_rollout(env, n_steps)
        if self.rollout_in_workers:
            self._playback = self._collect_in_workers(env, n_steps)

    def _collect_in_workers(self, env: VecEnv, n_steps: int) -> Playback:
        brancher = cast(CollectingBrancher, self._brancher)
        actor = self._make_actor()
        obstacle = brancher.obstacle_to_collecting
        if obstacle is None and self._horizon > 1:
            obstacle = brancher.teach(partial(follow, actor.replica()))
        if obstacle is not None:
            raise _impossible(obstacle)
        skipped = np.zeros((n_steps, env.num_envs), dtype=bool)
        share = float(self.branch_fraction)
        if share < 1:
            # These numbers are drawn once more when the rollout is gone through.
            skipped = deepcopy(self._branch_rng).random(skipped.shape) >= share
        collector = FragmentCollector(
            sendable(self.policy),
            self._action_sampling,
            self._are_distinct,
            env.num_envs,
            n_steps,
            self._horizon,
            self.sde_sample_freq if self.use_sde else None,
            th.get_rng_state(),
            branches_at_once(brancher) if brancher.can_remember else None,
        )
        fragments = brancher.collect(collector, lambda rows: (_rows_of(self._last_obs, rows), skipped[:, rows]), n_steps)
        th.set_rng_state(fragments[0].random_state)
        return Playback(self.policy, env, fragments)

    def _make_noise(self, n_envs: int) -> NoiseAhead:
        """Leave the noise to workers."""
        return super()._make_noise(n_envs) if self._playback is None else NoiseAhead(self.policy, n_envs, 1, 1, None)

    def _sample(self, actor: Actor, noise: NoiseAhead, action_masks: np.ndarray | None) -> Samples:
        return super()._sample(actor, noise, action_masks) if self._playback is None else self._playback.samples()

    def _prepare(self, actor: Actor, rollout_buffer: MultiSampleMixin, deferred: Sequence[DeferredValues]) -> RolloutBranches:
        if self._playback is None:
            return super()._prepare(actor, rollout_buffer, deferred)
        return PlayedBranches(self._playback, actor, cast(Brancher, self._brancher), rollout_buffer, deferred)

    def _make_brancher(self, env: VecEnv | None) -> Brancher | None:
        brancher = super()._make_brancher(env)
        if self.rollout_in_workers and env is not None:
            self._check_fragments(brancher)
        return brancher

    def _check_fragments(self, brancher: Brancher | None) -> None:
        policy_name = self.policy_class.__name__
        obstacles = {
            "with n_samples=1 nothing is branched": brancher is None,
            f"action_selection={self.action_selection!r} asks the critic before each step: use 'first'": (
                self.action_selection != "first"
            ),
            "branch_fraction='auto' times each step of the main process: use a number": self.branch_fraction == "auto",
            f"{policy_name} needs masks of the states that only workers know: use a policy without": self._is_maskable,
            f"what {policy_name} remembers is known to the main process alone: use a policy without memory": (
                self._is_recurrent
            ),
            f"{policy_name} samples in a `forward` of its own: override `_get_action_dist_from_latent` instead": (
                overrides_forward(self.policy_class)
            ),
            f"brancher={self.brancher!r} has no simulators in workers: use 'auto'": not hasattr(
                brancher, "obstacle_to_collecting"
            ),
        }
        obstacle = next((text for text, holds in obstacles.items() if holds), None)
        if obstacle is None:
            obstacle = cast(CollectingBrancher, brancher).obstacle_to_collecting
        if obstacle is not None:
            raise _impossible(obstacle)
        try:
            sendable(self.policy)
        except InvalidArgumentError as error:
            raise _impossible(str(error)) from error

    def _excluded_save_params(self) -> list[str]:
        return [*super()._excluded_save_params(), "_playback"]

    def __getstate__(self) -> dict[str, Any]:
        """Leave out a rollout that is being gone through, too."""
        return {**super().__getstate__(), "_playback": None}


def _impossible(obstacle: str) -> InvalidArgumentError:
    return InvalidArgumentError(f"rollout_in_workers=True is not possible: {obstacle}; or use rollout_in_workers=False.")


def _rows_of(observations: Any, rows: slice) -> Any:
    if isinstance(observations, dict):
        return {key: part[rows] for key, part in observations.items()}
    return observations[rows]
