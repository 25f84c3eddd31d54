"""Macro-steps: N actions at each state, all of them evaluated in branches of the environment, one of them committed."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any, ClassVar, cast

import numpy as np
import torch as th
from gymnasium import spaces
from sb3_contrib.common.maskable.utils import get_action_masks, is_masking_supported
from sb3_contrib.common.recurrent.type_aliases import RNNStates
from stable_baselines3.common.buffers import RolloutBuffer
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from stable_baselines3.common.type_aliases import GymEnv, MaybeCallback
from stable_baselines3.common.utils import obs_as_tensor
from stable_baselines3.common.vec_env import VecEnv

from sb3_hybrid_grpo.branching import make_brancher
from sb3_hybrid_grpo.common import (
    Brancher,
    BrancherFactory,
    InvalidArgumentError,
    LearningBrancher,
    MaskingBrancher,
    RenewableBrancher,
    check_outcome,
    value_at,
)
from sb3_hybrid_grpo.diagnostics import Watch, rollout_statistics
from sb3_hybrid_grpo.estimation import AnyRewardTransform, RewardTransform
from sb3_hybrid_grpo.policies import (
    Actor,
    Constancy,
    RecurrentActor,
    Samples,
    make_actor,
    masking,
    no_memory,
    remembering,
    to_env_actions,
)
from sb3_hybrid_grpo.rollout import (
    FIRST_SHARE,
    ActionSampling,
    AwaitedBranches,
    BranchPace,
    BranchPaths,
    DeferredValues,
    MacroStep,
    MultiSampleMixin,
    NoiseAhead,
    RecurrentMixin,
    RolloutBranches,
    RolloutCallback,
    TimedBranches,
    committed_transitions,
    estimates_before_the_step,
    evaluate_rollout,
    locals_of,
    make_action_sampling,
    make_deferred,
    make_modelled_sampling,
    make_rollout_branches,
    reordered,
    select,
    sources_of,
)


class MacroSteps(OnPolicyAlgorithm):
    """The half of ``HybridGRPO`` that collects rollouts. Its arguments are documented there."""

    action_sampling: str
    action_selection: str
    advantage: str
    branch_fraction: float | str
    branch_lambda: float
    branch_share: float = FIRST_SHARE
    branch_timeout: float | None
    brancher: str | BrancherFactory
    model_transitions: list[th.Tensor] | None
    n_samples: int
    num_simulator_steps: int
    reward_transform: AnyRewardTransform
    sampling_temperature: float
    soft_values: bool
    tail_coef: float | None
    uses_critic: ClassVar[bool]
    _action_sampling: ActionSampling
    _branch_rng: np.random.Generator
    _branched_env: VecEnv | None
    _brancher: Brancher | None
    _horizon: int
    _is_maskable: bool
    _is_recurrent: bool
    _last_lstm_states: RNNStates | None
    _is_modelled: bool
    _model_state: dict[str, Any] | None
    _pace: BranchPace
    _selection_scale: float
    _watch: Watch

    def collect_rollouts(
        self, env: VecEnv, callback: BaseCallback, rollout_buffer: RolloutBuffer, n_rollout_steps: int
    ) -> bool:
        """
        Collect macro-steps with the current policy: N actions at each state, all evaluated, the first one committed.

        :param env: The training environment
        :param callback: Callback that will be called at each committed step
        :param rollout_buffer: Buffer to fill with macro-steps
        :param n_rollout_steps: Number of macro-steps to collect per environment
        :return: whether the rollout was completed: ``False`` if the callback ended it
        :raises InvalidOutcomeError: if the environment returns NaN or infinity
        :raises BranchError: if the environment raises in a branch
        """
        assert self._last_obs is not None, "No previous observation was provided"
        assert isinstance(rollout_buffer, MultiSampleMixin)
        self.policy.set_training_mode(False)
        n_envs, n_samples = env.num_envs, self._action_sampling.group_size
        shown = locals_of(callback)
        shown.update(self=self, env=env, rollout_buffer=rollout_buffer, n_rollout_steps=n_rollout_steps)

        n_steps = 0
        rollout_buffer.reset()
        callback.on_rollout_start()  # It may change the policy, as in PPO.
        self._begin_rollout(env, n_rollout_steps)
        constancy = Constancy(self.policy)
        actor = self._make_actor()
        deferred = self._make_deferred()
        noise = self._make_noise(n_envs)
        others = slice(0 if rollout_buffer.is_selected else 1, None)
        prepare = partial(self._prepare, actor, rollout_buffer, deferred)
        timed, untimed = self._choose_share()
        branches = prepare()

        while n_steps < n_rollout_steps:
            with timed():
                noise.advance()
            action_masks = get_action_masks(env) if self._is_maskable else None
            actor.observe(self._last_obs, self._last_episode_starts)  # type: ignore[arg-type]
            actions, values, log_probs, _, log_weights = self._sample(actor, noise, action_masks)
            env_actions = to_env_actions(self.policy, actions)

            if getattr(self._brancher, "is_outdated", False):
                branches = self._renew(branches, prepare)
            with timed():
                sources, alive = self._choose_branches(actions, action_masks)
            branches.begin(env_actions[:, others], alive[:, others], self._last_obs, noise.later)  # type: ignore[arg-type]
            if isinstance(branches, AwaitedBranches):
                order = self._select(branches.paths, sources, rollout_buffer.ent_coef)
                branches.paths.reorder(order)
                actions, env_actions, log_weights = reordered((actions, env_actions, log_weights), order)
                sources = reordered(order, reordered(sources, order))
            new_obs, rewards, dones, infos = branches.step_env(env, env_actions[:, 0])
            check_outcome(new_obs, rewards)

            self.num_timesteps += n_envs
            self.num_simulator_steps += n_envs

            committed, rewards_with_bonus = actions[:, 0], rewards.copy()
            shown.renew(
                {
                    "n_steps": n_steps,
                    "actions": committed,
                    "clipped_actions": env_actions[:, 0],
                    "new_obs": new_obs,
                    "rewards": rewards_with_bonus,
                    "dones": dones,
                    "infos": infos,
                    "action_masks": action_masks,
                    "lstm_states": actor.memory,
                    "sampled_actions": actions,
                    "clipped_sampled_actions": env_actions,
                    "sources": sources,
                },
                *(self.policy, self._last_obs, committed, action_masks, values, log_probs, actor.present),
            )
            callback.update_locals(shown)
            with untimed():
                goes_on = callback.on_step()
            if not goes_on:
                return False

            self._update_info_buffer(infos, dones)
            macro_step = MacroStep(n_envs, n_samples, self._horizon)
            macro_step.commit(rewards, dones, infos, partial(self._terminal_value, actor))
            rollout_buffer.add(
                self._last_obs,  # type: ignore[arg-type]
                actions,
                macro_step.rewards,
                self._last_episode_starts,  # type: ignore[arg-type]
                values,
                log_probs,
                next_value=macro_step.next_values,
                terminated=macro_step.terminated,
                alive=macro_step.alive,
                source=sources,
                log_weight=log_weights,
                bonus=rewards_with_bonus - rewards,
                **masking(action_masks),
                **remembering(actor.present),
            )
            self.num_simulator_steps += branches.finish(new_obs, infos, macro_step.terminated[:, 0, 0])

            n_steps += 1
            self._last_obs = new_obs  # type: ignore[assignment]
            self._last_episode_starts = dones
            self._last_lstm_states = actor.memory

        constancy.check()
        self.num_simulator_steps += branches.finish_all()
        with timed():
            for quantity in deferred:
                quantity.flush()
        if log_probs is None:
            evaluate_rollout(self.policy, rollout_buffer, with_values=self.uses_critic)
        with th.no_grad():
            last_values = actor.next_values(obs_as_tensor(new_obs, self.device), episode_starts=dones)  # type: ignore[arg-type]

        self._hand_over_settings(rollout_buffer)
        rollout_buffer.compute_returns_and_advantage(last_values=last_values, dones=dones)

        if self._is_modelled:
            self._learn_model(rollout_buffer, new_obs, dones)
        self.logger.record("time/simulator_steps", self.num_simulator_steps)
        statistics = rollout_statistics(self.policy, rollout_buffer)
        for name, value in statistics.items():
            self.logger.record(name, value)
        self._watch.look(statistics)
        self._selection_scale = statistics["rollout/group_std"] or np.inf

        shown.update(
            n_steps=n_steps,
            actions=actions[:, 0].reshape(-1, 1) if isinstance(self.action_space, spaces.Discrete) else actions[:, 0],
            values=last_values,
            log_probs=th.tensor(rollout_buffer.log_probs[-1, :, 0], device=self.device),
        )
        callback.update_locals(shown)
        callback.on_rollout_end()
        return True

    def _begin_rollout(self, env: VecEnv, n_steps: int) -> None:
        """Prepare for a rollout with the policy as it is now."""
        self._branch(env)

    def _branch(self, env: VecEnv | None) -> None:
        """Have a brancher of an environment, and of what is in it now."""
        if env is not self._branched_env:
            self._brancher = self._make_brancher(env)
            self._branched_env = env
        elif getattr(self._brancher, "is_outdated", False):
            cast(RenewableBrancher, self._brancher).renew()

    def _prepare(self, actor: Actor, rollout_buffer: MultiSampleMixin, deferred: Sequence[DeferredValues]) -> RolloutBranches:
        make = AwaitedBranches if rollout_buffer.is_selected else make_rollout_branches
        branches: RolloutBranches = make(actor, self._brancher, rollout_buffer, deferred)
        return TimedBranches(branches, self._pace) if self.branch_fraction == "auto" else branches

    def _make_noise(self, n_envs: int) -> NoiseAhead:
        sde_sample_freq = self.sde_sample_freq if self.use_sde else None
        return NoiseAhead(self.policy, n_envs, self._action_sampling.group_size, self._horizon, sde_sample_freq)

    def _sample(self, actor: Actor, noise: NoiseAhead, action_masks: np.ndarray | None) -> Samples:
        return self._action_sampling.sample(actor, self._last_obs, noise.now, action_masks)  # type: ignore[arg-type]

    def _choose_share(self) -> tuple[Callable[[], AbstractContextManager[None]], Callable[[], AbstractContextManager[None]]]:
        """Decide which share of the states is branched; return what counts time as that of branches, and what as no one's."""
        if self.branch_fraction != "auto":
            self.branch_share = float(self.branch_fraction)
            return nullcontext, nullcontext
        self.branch_share = self._pace.begin(self.branch_share)
        self.logger.record("rollout/branch_share", self.branch_share)
        return self._pace.branching, self._pace.elsewhere

    def _renew(self, branches: RolloutBranches, prepare: Callable[[], RolloutBranches]) -> RolloutBranches:
        """Complete what is to be branched in environments that were exchanged, and go on with those that there are now."""
        self.num_simulator_steps += branches.finish_all()
        cast(RenewableBrancher, self._brancher).renew()
        return prepare()

    def _hand_over_settings(self, rollout_buffer: MultiSampleMixin) -> None:
        """Tell the buffer what callbacks may have changed since it was made, as PPO looks up ``ent_coef`` at each update."""
        if self.soft_values:
            rollout_buffer.ent_coef = value_at(self.ent_coef, self._current_progress_remaining)
        if "branch_lambda" not in self.rollout_buffer_kwargs:
            rollout_buffer.branch_lambda = self.branch_lambda
        if self.tail_coef is not None and "tail_coef" not in self.rollout_buffer_kwargs:
            rollout_buffer.tail_coef = self.tail_coef

    def _choose_branches(self, actions: np.ndarray, action_masks: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
        """
        Return the sample whose outcome each action shares, [E, N], since no action is branched twice at one state, and which
        of these may be branched, [E, N].
        """
        own = np.arange(actions.shape[1])
        sources = sources_of(actions, self._are_distinct)
        if action_masks is not None and self._action_sampling.name == "enumerate":
            # The probability of invalid actions is zero: any outcome will do.
            sources[~np.take_along_axis(action_masks.astype(bool), actions, axis=1)] = 0
        alive = sources == own
        if self._is_modelled and not cast(LearningBrancher, self._brancher).is_ready:
            alive[:] = False
        if self.branch_share < 1:
            skipped = self._branch_rng.random(len(actions)) >= self.branch_share
            alive[skipped] = False
            sources[skipped] = own
        return sources, alive

    @property
    def _are_distinct(self) -> bool:
        """Whether the samples of a state are never equal, or are all branched."""
        return isinstance(self.action_space, spaces.Box) or self.n_samples == 1 or self._is_modelled

    def _select(self, paths: BranchPaths, sources: np.ndarray, ent_coef: float) -> np.ndarray:
        """Return the order of samples, [E, N], in which the one that is to be committed comes first."""
        assert isinstance(self.reward_transform, RewardTransform)
        estimates = estimates_before_the_step(
            paths, self.policy, self.reward_transform, self.gamma, self.branch_lambda, ent_coef
        )
        sampling = self._action_sampling.name
        return select(self.action_selection, estimates, sources, sampling, self._selection_scale, self._branch_rng)

    def _learn_model(self, rollout_buffer: MultiSampleMixin, new_obs: Any, dones: np.ndarray) -> None:
        brancher = cast(LearningBrancher, self._brancher)
        brancher.learn_from(committed_transitions(self.policy, rollout_buffer, new_obs, dones))
        self._model_state, self.model_transitions = brancher.state_dict(), brancher.transitions
        self.logger.record("rollout/model_error", brancher.error)
        self.logger.record("rollout/model_spread", brancher.spread)
        self.logger.record("rollout/model_share", rollout_buffer.model_share)

    def _terminal_value(self, actor: Actor, terminal_obs: np.ndarray | dict[str, np.ndarray], env_idx: int) -> float:
        with th.no_grad():
            return actor.next_values(self.policy.obs_to_tensor(terminal_obs)[0], slice(env_idx, env_idx + 1)).item()

    def _make_actor(self) -> Actor:
        memory = self._last_lstm_states
        return make_actor(self.policy) if memory is None else RecurrentActor(self.policy, memory)

    def _make_deferred(self) -> list[DeferredValues]:
        """Return what is to be known of the states that branches lead to."""
        return make_deferred(self.policy, self._is_recurrent, self.uses_critic, self.soft_values)

    def _remember_nothing(self) -> None:
        """Have the buffer keep what a recurrent policy remembers, which is nothing so far."""
        if self._is_recurrent:
            self._last_lstm_states = no_memory(self.policy, self.n_envs)
            cast(RecurrentMixin, self.rollout_buffer).make_room_for(self._last_lstm_states)

    def _make_action_sampling(self) -> ActionSampling:
        how_many = (self.action_sampling, self.n_samples, self.advantage, self.policy_class)
        if self._is_modelled:
            return make_modelled_sampling(*how_many, self.sampling_temperature, self.tail_coef)  # type: ignore[arg-type]
        return make_action_sampling(*how_many, self.action_space, self.use_sde, self.sampling_temperature)  # type: ignore[arg-type]

    def _make_brancher(self, env: VecEnv | None) -> Brancher | None:
        if env is None:
            return None
        if self._is_maskable and not is_masking_supported(env):
            raise InvalidArgumentError(
                f"{self.policy_class.__name__} needs masks, but the environment has no method `action_masks` that tells them. "
                "Wrap it in sb3_contrib.common.wrappers.ActionMasker, or use a policy without masks."
            )
        if self.n_samples == 1:
            return None
        brancher = make_brancher(self.brancher, env, self.branch_timeout)
        if self.action_selection != "first" and not brancher.uses_simulator:
            raise InvalidArgumentError(
                f"action_selection={self.action_selection!r} needs outcomes before the committed step, and "
                f"{type(brancher).__name__} knows them after it. Use 'first'."
            )
        if self._is_maskable and hasattr(brancher, "include_masks"):
            cast(MaskingBrancher, brancher).include_masks()
        if self._is_modelled and self._model_state is not None:
            model = cast(LearningBrancher, brancher)
            model.load_state_dict(self._model_state)
            model.transitions = self.model_transitions or []
        return brancher

    def set_env(self, env: GymEnv, force_reset: bool = True) -> None:
        """
        Set the training environment, as in SB3, and prepare to branch it; if it is refused, the model keeps its own.

        :param env: the environment
        :param force_reset: whether to reset it before training
        :raises UnbranchableEnvError: if N > 1 and the environment cannot be branched exactly
        """
        vec_env = self._wrap_env(env, self.verbose)
        brancher = self._make_brancher(vec_env)
        super().set_env(vec_env, force_reset)
        self._brancher, self._branched_env = brancher, vec_env

    def _init_callback(self, callback: MaybeCallback, progress_bar: bool = False) -> BaseCallback:
        return RolloutCallback(super()._init_callback(callback, progress_bar))

    def __getstate__(self) -> dict[str, Any]:
        """Leave the brancher out, which is bound to living environments. The next rollout makes it anew."""
        return {**vars(self), "_brancher": None, "_branched_env": None}
