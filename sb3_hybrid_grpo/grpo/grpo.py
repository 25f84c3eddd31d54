"""Group Relative Policy Optimization, the critic-free baseline."""

from typing import Any, ClassVar, TypeVar

import torch as th
from stable_baselines3.common.buffers import RolloutBuffer
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.type_aliases import GymEnv, MaybeCallback, Schedule

from sb3_hybrid_grpo.common.reward_transforms import AnyRewardTransform
from sb3_hybrid_grpo.common.type_aliases import BrancherFactory
from sb3_hybrid_grpo.hybrid_grpo.hybrid_grpo import HybridGRPO

SelfGRPO = TypeVar("SelfGRPO", bound="GRPO")


class GRPO(HybridGRPO):
    """
    Group Relative Policy Optimization (GRPO), on single steps of an environment

    Paper: https://arxiv.org/abs/2402.03300

    The baseline that Hybrid GRPO is compared with: the same N branched actions per state, but no critic. The advantage of
    an action is its transformed reward, normalised within the group of its state. It sees one step ahead only.

    The arguments are those of ``HybridGRPO``, without those of the critic and of the advantage.

    :param policy: The policy model to use (MlpPolicy, CnnPolicy, ...); its value network is not trained
    :param env: The environment to learn from (if registered in Gym, can be str)
    :param learning_rate: The learning rate, it can be a function of the current progress remaining (from 1 to 0)
    :param n_steps: The number of committed steps to run for each environment per update
    :param batch_size: Number of states in a minibatch
    :param n_epochs: Number of epochs when optimizing the surrogate loss
    :param gamma: Discount factor, used by reward transforms only
    :param clip_range: Clipping parameter, it can be a function of the current progress remaining (from 1 to 0)
    :param normalize_advantage: Whether to normalize the advantages of a minibatch as well
    :param ent_coef: Entropy coefficient for the loss calculation, a number or a schedule, see ``HybridGRPO``
    :param max_grad_norm: The maximum value for the gradient clipping
    :param use_sde: Whether to use generalized State Dependent Exploration (gSDE)
    :param sde_sample_freq: Sample new noise matrices every n steps when using gSDE; -1: only at the beginning of a rollout
    :param rollout_buffer_class: Rollout buffer class to use, see ``HybridGRPO``
    :param rollout_buffer_kwargs: Keyword arguments to pass to the rollout buffer on creation
    :param target_kl: Stop the update of a rollout when the approximate KL divergence exceeds 1.5 times this
    :param stats_window_size: Window size for the rollout logging, in episodes
    :param tensorboard_log: the log location for tensorboard (if None, no logging)
    :param policy_kwargs: additional arguments to be passed to the policy on creation
    :param verbose: Verbosity level: 0 for no output, 1 for info messages, 2 for debug messages
    :param seed: Seed for the pseudo random generators
    :param device: Device (cpu, cuda, ...) on which the code should be run
    :param _init_setup_model: Whether or not to build the network at the creation of the instance
    :param n_samples: Number of actions N sampled at each state
    :param reward_transform: Function of rewards applied before advantages are computed, see ``HybridGRPO``
    :param reward_transform_kwargs: Keyword arguments of a named reward transform
    :param brancher: Where the outcomes of actions come from that are not committed, see ``HybridGRPO``
    :param branch_timeout: Seconds that the branches of an environment may take for one step
    :raises InvalidArgumentError: if an argument has a value that cannot work
    :raises UnbranchableEnvError: if N > 1 and the environment cannot be branched exactly
    """

    advantage_names: ClassVar[tuple[str, ...]] = ("group_normalized",)
    uses_critic: ClassVar[bool] = False

    def __init__(
        self,
        policy: str | type[ActorCriticPolicy],
        env: GymEnv | str,
        learning_rate: float | Schedule = 3e-4,
        n_steps: int = 2048,
        batch_size: int = 64,
        n_epochs: int = 10,
        gamma: float = 0.99,
        clip_range: float | Schedule = 0.2,
        normalize_advantage: bool = True,
        ent_coef: float | str | Schedule = 0.0,
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
        n_samples: int = 4,
        reward_transform: AnyRewardTransform = "scaled_tanh",
        reward_transform_kwargs: dict[str, Any] | None = None,
        brancher: str | BrancherFactory = "auto",
        branch_timeout: float | None = None,
    ) -> None:
        super().__init__(
            policy,
            env,
            learning_rate=learning_rate,
            n_steps=n_steps,
            batch_size=batch_size,
            n_epochs=n_epochs,
            gamma=gamma,
            clip_range=clip_range,
            normalize_advantage=normalize_advantage,
            ent_coef=ent_coef,
            max_grad_norm=max_grad_norm,
            use_sde=use_sde,
            sde_sample_freq=sde_sample_freq,
            rollout_buffer_class=rollout_buffer_class,
            rollout_buffer_kwargs=rollout_buffer_kwargs,
            target_kl=target_kl,
            stats_window_size=stats_window_size,
            tensorboard_log=tensorboard_log,
            policy_kwargs=policy_kwargs,
            verbose=verbose,
            seed=seed,
            device=device,
            _init_setup_model=_init_setup_model,
            n_samples=n_samples,
            advantage="group_normalized",
            reward_transform=reward_transform,
            reward_transform_kwargs=reward_transform_kwargs,
            branch_horizon=1,
            refit_critic=False,
            max_actor_grad_norm=None,
            brancher=brancher,
            branch_timeout=branch_timeout,
        )

    def learn(
        self: SelfGRPO,
        total_timesteps: int,
        callback: MaybeCallback = None,
        log_interval: int = 1,
        tb_log_name: str = "GRPO",
        reset_num_timesteps: bool = True,
        progress_bar: bool = False,
    ) -> SelfGRPO:
        """
        Return a trained model, see ``HybridGRPO.learn``.

        :param total_timesteps: The total number of committed steps to train for
        :param callback: Callback(s) called at every committed step
        :param log_interval: Number of rollouts between logs
        :param tb_log_name: the name of the run for TensorBoard logging
        :param reset_num_timesteps: whether to count steps from zero
        :param progress_bar: Display a progress bar using tqdm and rich
        :return: the trained model
        """
        return super().learn(
            total_timesteps=total_timesteps,
            callback=callback,
            log_interval=log_interval,
            tb_log_name=tb_log_name,
            reset_num_timesteps=reset_num_timesteps,
            progress_bar=progress_bar,
        )
