"""Branches of several steps: what happens when the policy goes on from each sampled action."""

from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, cast

import numpy as np
import torch as th
from sb3_contrib.common.recurrent.type_aliases import RNNStates
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.vec_env import VecEnv
from stable_baselines3.common.vec_env.base_vec_env import VecEnvStepReturn

from sb3_hybrid_grpo.common import (
    Brancher,
    BranchOutcome,
    BranchStep,
    Committed,
    FollowingBrancher,
    Observations,
    check_last_observation,
    check_outcome,
    join_macro_steps,
    join_steps,
)
from sb3_hybrid_grpo.policies import Actor, Replica, draw_noise
from sb3_hybrid_grpo.rollout.values import select_observations


def follow(
    actor: Replica,
    brancher: Brancher,
    actions: np.ndarray,
    alive: np.ndarray,
    noise: Sequence[np.ndarray],
    obs: Observations | None = None,
) -> list[BranchStep]:
    """
    Follow branches until the policy's noise is used up or all of them have ended, in this process or in a worker.

    The environments are left as they were, also if something raises: ``InvalidOutcomeError`` if the policy would have to go on
    from NaN or infinity.

    :param actor: the policy that goes on after the first step
    :param brancher: source of the outcomes
    :param actions: first actions for the environments, [E, n, \\*action_shape]
    :param alive: which of them are branched, [E, n]
    :param noise: the policy's noise in each further step, shared by the branches of a state, [S, \\*noise_dims] for S states
        with E · n / S branches each
    :param obs: observations of the states
    :return: the steps of the branches
    """
    steps = [BranchStep(brancher.open(actions, alive, 1 + len(noise), obs), alive)]
    try:
        for step_noise in noise:
            outcome, alive = steps[-1]
            goes_on = ~(outcome.terminated | outcome.truncated)
            actor.keep(goes_on[alive])
            alive = alive & goes_on
            if not alive.any():
                break
            # Only finite observations are for the policy.
            check_outcome(outcome.observations, outcome.rewards)
            seen = brancher.observed(outcome, [step.outcome for step in steps[:-1]])
            noise_of_branches = step_noise.repeat(alive.size // len(step_noise), axis=0)
            actions = actions.copy()
            masks = None if outcome.action_masks is None else outcome.action_masks[alive]
            actions[alive] = actor.act(select_observations(seen.observations, alive), noise_of_branches[alive.ravel()], masks)
            steps.append(BranchStep(brancher.advance(actions, alive), alive))
    finally:
        brancher.close()
    return steps


class BranchPaths:
    """
    The branches of one macro-step: see ``follow``. Workers that can follow them do so along with the committed step.

    ``followed`` are steps that each worker has taken then, stacked, and that wait to become ``steps``.

    :param actor: the policy that goes on after the first step
    :param brancher: source of the outcomes, needed if anything is branched
    :param actions: first actions for the environments, [E, n, \\*action_shape]
    :param alive: which of them are branched, [E, n]
    :param obs: observations of the states
    :param noise: the policy's noise in each further step, see ``follow``
    :param is_awaited: whether the outcomes are needed before the committed step
    :param workers_follow: whether workers can follow branches of several steps
    :param memory: what a recurrent policy remembers after the states, [layers, S, units] each
    """

    def __init__(
        self,
        actor: Actor,
        brancher: Brancher | None,
        actions: np.ndarray,
        alive: np.ndarray,
        obs: Observations | None = None,
        noise: Sequence[np.ndarray] = (),
        is_awaited: bool = False,
        workers_follow: bool = False,
        memory: RNNStates | None = None,
    ) -> None:
        self._brancher: Any = brancher
        self.memory = memory
        self._task = actions, alive, noise
        self._is_with_step = False
        self.steps: list[BranchStep] = []
        self._n_checked = 0
        self.followed: list[BranchStep] = []
        if brancher is None or not alive.any():
            return
        if not getattr(brancher, "has_workers", False) or (noise and not workers_follow):
            self.steps = follow(actor.in_branches(memory, alive), brancher, *self._task, obs)
            self._n_checked = len(self.steps) - 1
        elif is_awaited:
            self.steps = cast(FollowingBrancher, brancher).follow(*self._task)
        else:
            self._is_with_step = True

    def step_env(self, env: VecEnv, committed: np.ndarray) -> VecEnvStepReturn:
        """
        Take the committed step.

        :param env: the training environment
        :param committed: committed actions, [E, \\*action_shape]
        :return: what the environment returns
        :raises BranchError: if an environment raised in a branch; the committed step has been taken then
        """
        if not self._is_with_step:
            return env.step(committed)
        returned: VecEnvStepReturn
        returned, self.followed = self._brancher.follow_and_step(env, committed, *self._task)
        return returned

    def join(self) -> None:
        """Put what workers have followed together."""
        if self.followed:
            self.steps, self.followed = join_steps(self.followed), []

    @classmethod
    def late(cls, brancher: Brancher, macro_steps: Sequence["BranchPaths"]) -> "BranchPaths":
        """
        Put what workers have followed in T macro-steps together.

        :param brancher: observes the outcomes
        :param macro_steps: the branches of each
        :return: branches [E, T · n]
        """
        late = cls.__new__(cls)
        late._brancher = brancher
        late._n_checked = 0
        late.steps = join_macro_steps([paths.followed for paths in macro_steps])
        late.memory = merge_memories([paths.memory for paths in macro_steps])
        return late

    def observed(self, k: int, committed: Committed | None) -> BranchOutcome:
        """
        Return what the policy sees of a step, with the statistics that the vectorised wrappers have now.

        :param k: index of the step
        :param committed: the committed transition, if it has been made
        :return: its outcome after the wrappers
        :raises InvalidOutcomeError: if there is NaN or infinity in it
        """
        brancher: Brancher = self._brancher
        outcome = self.steps[k].outcome
        seen = brancher.observed(outcome, [step.outcome for step in self.steps[:k]], committed)
        if k >= self._n_checked or seen is not outcome:
            check_outcome(seen.observations, seen.rewards)
        return seen

    def reorder(self, order: np.ndarray) -> None:
        """
        Put the branches of each environment into another order.

        :param order: which branch comes to each place, [E, n]
        """
        self.steps = [
            BranchStep(BranchOutcome(*(reordered(part, order) for part in step.outcome)), reordered(step.alive, order))
            for step in self.steps
        ]

    @property
    def n_simulator_steps(self) -> int:
        """Number of simulator steps taken."""
        return sum(int(step.alive.sum()) for step in self.steps if self._brancher.uses_simulator)


class Waiting(NamedTuple):
    """
    Branches of a macro-step that are put off.

    :param actions: first actions for the environments, [E, n, \\*action_shape]
    :param alive: which of them are branched, [E, n]
    :param noise: the policy's noise in each further step, [E, \\*noise_dims] each
    :param memory: what a recurrent policy remembers after the states
    """

    actions: np.ndarray
    alive: np.ndarray
    noise: list[np.ndarray]
    memory: RNNStates | None = None

    @staticmethod
    def merged(waiting: Sequence["Waiting"]) -> "Waiting":
        """
        Put the branches of T macro-steps together.

        :param waiting: these
        :return: branches [E, T · n] from T · E states
        """
        actions, alive, noise, memories = zip(*waiting, strict=True)
        return Waiting(
            _merge(np.stack(actions, axis=1), 1),
            _merge(np.stack(alive, axis=1), 1),
            [_merge(np.stack(step_noise, axis=1), 0) for step_noise in zip(*noise, strict=True)],
            merge_memories(memories),
        )


def _merge(array: np.ndarray, axis: int) -> np.ndarray:
    """Merge an axis with the next one."""
    return array.reshape(*array.shape[:axis], -1, *array.shape[axis + 2 :])


def merge_memories(memories: Sequence[RNNStates | None]) -> RNNStates | None:
    """Merge what is remembered after T times E states, in the order of branches [E, T · n]."""
    if memories[0] is None:
        return None
    pi, vf = zip(*cast(Sequence[RNNStates], memories), strict=True)
    merged = [tuple(th.stack(parts, dim=2).flatten(1, 2) for parts in zip(*states, strict=True)) for states in (pi, vf)]
    return RNNStates(*merged)


def reordered(samples: Any, order: np.ndarray) -> Any:
    """
    Put the samples of each environment into another order.

    :param samples: an array [E, N, ...], a dict or tuple of such arrays, or ``None``
    :param order: which sample comes to each place, [E, N]
    :return: the same in this order
    """
    if samples is None:
        return None
    if isinstance(samples, dict):
        return {key: reordered(part, order) for key, part in samples.items()}
    if isinstance(samples, tuple):
        return tuple(reordered(part, order) for part in samples)
    return samples[np.arange(len(order))[:, None], order]


class NoiseAhead:
    """
    The noise of the committed actions of a rollout, drawn K - 1 steps ahead.

    Branches go on with the noise that the committed trajectory will have: what tells them apart is their first action. With
    gSDE that are the matrices of each step to come, which the actions of the trajectory so far have had no part in. With a
    single step nothing is shared, and the policy draws for itself.

    :param policy: the policy
    :param n_envs: number of environments E
    :param n_samples: number of samples N
    :param horizon: number of steps K
    :param sde_sample_freq: number of steps between new noise matrices of gSDE, as in SB3; ``None`` without gSDE
    """

    def __init__(
        self, policy: ActorCriticPolicy, n_envs: int, n_samples: int, horizon: int, sde_sample_freq: int | None
    ) -> None:
        self._policy = policy
        self._n_envs = n_envs
        self._n_samples = n_samples
        self._horizon = horizon
        self._sde_sample_freq = sde_sample_freq or 0
        self._noise: deque[np.ndarray] = deque(maxlen=horizon)
        self._n_steps = 0
        if sde_sample_freq is not None:
            self._reset_matrices()
        for _ in range(horizon - 1):
            self.advance()

    def _reset_matrices(self) -> None:
        self._policy.reset_noise(self._n_envs * self._n_samples)

    def advance(self) -> None:
        """Go on to the next committed step."""
        if self._sde_sample_freq > 0 and self._n_steps % self._sde_sample_freq == 0:
            self._reset_matrices()
        if self._horizon > 1:
            self._noise.append(draw_noise(self._policy.action_dist, self._n_envs))
        self._n_steps += 1

    @property
    def now(self) -> np.ndarray | None:
        """Noise of the committed actions of this step, [E, \\*noise_dims]."""
        return self._noise[0] if self._noise else None

    @property
    def later(self) -> list[np.ndarray]:
        """Noise of the K - 1 steps after it."""
        return list(self._noise)[1:]


class MacroStep:
    """
    What the committed actions of one macro-step led to, as the buffer takes it: with room for the branches.

    :param n_envs: number of environments E
    :param n_samples: number of samples N
    :param horizon: number of steps K of a branch
    """

    def __init__(self, n_envs: int, n_samples: int, horizon: int) -> None:
        shape = (n_envs, n_samples, horizon)
        self.rewards = np.zeros(shape, dtype=np.float32)
        self.next_values = np.zeros(shape, dtype=np.float32)
        self.terminated = np.zeros(shape, dtype=bool)
        self.alive = np.zeros(shape, dtype=bool)

    def commit(
        self,
        rewards: np.ndarray,
        dones: np.ndarray,
        infos: Sequence[dict[str, Any]],
        terminal_value: Callable[[Any, int], float],
    ) -> None:
        """
        Take in the committed step. As in SB3, an episode that was cut off goes on with the value of its last observation.

        :param rewards: rewards, [E]
        :param dones: whether the episode ended, [E]
        :param infos: the environments' infos
        :param terminal_value: values the last observation of an environment
        :raises InvalidOutcomeError: if there is NaN or infinity in the last observation
        """
        self.rewards[:, 0, 0] = rewards
        self.terminated[:, 0, 0] = dones
        self.alive[:, 0, 0] = True
        for idx in map(int, np.flatnonzero(dones)):
            terminal_obs = infos[idx].get("terminal_observation")
            if terminal_obs is not None and infos[idx].get("TimeLimit.truncated", False):
                check_last_observation(terminal_obs, idx)
                self.terminated[idx, 0, 0] = False
                self.next_values[idx, 0, 0] = terminal_value(terminal_obs, idx)
