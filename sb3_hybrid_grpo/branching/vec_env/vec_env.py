"""Branching of vectorised environments, as SB3's users build them."""

from collections.abc import Callable, Sequence
from functools import partial
from itertools import zip_longest
from typing import Any, TypeAlias, cast

import numpy as np
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv, VecEnv, VecEnvWrapper
from stable_baselines3.common.vec_env.base_vec_env import VecEnvStepReturn

from sb3_hybrid_grpo.branching.batched import RememberedStates
from sb3_hybrid_grpo.branching.functional import FunctionalBranches, FunctionalVecEnv
from sb3_hybrid_grpo.branching.simulator import InProcessBrancher
from sb3_hybrid_grpo.branching.snapshots import CONSTANT, register_builtin
from sb3_hybrid_grpo.branching.vec_env.behind_wrappers import BranchesBehindWrappers, RecalledBranches
from sb3_hybrid_grpo.branching.vec_env.current import CurrentBrancher
from sb3_hybrid_grpo.branching.vec_env.subclasses import stock_class_of, watch_steps
from sb3_hybrid_grpo.branching.vec_env.views import recallable, see, sent, view_of
from sb3_hybrid_grpo.branching.vec_env.workers import StockTransport, WorkersBrancher, WorkersVecEnv
from sb3_hybrid_grpo.common import (
    BranchOutcome,
    BranchStep,
    Collector,
    Committed,
    Follower,
    Observations,
    UnbranchableEnvError,
    warn,
)

_Source: TypeAlias = CurrentBrancher | WorkersBrancher | FunctionalBranches


class VecEnvBrancher:
    """
    Branches a ``DummyVecEnv`` in place, ``SubprocVecEnv``, ``GroupedSubprocVecEnv`` and ``RayVecEnv`` inside their workers and
    the rows of a ``FunctionalVecEnv``, below all vectorised wrappers.

    :param venv: the training environment
    :param timeout: seconds that all branches of an environment may take for one step
    :param name: name of the way to branch, see ``make_brancher``
    :raises UnbranchableEnvError: if an environment or a wrapper does not allow exact branching
    """

    uses_simulator = True

    def __init__(self, venv: VecEnv, timeout: float | None = None, name: str = "auto") -> None:
        self._venv = venv
        self._timeout = timeout
        self._name = name
        self._has_masks = False
        self._prepare()

    def _prepare(self) -> None:
        """Look at the vectorised environment as it is, and probe the environments in it."""
        self._layers = _layers_of(self._venv)
        *wrappers, base = self._layers
        self._views = [view_of(wrapper) for wrapper in reversed(wrappers)]
        self._source = self._branch_simulators(base)
        self.has_workers = isinstance(self._source, WorkersBrancher)
        self.takes_tensors = isinstance(self._source, FunctionalBranches)
        self._announce(self._source.announcement)
        if self._has_masks:
            self._source.include_masks()

    def _branch_simulators(self, venv: VecEnv) -> _Source:
        if isinstance(venv, FunctionalVecEnv):
            return FunctionalBranches(venv)
        stock = stock_class_of(venv)
        if stock is None:
            raise UnbranchableEnvError(
                f"{type(venv).__name__} is none of SB3's DummyVecEnv and SubprocVecEnv and no GroupedSubprocVecEnv, "
                "RayVecEnv or FunctionalVecEnv, so its environments cannot be reached for branching.\n"
                "Ways out: (1) build the environment with stable_baselines3.common.env_util.make_vec_env; (2) pass a brancher "
                "of your own, brancher=lambda venv: MyBrancher(venv); (3) train without branching, with n_samples=1."
            )
        watch_steps(venv, stock, user=self)
        if isinstance(venv, SubprocVecEnv):
            return WorkersBrancher(StockTransport(venv), self._name, self._timeout, as_returned=True, venv=venv)
        if isinstance(venv, WorkersVecEnv):
            return WorkersBrancher(venv.transport, self._name, self._timeout, as_returned=False, venv=venv)
        assert isinstance(venv, DummyVecEnv)
        return CurrentBrancher(venv, self._name, timeout=self._timeout, options=venv._options)

    def _announce(self, announcement: str | None) -> None:
        self._recallable = recallable(self._views)
        self._remembered: RememberedStates | None = getattr(self._simulators, "remembered", None)
        self.can_remember = self._remembered is not None and self._recallable is not None
        if announcement is not None:
            warn(announcement)

    @property
    def _simulators(self) -> InProcessBrancher | WorkersBrancher | FunctionalBranches:
        return self._source.brancher if isinstance(self._source, CurrentBrancher) else self._source

    @property
    def is_outdated(self) -> bool:
        """
        Whether an environment or a wrapper is another one than when they were probed, or workers have another brancher.

        What happens inside the workers of a ``SubprocVecEnv`` shows after ``confirm``; ``open`` sees to it there.
        """
        venv: Any = self._venv
        for layer in self._layers[:-1]:
            if venv is not layer:
                return True
            venv = venv.venv
        return venv is not self._layers[-1] or self._source.is_outdated or self._is_superseded

    @property
    def _is_superseded(self) -> bool:
        return isinstance(self._source, WorkersBrancher) and self._source.is_superseded

    def renew(self) -> None:
        """
        Turn to the environments that there are now, and probe those that are others.

        :raises UnbranchableEnvError: if one of them, or a wrapper, does not allow exact branching
        """
        is_as_before = all(known is layer for known, layer in zip_longest(self._layers, _layers_of(self._venv)))
        if is_as_before and not self._is_superseded:
            self._announce(cast(CurrentBrancher, self._source).renew())
        else:
            self._prepare()

    def open(self, actions: np.ndarray, alive: np.ndarray, horizon: int, obs: Observations | None = None) -> BranchOutcome:
        """
        Open branches at the current states and take their first steps.

        :param actions: actions as the environments take them, [E, n, \\*action_shape]
        :param alive: which of them are branched, [E, n]
        :param horizon: number of steps that a branch may take in all
        :param obs: not needed: the simulators know their states
        :return: their outcomes as the simulators return them, zero where not ``alive``
        :raises BranchError: if an environment raises
        """
        for view in self._views:
            view.before_step()
        return self._simulators.open(actions, alive, horizon)

    def teach(self, follower: Follower) -> str | None:
        """
        Send workers what they are to follow branches of several steps with, see ``FollowingBrancher``.

        :param follower: it
        :return: why that is not possible; ``None`` if it is
        """
        assert isinstance(self._simulators, WorkersBrancher)
        if sent(self._views, slice(0)) is None:
            return "what register_vec_wrapper was given for a wrapper has no method `sent` that prepares it for workers"
        return self._simulators.teach(follower)

    def follow(self, actions: np.ndarray, alive: np.ndarray, noise: Sequence[np.ndarray]) -> list[BranchStep]:
        """
        Have workers follow branches, see ``FollowingBrancher``.

        :param actions: first actions for the environments, [E, n, \\*action_shape]
        :param alive: which of them are branched, [E, n]
        :param noise: the policy's noise in each further step
        :return: their steps as the simulators return them
        :raises BranchError: if an environment raises
        """
        return self._workers.follow(actions, alive, noise, self._views)

    def follow_and_step(
        self, env: VecEnv, committed: np.ndarray, actions: np.ndarray, alive: np.ndarray, noise: Sequence[np.ndarray]
    ) -> tuple[VecEnvStepReturn, list[BranchStep]]:
        """
        Have workers follow branches and then take the committed step, with one message to each of them.

        :param env: the training environment
        :param committed: committed actions, [E, \\*action_shape]
        :param actions: first actions of branches, [E, n, \\*action_shape]
        :param alive: which of them are branched, [E, n]
        :param noise: the policy's noise in each further step
        :return: what the environment returns, and the steps of the branches of each worker as the simulators return them,
            stacked
        :raises BranchError: if an environment raised in a branch; the committed step has been taken then
        """
        return self._workers.follow_and_step(partial(env.step, committed), actions, alive, noise, self._views)

    @property
    def obstacle_to_collecting(self) -> str | None:
        """Why workers cannot collect whole rollouts, see ``CollectingBrancher``."""
        if not isinstance(self._layers[-1], WorkersVecEnv):
            return (
                f"a {type(self._layers[-1]).__name__} has no workers that can: make the environments with make_parallel_env, "
                "GroupedSubprocVecEnv or RayVecEnv"
            )
        for view, layer in zip(self._views, reversed(self._layers[:-1]), strict=True):
            if view.has_memory or sent([view], slice(0)) is None:
                return f"what {type(layer).__name__} does cannot be done in workers: wrap the single environments instead"
        return None

    def collect(self, collector: Collector, shares: Callable[[slice], tuple[Any, ...]], n_steps: int) -> list[Any]:
        """
        Have workers collect a whole rollout, see ``CollectingBrancher``.

        :param collector: collects it
        :param shares: what the worker of some environments is to be given beside
        :param n_steps: number of macro-steps
        :return: what ``collector`` returned in each worker
        :raises BranchError: if an environment raises in a branch
        """
        return self._workers.collect(collector, shares, n_steps, self._views)

    @property
    def _workers(self) -> WorkersBrancher:
        """The workers, when they are to follow branches."""
        for view in self._views:
            view.before_step()
        assert isinstance(self._simulators, WorkersBrancher)
        return self._simulators

    def advance(self, actions: np.ndarray, alive: np.ndarray) -> BranchOutcome:
        """
        Take a further step in the open branches.

        :param actions: actions as the environments take them, [E, n, \\*action_shape]
        :param alive: which branches go on, [E, n]
        :return: the outcomes as the simulators return them, zero where not ``alive``
        :raises BranchError: if an environment raises
        """
        return self._simulators.advance(actions, alive)

    def close(self) -> None:
        """Forget the open branches."""
        self._simulators.close()

    def observed(
        self, outcome: BranchOutcome, earlier: Sequence[BranchOutcome] = (), committed: Committed | None = None
    ) -> BranchOutcome:
        """
        Send simulator outcomes through the vectorised wrappers, without side effects.

        :param outcome: what ``open`` or ``advance`` returned
        :param earlier: the outcomes of the steps before it in the same branches
        :param committed: not needed
        :return: what the wrappers would return for it
        """
        return see(outcome, earlier, self._views)

    @property
    def side_effects(self) -> list[str]:
        """What steps of environments in this process were noticed to do outside it."""
        return getattr(self._simulators, "side_effects", [])

    @property
    def branches_at_once(self) -> int:
        """Number of branches that are to be opened together at most, of states that were remembered."""
        if isinstance(self._source, FunctionalBranches):
            return self._source.most_rows
        assert self._remembered is not None
        return self._remembered.branches_at_once

    def include_masks(self) -> None:
        """Have outcomes include masks of invalid actions, which the environments offer, from now on."""
        self._has_masks = True
        self._source.include_masks()

    def remember(self, obs: Observations | None = None) -> None:
        """
        Keep the present states, before the committed step.

        :param obs: not needed: the simulators know their states
        """
        self._remember_views()
        assert self._remembered is not None
        self._remembered.remember()

    @property
    def can_wait(self) -> bool:
        """Whether outcomes of branches that workers follow can be observed later, see ``wait``."""
        return self.has_workers and self._recallable is not None

    def wait(self) -> None:
        """Have the outcomes of this macro-step wait, before its committed step, until ``observe_late``."""
        self._remember_views()

    def observe_late(self) -> BranchesBehindWrappers:
        """
        Observe the outcomes of all macro-steps that wait.

        :return: a brancher that observes them, [E, T · n, ...]
        """
        assert self._recallable is not None
        assert isinstance(self._simulators, WorkersBrancher)
        return BranchesBehindWrappers(self._simulators, [view.recall()[1] for view in self._recallable])

    def remember_and_step(self, env: VecEnv, committed: np.ndarray) -> VecEnvStepReturn:
        """
        Have workers keep the present states and then take the committed step, with one message to each of them.

        :param env: the training environment
        :param committed: committed actions, [E, \\*action_shape]
        :return: what the environment returns
        """
        self._remember_views()
        assert isinstance(self._simulators, WorkersBrancher)
        return self._simulators.remember_and_step(partial(env.step, committed))

    def _remember_views(self) -> None:
        assert self._recallable is not None
        for view in self._recallable:
            view.remember()

    def confirm(self) -> np.ndarray | None:
        """
        Tell whether the states have been kept.

        :return: for which environments that came too late, since they are others than before, [E]; ``None`` if for none
        """
        assert self._remembered is not None
        return self._remembered.confirm()

    def forget(self) -> None:
        """Forget the states that were remembered."""
        assert self._remembered is not None and self._recallable is not None
        for view in self._recallable:
            view.forget()
        self._remembered.forget()

    def recall(self) -> RecalledBranches:
        """
        Branch from the states that were remembered, and forget them.

        :return: a brancher of all of them at once
        """
        assert self._remembered is not None and self._recallable is not None
        return RecalledBranches(self._remembered, self._recallable)


def _layers_of(venv: VecEnv) -> list[Any]:
    """Return the wrappers of a vectorised environment, outermost first, and what is inside them."""
    layers: list[Any] = [venv]
    while isinstance(layers[-1], VecEnvWrapper):
        layers.append(layers[-1].venv)
    return layers


for _machinery in (VecEnvBrancher, InProcessBrancher, CurrentBrancher):
    register_builtin(_machinery, CONSTANT)
