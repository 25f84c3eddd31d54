"""Hybrid Group Relative Policy Optimization."""

from typing import Any, ClassVar, TypeVar

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.buffers import RolloutBuffer
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from stable_baselines3.common.policies import ActorCriticPolicy, BasePolicy
from stable_baselines3.common.type_aliases import GymEnv, MaybeCallback, Schedule
from stable_baselines3.common.utils import FloatSchedule

from sb3_hybrid_grpo.common import (
    BrancherFactory,
    CheckedCheckpoints,
    InvalidArgumentError,
    check_batches,
    check_desired_kl,
    check_name,
    check_number,
    check_positive_integer,
    check_trust_region,
    parse_schedule,
    value_at,
    warn,
)
from sb3_hybrid_grpo.diagnostics import Watch
from sb3_hybrid_grpo.estimation import AnyRewardTransform, make_reward_transform
from sb3_hybrid_grpo.hybrid_grpo.clipped_update import ClippedUpdate
from sb3_hybrid_grpo.hybrid_grpo.fragments import Fragments
from sb3_hybrid_grpo.hybrid_grpo.macro_steps import MacroSteps
from sb3_hybrid_grpo.hybrid_grpo.policies import ALIASES
from sb3_hybrid_grpo.hybrid_grpo.restarts import Restarts
from sb3_hybrid_grpo.hybrid_grpo.seeds import BranchSeeds
from sb3_hybrid_grpo.policies import (
    check_common_noise,
    check_distribution,
    check_entropies,
    check_policy_class,
    has_linear_head,
    is_maskable,
    is_recurrent,
    masking,
    without_sde,
)
from sb3_hybrid_grpo.rollout import BranchPace, MultiSampleMixin, check_pace, check_selection, multi_sample_buffer_class

SelfHybridGRPO = TypeVar("SelfHybridGRPO", bound="HybridGRPO")


class HybridGRPO(Restarts, Fragments, MacroSteps, ClippedUpdate, CheckedCheckpoints, BranchSeeds, OnPolicyAlgorithm):
    """
    Hybrid Group Relative Policy Optimization (Hybrid GRPO)

    Paper: https://arxiv.org/abs/2502.01652

    At each state N actions are sampled from the policy and each of them is evaluated by branching the environment: its
    reward and the value of its next state. The environment then goes on with the first of them, the committed action.
    The policy is improved with PPO's clipped loss, averaged over the N actions.

    All arguments that PPO has too are PPO's: same order, default and meaning, except that ``target_kl`` stops the policy's
    part of the update and not the critic's. A minibatch of ``batch_size`` states holds ``batch_size`` · N actions, and
    ``num_timesteps`` counts committed steps only.

    :param policy: The policy model to use (MlpPolicy, CnnPolicy, ...). With sb3-contrib's maskable ones (MaskableMlpPolicy,
        ...) invalid actions are neither sampled nor branched: which ones are valid says the environment's method
        ``action_masks``, as for ``MaskablePPO``. With its recurrent ones (MlpLstmPolicy, ...) branches remember, too
    :param env: The environment to learn from (if registered in Gym, can be str)
    :param learning_rate: The learning rate, it can be a function of the current progress remaining (from 1 to 0)
    :param n_steps: The number of committed steps to run for each environment per update
    :param batch_size: Number of states in a minibatch
    :param n_epochs: Number of epochs when optimizing the surrogate loss
    :param gamma: Discount factor
    :param gae_lambda: λ of Generalized Advantage Estimation along the committed trajectory: it shapes the critic's targets
        and the tail of the ``"hybrid"`` advantage
    :param clip_range: Clipping parameter, it can be a function of the current progress remaining (from 1 to 0)
    :param clip_range_vf: Clipping parameter of the value function, likewise; no clipping if ``None``
    :param normalize_advantage: Whether to normalize the advantages of a minibatch
    :param ent_coef: Entropy coefficient for the loss calculation, it can be a function of the current progress remaining
        (from 1 to 0), or ``"lin_0.01"``, which falls linearly from 0.01 to 0
    :param vf_coef: Value function coefficient for the loss calculation
    :param max_grad_norm: The maximum value for the gradient clipping
    :param use_sde: Whether to use generalized State Dependent Exploration (gSDE); the N samples of a state have noise
        matrices of their own
    :param sde_sample_freq: Sample new noise matrices every n steps when using gSDE; -1: only at the beginning of a rollout
    :param rollout_buffer_class: Rollout buffer class to use, derived from ``MultiSampleRolloutBuffer`` or
        ``MultiSampleDictRolloutBuffer``. If ``None``, it will be automatically selected.
    :param rollout_buffer_kwargs: Keyword arguments to pass to the rollout buffer on creation
    :param target_kl: Stop updating the policy, and only the policy, for the rest of a rollout's epochs when the approximate
        KL divergence of a minibatch exceeds 1.5 times this. By default, there is no limit.
    :param stats_window_size: Window size for the rollout logging, in episodes
    :param tensorboard_log: the log location for tensorboard (if None, no logging)
    :param policy_kwargs: additional arguments to be passed to the policy on creation
    :param verbose: Verbosity level: 0 for no output, 1 for info messages, 2 for debug messages
    :param seed: Seed for the pseudo random generators
    :param device: Device (cpu, cuda, ...) on which the code should be run
    :param _init_setup_model: Whether or not to build the network at the creation of the instance
    :param n_samples: Number of actions N sampled at each state. With 1 nothing is branched, and with
        ``reward_transform="identity"``, ``refit_critic=False`` and ``max_actor_grad_norm=None`` the algorithm is PPO.
    :param advantage: How N estimates become advantages: ``"hybrid"``, ``"per_action"`` or ``"averaged"`` (the paper's), see
        ``sb3_hybrid_grpo.estimation.advantages``
    :param tail_coef: Weight of the committed action's λ-tail in the ``"hybrid"`` advantage; by default 0 beside branches of
        several steps, which need none, else 1
    :param reward_transform: Function of rewards applied before advantages are computed: ``"identity"``, ``"tanh"`` (the
        paper's), ``"scaled_tanh"``, ``"normalized"``, ``"zscore"``, a ``RewardTransform`` or a function on arrays
    :param reward_transform_kwargs: Keyword arguments of a named reward transform
    :param branch_horizon: Number of steps K in each branch: the first with the sampled action, the others with the policy and
        the noise of the committed trajectory. The value after the last one is bootstrapped.
    :param branch_lambda: λ of the mix of the K-step return with those of fewer steps; 1 is the K-step return alone
    :param action_sampling: How the N actions of a state are chosen: ``"iid"`` (independent samples), ``"enumerate"`` (all
        actions of a discrete space, weighted with their probabilities: needs N of at least their number, and branches each
        once), ``"antithetic"`` (pairs reflected at the mean of a Gaussian policy), or ``"auto"`` (enumerate where possible)
    :param sampling_temperature: Temperature T of the policy π^(1/T) that all actions but the committed one are sampled from:
        above 1, branches explore more than the policy does, and importance weights keep its gradient unbiased
    :param action_selection: Which of the N actions is committed: ``"first"`` (a sample of the policy), ``"softmax"`` (by their
        value-boosted estimates, in units of their usual spread within a state) or ``"best"``. The gradient and the critic's
        targets then come from branches alone, N of them, and are the policy's own in the states that are visited; which
        states these are is a bias.
    :param branch_fraction: Share of states that are branched, chosen at random; the others carry PPO's advantage, and count as
        much less as it is noisier. With ``"auto"`` it follows the clock, see ``branch_time_limit``
    :param branch_time_limit: How many times as long as without branches a step may take with ``branch_fraction="auto"``
    :param soft_values: Whether ``ent_coef`` times the entropy of the policy is part of the reward in each state, so that
        actions count by the entropies of the states they lead to as well; otherwise it is a term of the loss only, as in PPO
    :param refit_critic: Whether the critic's last layer is solved by least squares at the end of each update, if the rollout
        has at least four states per unit before it and an action in it changed a reward or ended an episode: gradient
        descent lags behind returns that grow, and branches end in the critic's values
    :param max_actor_grad_norm: Limit of the norm of the actor's gradient by itself; ``max_grad_norm`` is then the limit of all
        others together. With ``None`` there is one limit for all, as in PPO: the critic's gradient, which grows with the
        returns and with ``refit_critic``, then leaves the actor's next to nothing. The norm is 0.1 to 1 without a limit, so
        that with 0.005 all minibatches count alike, and Adam's ε (1e-5 in SB3) passes over what is only noise
    :param desired_kl: Adapt the learning rate after each update: divide it by 1.5 if the KL divergence in the last epoch, as
        logged, was more than twice this, and multiply it by 1.5 if it was less than half. The factor that results is logged
        as ``train/learning_rate_factor`` and kept in checkpoints. By default, the learning rate follows its schedule alone.
    :param learning_rate_bounds: The least and the greatest learning rate that ``desired_kl`` may lead to
    :param trust_region: KL divergence of one natural-gradient step of the policy per rollout, TRPO's: it lowers the clipped
        loss of all states at once, and is shortened until it does. It can be a function of the progress, as ``ent_coef``.
        ``learning_rate``, ``n_epochs``, ``batch_size`` and ``max_grad_norm`` are then the critic's alone. By default, the
        policy is updated in minibatches, as in PPO.
    :param brancher: Where the outcomes of actions come from that are not committed: ``"snapshot"`` (the state of the
        environment is saved and restored exactly), ``"fork"`` (the process is copied for every branch: slow, but exact for any
        environment), ``"replay"`` (the steps of the episode are taken again in a copy of the environment: faster than that in
        short episodes, and on any platform), ``"quickest"`` (of these two at each state), ``"auto"`` (snapshots where they are
        exact, else the quickest way that is, with a warning), ``"learned"`` (a model of the environment is learned along the
        way, and used as far as it is right), or a callable that makes a ``Brancher`` for a ``VecEnv``
    :param branch_timeout: Seconds that the branches of an environment may take for one step before ``BranchTimeoutError`` is
        raised; no limit by default
    :param rollout_in_workers: Whether each worker of a ``GroupedSubprocVecEnv`` or ``RayVecEnv`` collects its share of a
        rollout by itself: callbacks see the steps afterwards, and ``VecNormalize`` stands still until the end of each rollout
    :raises InvalidArgumentError: if an argument has a value that cannot work
    :raises UnbranchableEnvError: if N > 1 and the environment cannot be branched exactly
    """

    policy_aliases: ClassVar[dict[str, type[BasePolicy]]] = ALIASES
    advantage_names: ClassVar[tuple[str, ...]] = ("hybrid", "per_action", "averaged")
    uses_critic: ClassVar[bool] = True

    rollout_buffer: MultiSampleMixin

    def __init__(
        self,
        policy: str | type[ActorCriticPolicy],
        env: GymEnv | str,
        learning_rate: float | Schedule = 3e-4,
        n_steps: int = 2048,
        batch_size: int = 64,
        n_epochs: int = 10,
        gamma: float = 0.99,
        gae_lambda: float = 0.95,
        clip_range: float | Schedule = 0.2,
        clip_range_vf: float | Schedule | None = None,
        normalize_advantage: bool = True,
        ent_coef: float | str | Schedule = 0.0,
        vf_coef: float = 0.5,
        max_grad_norm: float = 0.5,
        use_sde: bool = False,
        sde_sample_freq: int = -1,
        rollout_buffer_class: type[RolloutBuffer] | None = None,
        rollout_buffer_kwargs: dict[str, Any] | None = None,
        target_kl: float | None = None,
        stats_window_size: int = 100,
        tensorboard_log: str | None = None,
        policy_kwargs: dict[str, Any] | None = None,
        verbose: int = 0,
        seed: int | None = None,
        device: th.device | str = "auto",
        _init_setup_model: bool = True,
        *,
        n_samples: int = 2,
        advantage: str = "hybrid",
        tail_coef: float | None = None,
        reward_transform: AnyRewardTransform = "scaled_tanh",
        reward_transform_kwargs: dict[str, Any] | None = None,
        branch_horizon: int = 8,
        branch_lambda: float = 1.0,
        branch_fraction: float | str = 1.0,
        branch_time_limit: float = 1.5,
        action_sampling: str = "auto",
        sampling_temperature: float = 1.0,
        action_selection: str = "first",
        soft_values: bool = False,
        refit_critic: bool = True,
        max_actor_grad_norm: float | None = 0.005,
        desired_kl: float | None = None,
        learning_rate_bounds: tuple[float, float] = (1e-6, 1e-2),
        trust_region: float | str | Schedule | None = None,
        brancher: str | BrancherFactory = "auto",
        branch_timeout: float | None = None,
        rollout_in_workers: bool = False,
    ) -> None:
        super().__init__(
            policy,
            env,
            learning_rate=learning_rate,
            n_steps=n_steps,
            gamma=gamma,
            gae_lambda=gae_lambda,
            ent_coef=ent_coef,  # type: ignore[arg-type]
            vf_coef=vf_coef,
            max_grad_norm=max_grad_norm,
            use_sde=use_sde,
            sde_sample_freq=sde_sample_freq,
            rollout_buffer_class=rollout_buffer_class,
            rollout_buffer_kwargs=rollout_buffer_kwargs,
            stats_window_size=stats_window_size,
            tensorboard_log=tensorboard_log,
            policy_kwargs=policy_kwargs,
            verbose=verbose,
            device=device,
            seed=seed,
            _init_setup_model=False,
            supported_action_spaces=(spaces.Box, spaces.Discrete, spaces.MultiDiscrete, spaces.MultiBinary),
        )
        self.batch_size = batch_size
        self.n_epochs = n_epochs
        self.clip_range = clip_range
        self.clip_range_vf = clip_range_vf
        self.normalize_advantage = normalize_advantage
        self.target_kl = target_kl
        self.n_samples = n_samples
        self.advantage = advantage
        self.tail_coef = tail_coef
        self.reward_transform = reward_transform
        self.reward_transform_kwargs = reward_transform_kwargs
        self.branch_horizon = branch_horizon
        self.branch_lambda = branch_lambda
        self.branch_fraction = branch_fraction
        self.branch_time_limit = branch_time_limit
        self.action_sampling = action_sampling
        self.sampling_temperature = sampling_temperature
        self.action_selection = action_selection
        self.soft_values = soft_values
        self.refit_critic = refit_critic
        self.max_actor_grad_norm = max_actor_grad_norm
        self.desired_kl = desired_kl
        self.learning_rate_bounds = learning_rate_bounds
        self.learning_rate_factor = 1.0
        self.trust_region = trust_region  # type: ignore[assignment]
        self.brancher = brancher
        self.branch_timeout = branch_timeout
        self.rollout_in_workers = rollout_in_workers
        self.num_simulator_steps = 0
        self._selection_scale = np.inf
        self._model_state = self.model_transitions = self._last_lstm_states = self._brancher = self._branched_env = None
        check_policy_class(self.policy_class, self.policy_kwargs, use_sde)
        self._is_maskable, self._is_recurrent = is_maskable(self.policy_class), is_recurrent(self.policy_class)
        check_batches(n_steps, None if self.env is None else self.n_envs, batch_size, normalize_advantage)
        if reward_transform_kwargs and not isinstance(reward_transform, str):
            raise InvalidArgumentError("reward_transform_kwargs are for a named reward_transform: give yours its own.")

        if _init_setup_model:
            self._setup_model()

    def _check_arguments(self) -> None:
        check_positive_integer("n_samples", self.n_samples)
        check_positive_integer("branch_horizon", self.branch_horizon)
        check_positive_integer("n_epochs", self.n_epochs)
        check_name("advantage", self.advantage, self.advantage_names)
        if self.tail_coef is not None:
            check_number("tail_coef", self.tail_coef)
        check_number("branch_lambda", self.branch_lambda, at_least=0, at_most=1)
        check_pace(self.branch_fraction, self.branch_time_limit)
        check_number("sampling_temperature", self.sampling_temperature, above=0)
        how_many = self.n_samples, self.advantage, self.branch_fraction
        check_selection(self.action_selection, *how_many, self.policy_class)  # type: ignore[arg-type]
        ent_coef = value_at(parse_schedule("ent_coef", self.ent_coef), 1.0)
        if self.soft_values and not ent_coef > 0:
            raise InvalidArgumentError(f"soft_values=True needs an `ent_coef` above 0, not {self.ent_coef!r}.")
        check_desired_kl(self.desired_kl, self.target_kl, self.learning_rate_bounds)
        check_trust_region(self.trust_region, self.target_kl, self.desired_kl)
        for name in ("max_actor_grad_norm", "branch_timeout"):
            if getattr(self, name) is not None:
                check_number(name, getattr(self, name), above=0)
        if isinstance(self.clip_range_vf, float | int):
            assert self.clip_range_vf > 0, "`clip_range_vf` must be positive, pass `None` to deactivate vf clipping"

    def _setup_model(self) -> None:
        self._check_arguments()
        self.ent_coef = parse_schedule("ent_coef", self.ent_coef)
        self.trust_region = None if self.trust_region is None else parse_schedule("trust_region", self.trust_region)
        self.reward_transform = make_reward_transform(self.reward_transform, self.reward_transform_kwargs)
        self._horizon = 1 if self.n_samples == 1 else self.branch_horizon
        self._is_modelled = self.brancher == "learned" and self.n_samples > 1
        self._action_sampling = self._make_action_sampling()
        # A checkpoint keeps the buffer that the user chose, if any: it must load into PPO as well.
        chosen_class, chosen_kwargs = self.rollout_buffer_class, self.rollout_buffer_kwargs
        self.rollout_buffer_class = multi_sample_buffer_class(
            chosen_class, self.observation_space, self._is_maskable, self._is_recurrent
        )
        self.rollout_buffer_kwargs = {
            "n_samples": self._action_sampling.group_size,
            "advantage": self.advantage,
            "tail_coef": self.tail_coef,
            "reward_transform": self.reward_transform,
            "branch_horizon": self._horizon,
            "branch_lambda": self.branch_lambda,
            "action_sampling": self._action_sampling.name,
            "is_selected": self.action_selection != "first",
            "ent_coef": value_at(self.ent_coef, 1.0) if self.soft_values else 0.0,
            **chosen_kwargs,
        }
        chosen_policy_class = self.policy_class
        if self._is_maskable:
            self.policy_class = without_sde(chosen_policy_class)  # type: ignore[assignment]
        super()._setup_model()
        self.policy_class = chosen_policy_class
        self.rollout_buffer_class, self.rollout_buffer_kwargs = chosen_class, chosen_kwargs
        self._remember_nothing()

        check_distribution(self.policy)
        if self._horizon > 1:
            check_common_noise(self.policy)
        if self.soft_values:
            check_entropies(self.policy, self._horizon)
        self._has_linear_head = has_linear_head(self.policy)
        if self.refit_critic and not self._has_linear_head:
            warn(f"`refit_critic` has no effect: the values of {self.policy_class.__name__} are no outputs of a linear layer.")
        self._watch, self._pace = Watch(), BranchPace(self.branch_time_limit)
        self.clip_range = FloatSchedule(self.clip_range)
        if self.clip_range_vf is not None:
            self.clip_range_vf = FloatSchedule(self.clip_range_vf)
        self._branch(self.env)

    def predict(
        self,
        observation: np.ndarray | dict[str, np.ndarray],
        state: tuple[np.ndarray, ...] | None = None,
        episode_start: np.ndarray | None = None,
        deterministic: bool = False,
        action_masks: np.ndarray | None = None,
    ) -> tuple[np.ndarray, tuple[np.ndarray, ...] | None]:
        """
        Get the policy's action, as in SB3 and in sb3-contrib's ``MaskablePPO`` and ``RecurrentPPO``.

        :param observation: the input observation
        :param state: what a recurrent policy remembers; nothing by default
        :param episode_start: whether an episode starts with the observation, for a recurrent policy
        :param deterministic: Whether or not to return deterministic actions
        :param action_masks: which actions are valid, for a maskable policy
        :return: the action, and ``state`` after it
        """
        return self.policy.predict(observation, state, episode_start, deterministic, **masking(action_masks))

    def learn(
        self: SelfHybridGRPO,
        total_timesteps: int,
        callback: MaybeCallback = None,
        log_interval: int = 1,
        tb_log_name: str = "HybridGRPO",
        reset_num_timesteps: bool = True,
        progress_bar: bool = False,
    ) -> SelfHybridGRPO:
        """
        Return a trained model, as in SB3.

        :param total_timesteps: The total number of committed steps to train for
        :param callback: Callback(s) called at every committed step
        :param log_interval: Number of rollouts between logs
        :param tb_log_name: the name of the run for TensorBoard logging
        :param reset_num_timesteps: whether to count steps from zero
        :param progress_bar: Display a progress bar using tqdm and rich
        :return: the trained model
        """
        if reset_num_timesteps:
            self.num_simulator_steps = 0
        # Before the environments are reset: some branchers write down what happens from then on.
        self._branch(self.env)
        self._pace.forget()
        return super().learn(
            total_timesteps=total_timesteps,
            callback=callback,
            log_interval=log_interval,
            tb_log_name=tb_log_name,
            reset_num_timesteps=reset_num_timesteps,
            progress_bar=progress_bar,
        )

    def _excluded_save_params(self) -> list[str]:
        of_this_process = ("_brancher", "_branched_env", "_pace", "_watch", "_last_lstm_states", "model_transitions")
        return [*super()._excluded_save_params(), *of_this_process]
