"""The branches of a rollout: followed at each state, or put off until they are many."""

from collections.abc import Sequence
from functools import partial
from typing import Any, ClassVar, Protocol, cast

import numpy as np
from sb3_contrib.common.recurrent.type_aliases import RNNStates
from stable_baselines3.common.vec_env import VecEnv
from stable_baselines3.common.vec_env.base_vec_env import VecEnvStepReturn

from sb3_hybrid_grpo.common import (
    Brancher,
    Committed,
    FollowingBrancher,
    InvalidArgumentError,
    Observations,
    RememberingBrancher,
    warn,
)
from sb3_hybrid_grpo.policies import Actor, chunk_size
from sb3_hybrid_grpo.rollout.branch_paths import BranchPaths, Waiting, follow
from sb3_hybrid_grpo.rollout.multi_sample import MultiSampleMixin
from sb3_hybrid_grpo.rollout.values import DeferredValues, select_observations

_BRANCHES_AT_ONCE = 2048


class RolloutBranches(Protocol):
    """
    Branches of one macro-step after the other: ``begin``, ``step_env``, then ``finish`` when the buffer has the macro-step. At
    the end of the rollout ``finish_all`` completes the buffer.
    """

    def begin(self, actions: np.ndarray, alive: np.ndarray, obs: Observations, noise: list[np.ndarray]) -> None:
        """
        Branch at the present states.

        :param actions: first actions for the environments, [E, n, \\*action_shape]
        :param alive: which of them are branched, [E, n]
        :param obs: observations of the states
        :param noise: the policy's noise in each further step, [E, \\*noise_dims] each
        """

    def step_env(self, env: VecEnv, actions: np.ndarray) -> VecEnvStepReturn:
        """
        Take the committed step.

        :param env: the training environment
        :param actions: committed actions, [E, \\*action_shape]
        :return: what the environment returns
        """

    def finish(self, new_obs: Observations, infos: Sequence[dict[str, Any]], terminated: np.ndarray) -> int:
        """
        Complete the macro-step in the buffer, or put that off.

        :param new_obs: observations that the committed step returned
        :param infos: the environments' infos
        :param terminated: whether the committed step ended the episode in a terminal state, [E]
        :return: number of simulator steps that branches have taken since the last time
        :raises InvalidOutcomeError: if there is NaN or infinity among the outcomes
        """

    def finish_all(self) -> int:
        """
        Complete all macro-steps.

        :return: number of simulator steps that branches have taken since the last time
        :raises InvalidOutcomeError: if there is NaN or infinity among the outcomes
        """


def make_rollout_branches(
    actor: Actor, brancher: Brancher | None, buffer: MultiSampleMixin, deferred: Sequence[DeferredValues]
) -> RolloutBranches:
    """
    Prepare the branches of a rollout.

    :param actor: the policy that goes on after the first step
    :param brancher: source of the outcomes, ``None`` if nothing is branched
    :param buffer: the rollout's buffer
    :param deferred: what is to be known of the next observations
    :return: late branches if the brancher can remember states, else prompt ones
    """
    can_remember = getattr(brancher, "can_remember", False)
    takes_tensors = can_remember and getattr(brancher, "takes_tensors", False)
    if takes_tensors and actor.policy.device.type != "cpu" and actor.memory is None:
        from sb3_hybrid_grpo.rollout.device_branches import DeviceBranches

        return DeviceBranches(actor, cast(RememberingBrancher, brancher), buffer, deferred)
    if can_remember:
        return LateBranches(actor, cast(RememberingBrancher, brancher), buffer, deferred)
    if getattr(brancher, "can_wait", False):
        return FollowedBranches(actor, cast(FollowingBrancher, brancher), buffer, deferred)
    return PromptBranches(actor, brancher, buffer, deferred)


def teach(actor: Actor, brancher: Brancher | None, horizon: int) -> bool:
    """
    Send workers the policy, so that they can follow branches of several steps by themselves in the rollout to come.

    If that is not possible, which is announced, each step of the branches takes a message to each worker.

    :param actor: the policy
    :param brancher: source of the outcomes, with workers or without
    :param horizon: number of steps K of a branch
    :return: whether they can
    """
    if horizon == 1 or not getattr(brancher, "has_workers", False):
        return False
    try:
        obstacle = cast(FollowingBrancher, brancher).teach(partial(follow, actor.replica()))
    except InvalidArgumentError as error:
        obstacle = str(error)
    if obstacle is not None:
        warn(
            f"Workers cannot follow branches with a copy of the policy: {obstacle}. The main process tells them each step "
            f"instead, which takes up to {horizon} messages per macro-step."
        )
    return obstacle is None


class PromptBranches:
    """
    Branches at each state before its committed step, see ``RolloutBranches``.

    :param actor: the policy that goes on after the first step
    :param brancher: source of the outcomes, ``None`` if nothing is branched
    :param buffer: the rollout's buffer
    :param deferred: what is to be known of the next observations
    """

    paths: BranchPaths
    _is_awaited: ClassVar[bool] = False

    def __init__(
        self, actor: Actor, brancher: Brancher | None, buffer: MultiSampleMixin, deferred: Sequence[DeferredValues]
    ) -> None:
        self._actor = actor
        self._brancher = brancher
        self._buffer = buffer
        self._deferred = deferred
        self._workers_follow = teach(actor, brancher, buffer.branch_horizon)

    def begin(self, actions: np.ndarray, alive: np.ndarray, obs: Observations, noise: list[np.ndarray]) -> None:
        """Follow the branches, unless workers do that along with the committed step."""
        how = self._is_awaited, self._workers_follow, self._actor.memory
        self.paths = BranchPaths(self._actor, self._brancher, actions, alive, obs, noise, *how)

    def step_env(self, env: VecEnv, actions: np.ndarray) -> VecEnvStepReturn:
        """Take the committed step, after which workers have followed the branches."""
        return self.paths.step_env(env, actions)

    def finish(self, new_obs: Observations, infos: Sequence[dict[str, Any]], terminated: np.ndarray) -> int:
        """Complete the macro-step."""
        self.paths.join()
        last = self._buffer.pos - 1
        committed = Committed(_next_observations(new_obs, infos), terminated)
        store_branches(self.paths, slice(last, last + 1), committed, self._buffer, self._deferred)
        return self.paths.n_simulator_steps

    def finish_all(self) -> int:
        """Do nothing: they are complete."""
        return 0


class FollowedBranches(PromptBranches):
    """
    Branches that workers follow along with the committed step, and that wait until they are stored with those of other
    macro-steps: see ``RolloutBranches``. What it takes to store them is shared by many.

    :param actor: the policy that goes on after the first step
    :param brancher: has workers follow the branches
    :param buffer: the rollout's buffer
    :param deferred: what is to be known of the next observations
    """

    def __init__(
        self, actor: Actor, brancher: FollowingBrancher, buffer: MultiSampleMixin, deferred: Sequence[DeferredValues]
    ) -> None:
        super().__init__(actor, brancher, buffer, deferred)
        self._late = brancher
        self._can_wait = self._workers_follow or buffer.branch_horizon == 1
        outcomes_of_macro_step = buffer.n_envs * buffer.n_samples * buffer.branch_horizon
        self._most_waiting = max(chunk_size(buffer.observation_space) // outcomes_of_macro_step, 1)
        self._waiting: list[BranchPaths] = []
        # What a rollout that was interrupted has left.
        brancher.observe_late()

    def step_env(self, env: VecEnv, actions: np.ndarray) -> VecEnvStepReturn:
        """Take the committed step, after which workers have followed the branches."""
        if self._can_wait:
            self._late.wait()
        return super().step_env(env, actions)

    def finish(self, new_obs: Observations, infos: Sequence[dict[str, Any]], terminated: np.ndarray) -> int:
        """Complete macro-steps if many wait."""
        if not self._can_wait:
            return super().finish(new_obs, infos, terminated)
        self._waiting.append(self.paths)
        return self.finish_all() if len(self._waiting) >= self._most_waiting else 0

    def finish_all(self) -> int:
        """Complete the macro-steps that wait."""
        waiting, self._waiting = self._waiting, []
        if not waiting:
            return 0
        brancher, end = self._late.observe_late(), self._buffer.pos
        if not any(paths.followed for paths in waiting):
            return 0
        paths = BranchPaths.late(brancher, waiting)
        store_branches(paths, slice(end - len(waiting), end), None, self._buffer, self._deferred)
        return paths.n_simulator_steps


class AwaitedBranches(PromptBranches):
    """Branches of all N actions, the committed one included, whose outcomes decide about it: see ``RolloutBranches``."""

    _is_awaited = True


class LateBranches:
    """
    Remembers states and branches from many of them at once, see ``RolloutBranches``: what a step of a branch costs beside the
    simulator is shared by thousands.

    :param actor: the policy that goes on after the first step
    :param brancher: keeps the states
    :param buffer: the rollout's buffer
    :param deferred: what is to be known of the next observations
    """

    def __init__(
        self, actor: Actor, brancher: RememberingBrancher, buffer: MultiSampleMixin, deferred: Sequence[DeferredValues]
    ) -> None:
        self._actor = actor
        self._brancher = brancher
        self._buffer = buffer
        self._deferred = deferred
        self._waiting: list[Waiting] = []
        self._came_too_late: np.ndarray | None = None
        self._has_workers: bool = getattr(brancher, "has_workers", False)
        self._workers_follow = teach(actor, brancher, buffer.branch_horizon)
        brancher.forget()

    def begin(self, actions: np.ndarray, alive: np.ndarray, obs: Observations, noise: list[np.ndarray]) -> None:
        """Remember the present states, unless workers do that along with the committed step."""
        if not self._has_workers:
            self._brancher.remember(obs)
        self._waiting.append(Waiting(actions, alive, noise, self._actor.memory))

    def step_env(self, env: VecEnv, actions: np.ndarray) -> VecEnvStepReturn:
        """Take the committed step."""
        workers: Any = self._brancher
        returned: VecEnvStepReturn = workers.remember_and_step(env, actions) if self._has_workers else env.step(actions)
        self._came_too_late = self._brancher.confirm()
        return returned

    def finish(self, new_obs: Observations, infos: Sequence[dict[str, Any]], terminated: np.ndarray) -> int:
        """Complete macro-steps if the branches that wait are many."""
        if self._came_too_late is not None:
            self._waiting[-1].alive[self._came_too_late] = False
            self._buffer.sources[self._buffer.pos - 1, self._came_too_late] = np.arange(self._buffer.n_samples)
        n_waiting = len(self._waiting) * self._waiting[0].alive.size
        return self.finish_all() if n_waiting >= branches_at_once(self._brancher) else 0

    def finish_all(self) -> int:
        """Follow all branches that wait."""
        if not self._waiting:
            return 0
        end = self._buffer.pos
        rows = slice(end - len(self._waiting), end)
        merged = Waiting.merged(self._waiting)
        self._waiting = []
        return self._follow(self._brancher.recall(), merged.actions, merged.alive, merged.noise, rows, merged.memory)

    def _follow(
        self,
        brancher: Brancher,
        actions: np.ndarray,
        alive: np.ndarray,
        noise: list[np.ndarray],
        rows: slice,
        memory: RNNStates | None,
    ) -> int:
        """Follow branches [E, T · n] of the T macro-steps in some rows of the buffer; return their simulator steps."""
        paths = BranchPaths(self._actor, brancher, actions, alive, None, noise, True, self._workers_follow, memory)
        store_branches(paths, rows, None, self._buffer, self._deferred)
        return paths.n_simulator_steps


def branches_at_once(brancher: Any) -> int:
    """
    Return how many branches are to wait for one another at most.

    :param brancher: keeps the states
    :return: their number
    """
    return int(getattr(brancher, "branches_at_once", _BRANCHES_AT_ONCE))


def store_branches(
    paths: BranchPaths, rows: slice, committed: Committed | None, buffer: MultiSampleMixin, deferred: Sequence[DeferredValues]
) -> None:
    """
    Write branches of T macro-steps into the buffer.

    :param paths: the branches, [E, T · n]
    :param rows: the macro-steps' rows of the buffer
    :param committed: the committed transition of a single macro-step
    :param buffer: the rollout's buffer, of all N samples or of all but the first
    :param deferred: what is to be known of the next observations
    """
    if paths.steps:
        for quantity in deferred:
            quantity.begin(paths.memory, paths.steps[0].alive)
    for k, step in enumerate(paths.steps):
        outcome = paths.observed(k, committed)
        store_step(k, step.alive, outcome.rewards, outcome.terminated, rows, buffer)
        if not deferred:
            continue
        selected = select_observations(outcome.observations, step.alive)
        for quantity in deferred:
            stored, alive = places_of(getattr(buffer, quantity.into), k, step.alive, rows, buffer)
            quantity.write(selected, stored, alive)


def store_step(
    k: int, alive: np.ndarray, rewards: np.ndarray, terminated: np.ndarray, rows: slice, buffer: MultiSampleMixin
) -> None:
    """
    Write a step of branches into the buffer.

    :param k: which step of theirs
    :param alive: which of them took it, [E, T · n]
    :param rewards: rewards, [E, T · n]
    :param terminated: whether they ended, [E, T · n]
    :param rows: the macro-steps' rows of the buffer
    :param buffer: the rollout's buffer
    """
    for values, stored in (
        (alive, buffer.branch_alive),
        (rewards, buffer.branch_rewards),
        (terminated, buffer.branch_terminated),
    ):
        places, _ = places_of(stored, k, alive, rows, buffer)
        places[...] = values.reshape(places.shape)


def places_of(
    stored: np.ndarray, k: int, alive: np.ndarray, rows: slice, buffer: MultiSampleMixin
) -> tuple[np.ndarray, np.ndarray]:
    """
    Find the places of branches: those of all N samples, or of all but the first.

    :param stored: an array of the buffer, [T, E, N, K]
    :param k: which step of the branches
    :param alive: which of them took it, [E, T · n]
    :param rows: the macro-steps' rows of the buffer
    :param buffer: the buffer
    :return: the places, [E, T, n], and which of them are alive
    """
    first = buffer.n_samples - alive.shape[1] // (rows.stop - rows.start)
    places: np.ndarray = stored[rows, :, first:, k].swapaxes(0, 1)
    return places, alive.reshape(places.shape)


def _next_observations(new_obs: Observations, infos: Sequence[dict[str, Any]]) -> Observations:
    """Replace the first observations of new episodes by the last ones of those before."""
    last = {idx: info["terminal_observation"] for idx, info in enumerate(infos) if "terminal_observation" in info}
    if not last:
        return new_obs
    if isinstance(new_obs, dict):
        return {key: _replaced(part, {idx: obs[key] for idx, obs in last.items()}) for key, part in new_obs.items()}
    assert isinstance(new_obs, np.ndarray)
    return _replaced(new_obs, last)


def _replaced(observations: np.ndarray, rows: dict[int, Any]) -> np.ndarray:
    result: np.ndarray = observations.copy()
    for idx, row in rows.items():
        result[idx] = row
    return result
