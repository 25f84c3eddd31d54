"""A rollout that workers have collected, which the main process goes through as if it happened now."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import numpy as np
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.running_mean_std import RunningMeanStd
from stable_baselines3.common.vec_env import VecEnv, VecEnvWrapper, VecNormalize
from stable_baselines3.common.vec_env.base_vec_env import VecEnvStepReturn

from sb3_hybrid_grpo.branching.vec_env import WorkersVecEnv
from sb3_hybrid_grpo.common import Brancher, BranchOutcome, BranchStep, Committed, Follower, Observations, join_steps
from sb3_hybrid_grpo.policies import Actor, Samples, to_env_actions
from sb3_hybrid_grpo.rollout.fragments.collector import Fragment
from sb3_hybrid_grpo.rollout.multi_sample import MultiSampleMixin
from sb3_hybrid_grpo.rollout.rollout_branches import branches_at_once, make_rollout_branches
from sb3_hybrid_grpo.rollout.values import DeferredValues


def normalizers_of(env: VecEnv) -> list[VecNormalize]:
    """
    Find the wrappers that normalise.

    :param env: a vectorised environment
    :return: all ``VecNormalize`` around it, the outermost first
    """
    found = []
    while isinstance(env, VecEnvWrapper):
        if isinstance(env, VecNormalize):
            found.append(env)
        env = env.venv
    return found


class FrozenStatistics:
    """
    Statistics of a ``VecNormalize`` that stand still, and what it is to learn in the end of the steps in the meantime.

    :param layer: the wrapper
    """

    def __init__(self, layer: VecNormalize) -> None:
        self._layer = layer
        self._returns = np.array(layer.returns)
        self._statistics = {**_by_key(layer.obs_rms if layer.norm_obs else {}), _RETURNS: layer.ret_rms}
        self._deltas = {key: RunningMeanStd(epsilon=0.0, shape=rms.mean.shape) for key, rms in self._statistics.items()}

    @contextmanager
    def hold(self) -> Iterator[None]:
        """Have the wrapper take a step without learning of it."""
        is_training = self._layer.training
        self._layer.training = False
        try:
            yield
        finally:
            self._layer.training = is_training

    def note(self, dones: np.ndarray) -> None:
        """
        Note what it would have learned of the step that it has just taken.

        :param dones: whether episodes ended, [E]
        """
        layer = self._layer
        if layer.training:
            self._returns = self._returns * layer.gamma + layer.old_reward
            seen = {**_by_key(layer.old_obs), _RETURNS: self._returns}
            for key, delta in self._deltas.items():
                delta.update(seen[key])
        self._returns[dones] = 0

    def merge(self) -> None:
        """Learn what was noted. Count, mean and M2 are put together as those of one stream, see ``RunningMeanStd``."""
        for key, delta in self._deltas.items():
            if delta.count:
                self._statistics[key].combine(delta)
        self._layer.returns = self._returns


_RETURNS = ("returns",)


def _by_key(parts: Any) -> dict[Any, Any]:
    return parts if isinstance(parts, dict) else {None: parts}


class Playback:
    """
    Goes through a rollout that workers have collected, with the statistics of ``VecNormalize`` that they used.

    :param policy: the policy that they used
    :param env: the training environment
    :param fragments: what each of them has collected
    """

    def __init__(self, policy: ActorCriticPolicy, env: VecEnv, fragments: Sequence[Fragment]) -> None:
        assert isinstance(env.unwrapped, WorkersVecEnv)
        env.unwrapped.play_back([fragment.steps for fragment in fragments])
        self._policy = policy
        self._env = env
        self._actions = np.concatenate([fragment.actions for fragment in fragments], axis=1)
        weights = [fragment.log_weights for fragment in fragments if fragment.log_weights is not None]
        self._log_weights = np.concatenate(weights, axis=1) if weights else None
        self._branches = [fragment.branches for fragment in fragments]
        self._statistics = [FrozenStatistics(layer) for layer in normalizers_of(env)]
        self._n_steps = 0
        self._is_merged = False
        self.last: tuple[Any, np.ndarray]

    def samples(self) -> Samples:
        """Return the actions that were sampled at the present states."""
        log_weights = None if self._log_weights is None else self._log_weights[self._n_steps]
        return Samples(self._actions[self._n_steps], log_weights=log_weights)

    def branch_steps(self) -> list[BranchStep]:
        """Return the steps of the branches that workers have followed at this point, stacked by each of them."""
        return [branches[self._n_steps] for branches in self._branches]

    def go_on(self, take: Callable[[], VecEnvStepReturn]) -> VecEnvStepReturn:
        """
        Go on to the next states, without having wrappers learn of them.

        :param take: takes the step of the training environment
        :return: what it returns
        """
        with ExitStack() as held:
            for statistics in self._statistics:
                held.enter_context(statistics.hold())
            returned = take()
        for statistics in self._statistics:
            statistics.note(returned[2])
        self._n_steps += 1
        self.last = returned[0], returned[2]
        return returned

    def merge(self) -> None:
        """Have wrappers learn what was frozen so far, once."""
        if not self._is_merged:
            self._is_merged = True
            for statistics in self._statistics:
                statistics.merge()

    def finish(self) -> tuple[Any, np.ndarray]:
        """
        Take the steps that are left, if the rollout was not completed: the environments have taken them.

        :return: observations after the rollout, and whether episodes ended with its last macro-step
        """
        while self._n_steps < len(self._actions):
            committed = to_env_actions(self._policy, self._actions[self._n_steps])[:, 0]
            self.go_on(partial(self._env.step, committed))
        self.merge()
        return self.last


class _PlayedBrancher:
    """
    Returns what workers have found out, in place of the brancher that has them find it out.

    :param playback: the rollout
    :param brancher: that one
    """

    uses_simulator = True
    has_workers = True
    can_wait = True

    def __init__(self, playback: Playback, brancher: Any) -> None:
        self._playback = playback
        self._brancher = brancher
        self.can_remember: bool = brancher.can_remember
        self.branches_at_once = branches_at_once(brancher) if brancher.can_remember else 0

    def teach(self, follower: Follower) -> None:
        """Do nothing: the branches have been followed."""

    def forget(self) -> None:
        """Do nothing, see ``teach``."""

    def confirm(self) -> None:
        """Say that all states have been kept."""

    def remember_and_step(self, env: VecEnv, committed: np.ndarray) -> VecEnvStepReturn:
        return env.step(committed)

    def recall(self) -> "_PlayedBrancher":
        return self

    def wait(self) -> None:
        """Do nothing: wrappers learn of the rollout in the end."""

    def observe_late(self) -> "_PlayedBrancher":
        return self

    def follow(self, actions: np.ndarray, alive: np.ndarray, noise: Sequence[np.ndarray]) -> list[BranchStep]:
        return join_steps(self._playback.branch_steps())

    def follow_and_step(
        self, env: VecEnv, committed: np.ndarray, actions: np.ndarray, alive: np.ndarray, noise: Sequence[np.ndarray]
    ) -> tuple[VecEnvStepReturn, list[BranchStep]]:
        steps = self._playback.branch_steps()
        return env.step(committed), steps

    def observed(
        self, outcome: BranchOutcome, earlier: Sequence[BranchOutcome] = (), committed: Committed | None = None
    ) -> BranchOutcome:
        seen: BranchOutcome = self._brancher.observed(outcome, earlier, committed)
        return seen


class PlayedBranches:
    """
    Branches that workers have followed, stored as those that are followed now would be: see ``RolloutBranches``.

    :param playback: the rollout
    :param actor: the policy
    :param brancher: what had workers follow them
    :param buffer: the rollout's buffer
    :param deferred: what is to be known of the next observations
    """

    def __init__(
        self,
        playback: Playback,
        actor: Actor,
        brancher: Brancher,
        buffer: MultiSampleMixin,
        deferred: Sequence[DeferredValues],
    ) -> None:
        self._playback = playback
        played: Any = _PlayedBrancher(playback, brancher)
        self._branches = make_rollout_branches(actor, played, buffer, deferred)

    def begin(self, actions: np.ndarray, alive: np.ndarray, obs: Observations, noise: list[np.ndarray]) -> None:
        """Turn to the branches that leave the present states."""
        self._branches.begin(actions, alive, obs, noise)

    def step_env(self, env: VecEnv, actions: np.ndarray) -> VecEnvStepReturn:
        """Go on to the next states."""
        return self._playback.go_on(partial(self._branches.step_env, env, actions))

    def finish(self, new_obs: Observations, infos: Sequence[dict[str, Any]], terminated: np.ndarray) -> int:
        """Complete the macro-step, or put that off."""
        return self._branches.finish(new_obs, infos, terminated)

    def finish_all(self) -> int:
        """Complete all macro-steps, and let go of the statistics."""
        n_simulator_steps = self._branches.finish_all()
        self._playback.merge()
        return n_simulator_steps
