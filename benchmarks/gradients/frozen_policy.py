"""Policies that stand still while their rollouts are collected."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3 import PPO
from stable_baselines3.common.env_util import make_vec_env

from benchmarks.gradients.rollouts import Rollout
from sb3_hybrid_grpo import HybridGRPO
from sb3_hybrid_grpo.policies.actors import Actor, Samples
from sb3_hybrid_grpo.rollout.action_sampling import ActionSampling


def saved_policy(environment: str, stage: int, seed: int, folder: Path) -> Path:
    """
    Train PPO with its defaults, or find the policy of an earlier call.

    :param environment: environment id
    :param stage: committed steps to train for
    :param seed: seed of the training
    :param folder: where policies are kept
    :return: the checkpoint
    """
    checkpoint = folder / f"{environment.replace('/', '_')}-seed{seed}-{stage}.zip"
    if checkpoint.exists():
        return checkpoint
    model = PPO("MlpPolicy", make_vec_env(environment, 1, seed=seed), seed=seed, device="cpu")
    if stage:
        model.learn(stage)
    folder.mkdir(parents=True, exist_ok=True)
    model.save(checkpoint)
    return checkpoint


class AllSamplings(ActionSampling):
    """
    Actions of which subsets are those of every other sampling.

    Columns 0 to N-1 are independent samples. With a Gaussian policy, N to 3N/2 - 1 are reflections of the first N/2 at the
    mean; with discrete actions, the columns from N on are all actions but the committed one.

    :param n_samples: largest number N of independent samples
    :param action_space: action space
    """

    def __init__(self, n_samples: int, action_space: spaces.Space[Any]) -> None:
        self.n_samples = n_samples
        self.n_others = 0
        self.others_are = ""
        if isinstance(action_space, spaces.Box):
            self.n_others, self.others_are = n_samples // 2, "antithetic"
        elif isinstance(action_space, spaces.Discrete) and action_space.n <= n_samples:
            self.n_others, self.others_are = int(action_space.n) - 1, "enumerate"
        super().__init__(n_samples + self.n_others)

    def columns(self, name: str, n_samples: int) -> np.ndarray | None:
        """
        Find the columns of a sampling.

        :param name: ``"iid"``, ``"antithetic"`` or ``"enumerate"``
        :param n_samples: number of samples, which ``"enumerate"`` has only with the largest N
        :return: their indices, ``None`` if they are not there
        """
        own, others = np.arange(self.n_samples), self.n_samples + np.arange(self.n_others)
        if name == "iid":
            return own[:n_samples]
        if name != self.others_are:
            return None
        if name == "enumerate":
            return np.append(own[:1], others) if n_samples == self.n_samples else None
        return np.append(own[: n_samples // 2], others[: n_samples // 2]) if n_samples % 2 == 0 else None

    def sample(self, actor: Actor, obs: Any, noise: th.Tensor | None, action_masks: Any = None) -> Samples:
        """
        Choose actions at each of E states, see ``ActionSampling.sample``.

        :param actor: samples from the policy
        :param obs: states
        :param noise: noise of the committed actions
        :param action_masks: not used
        :return: the actions
        """
        samples = actor.sample(obs, self.n_samples, noise)
        actions = samples.actions
        if self.others_are == "antithetic":
            others = 2 * samples.means[:, None] - actions[:, : self.n_others]
        else:
            others = (actions[:, :1] + 1 + np.arange(self.n_others)) % (self.n_others + 1)
        return Samples(np.concatenate((actions, others), axis=1))


class FrozenPolicy(HybridGRPO):
    """
    ``HybridGRPO`` whose policy stands still: each rollout goes to ``receive`` instead of an update.

    :param checkpoint: checkpoint of PPO or ``HybridGRPO``
    :param environment: environment id
    :param n_steps: committed steps in a rollout
    :param seed: seed of environment and policy
    :param n_samples: number of actions at each state
    :param sampling: ``"all"`` (see ``AllSamplings``), ``"best"`` (pairs or enumeration where possible), or HybridGRPO's
    :param kwargs: further arguments of ``HybridGRPO``
    """

    def __init__(
        self,
        checkpoint: Path,
        environment: str,
        n_steps: int,
        seed: int,
        n_samples: int,
        sampling: str = "iid",
        **kwargs: Any,
    ) -> None:
        trained = PPO.load(checkpoint, device="cpu")
        self.samplings = AllSamplings(n_samples, trained.action_space) if sampling == "all" else None
        if sampling == "best":
            sampling = "antithetic" if isinstance(trained.action_space, spaces.Box) else "auto"
        self.receive: Callable[[Rollout], None] = lambda rollout: None
        super().__init__(
            type(trained.policy),
            make_vec_env(environment, 1, seed=seed),
            policy_kwargs=trained.policy_kwargs,
            n_steps=n_steps,
            batch_size=n_steps,
            gamma=trained.gamma,
            seed=seed,
            device="cpu",
            n_samples=self.samplings.group_size if self.samplings else n_samples,
            action_sampling="iid" if self.samplings else sampling,
            reward_transform="identity",
            **kwargs,
        )
        if self.samplings:
            self._action_sampling = self.samplings
        self.policy.load_state_dict(trained.policy.state_dict())

    def train(self) -> None:
        """Hand the rollout over."""
        self.receive(Rollout(self.policy, self.rollout_buffer, self._last_episode_starts))

    def roll_out(self, n_rollouts: int, receive: Callable[[Rollout], None]) -> None:
        """
        Collect rollouts, which go on from those before.

        :param n_rollouts: number of rollouts
        :param receive: takes each of them
        """
        self.receive = receive
        self.learn(n_rollouts * self.n_steps, reset_num_timesteps=False)
