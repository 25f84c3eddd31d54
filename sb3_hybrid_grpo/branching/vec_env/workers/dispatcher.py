"""The end of a transport that is in the worker: it answers for the worker's environments."""

import pickle
import traceback
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from operator import attrgetter
from typing import Any, NamedTuple

import numpy as np
from stable_baselines3.common.vec_env.base_vec_env import CloudpickleWrapper

from sb3_hybrid_grpo.branching.simulator import (
    BeginAgainError,
    LocalBrancher,
    register_transparent_wrapper,
    transparent_wrappers,
)
from sb3_hybrid_grpo.branching.snapshots import register_codec, user_codecs
from sb3_hybrid_grpo.branching.vec_env.behind_wrappers import BranchesBehindWrappers, Stepped
from sb3_hybrid_grpo.branching.vec_env.current import CurrentBrancher, Holder
from sb3_hybrid_grpo.branching.vec_env.views import VecWrapperView
from sb3_hybrid_grpo.common import BranchError, BranchOutcome, BranchStep, Follower, HybridGRPOError, stack_steps, warn


class Setup(NamedTuple):
    """
    How a worker is to branch.

    :param name: name of the way to branch, see ``choose_brancher``
    :param timeout: seconds that all branches of an environment may take for one step
    :param as_returned: see ``LocalBrancher``
    :param registered: codecs and transparent wrappers registered in the main process
    """

    name: str
    timeout: float | None
    as_returned: bool
    registered: CloudpickleWrapper

    @classmethod
    def here(cls, name: str, timeout: float | None, as_returned: bool) -> "Setup":
        """Include what this process has registered."""
        return cls(name, timeout, as_returned, CloudpickleWrapper((user_codecs(), transparent_wrappers())))


class Raised(NamedTuple):
    """
    An answer that is to be raised in the main process: an exception would end the worker.

    :param error_class: class of the error
    :param message: its message
    """

    error_class: type[HybridGRPOError]
    message: str


class Prepared(NamedTuple):
    """
    What there is to know of a worker's brancher.

    :param announcement: what the user should know, if that is news
    :param can_remember: whether it can remember states
    """

    announcement: str | None
    can_remember: bool


class Lesson(NamedTuple):
    """
    What branches are to be followed with.

    :param version: number of this lesson
    :param follower: a ``Follower`` in a ``CloudpickleWrapper``, pickled
    """

    version: int
    follower: bytes


class Task(NamedTuple):
    """
    Branches that a worker is to follow.

    :param version: number of the lesson to do so with
    :param actions: first actions for its environments, [E, n, \\*action_shape]
    :param alive: which of them are branched, [E, n]
    :param noise: the policy's noise in each further step, [K - 1, S, \\*noise_dims]: without any, no lesson is needed
    :param views: what vectorised wrappers do to the outcomes
    """

    version: int
    actions: np.ndarray
    alive: np.ndarray
    noise: np.ndarray
    views: list[VecWrapperView]


class Dispatcher:
    """
    Branches the environments of a worker as it is told.

    :param holder: holds them
    """

    def __init__(self, holder: Holder) -> None:
        self._holder = holder
        self._current: CurrentBrancher
        self._follower: Follower
        self._version = 0
        self._methods: Mapping[str, Callable[..., Any]] = {
            "prepare": self.prepare,
            "renew": self.renew,
            "catch_up": self.catch_up,
            "include_masks": self.include_masks,
            "open": self.open,
            "remember": self.remember,
            "learn": self.learn,
            "follow": self.follow,
            "follow_remembered": self.follow_remembered,
        }

    def __call__(self, method: str, *arguments: Any) -> Any:
        """
        Call a method of this, or of the brancher.

        :param method: its name
        :param arguments: its arguments
        :return: its result, or ``Raised``
        """
        try:
            function = self._methods.get(method) or attrgetter(method)(self._current.brancher)
            return function(*arguments)
        except HybridGRPOError as error:
            return Raised(type(error), str(error))
        except Exception:
            return Raised(BranchError, traceback.format_exc())

    def __deepcopy__(self, memo: Any) -> "Dispatcher":
        """Return itself: it is no part of an environment that holds it."""
        return self

    def prepare(self, setup: Setup, options: Sequence[dict[str, Any]]) -> Prepared:
        """
        Make the brancher.

        :param setup: how
        :param options: what the first reset of each environment is to be given
        :return: what there is to know of it
        """
        codecs, wrappers = setup.registered.var
        for cls, codec in codecs.items():
            register_codec(cls, codec)
        for wrapper_class in wrappers:
            register_transparent_wrapper(wrapper_class)
        self._current = CurrentBrancher(self._holder, setup.name, setup.as_returned, setup.timeout, options)
        return Prepared(self._current.announcement, self._can_remember)

    @property
    def _can_remember(self) -> bool:
        remembered = getattr(self._current.brancher, "remembered", None)
        return remembered is not None and remembered.pays_in_workers

    def renew(self) -> Prepared:
        """
        Turn to the environments that there are now.

        :return: what there is to know of their brancher
        """
        return Prepared(self._current.renew(), self._can_remember)

    def include_masks(self) -> None:
        """Have outcomes include masks of invalid actions from now on."""
        self._current.include_masks()

    def open(self, *arguments: Any) -> BranchOutcome:
        """
        Open branches in the environments that there are now.

        :param arguments: see ``InProcessBrancher.open``
        :return: the outcomes of their first steps
        """
        self.catch_up()
        return self._current.brancher.open(*arguments)

    def catch_up(self) -> None:
        """Turn to the environments that there are now."""
        if self._current.is_outdated:
            announcement = self._current.renew()
            if announcement is not None:
                warn(announcement)

    def remember(self) -> list[bool]:
        """
        Keep the present states.

        :return: for each environment, whether that came too late, since it is another one than before
        """
        self._current.brancher.remembered.remember()  # type: ignore[attr-defined]
        return [self._current.is_outdated] * len(self._holder.envs)

    def learn(self, lesson: Lesson) -> str | None:
        """
        Learn to follow branches of several steps.

        :param lesson: how
        :return: why that is not possible; ``None`` if it is
        """
        self._version = 0
        try:
            self._follower = pickle.loads(lesson.follower).var
        except Exception as error:
            return f"a worker cannot load it: {type(error).__name__}: {error}"
        self._version = lesson.version
        return None

    def follow(self, task: Task) -> BranchStep:
        """
        Follow branches from the present states.

        :param task: the branches
        :return: their steps, stacked
        """
        self.catch_up()
        brancher = self._current.brancher
        staying = brancher.staying if isinstance(brancher, LocalBrancher) and len(task.noise) else nullcontext
        try:
            with staying():
                return self._follow(task, brancher)
        except BeginAgainError:
            with staying():
                return self._follow(task, brancher)

    def follow_remembered(self, task: Task) -> BranchStep:
        """
        Follow branches from the states that were kept.

        :param task: the branches
        :return: their steps, stacked
        """
        return self._follow(task, self._current.brancher.remembered)  # type: ignore[attr-defined]

    def _follow(self, task: Task, source: Stepped) -> BranchStep:
        if len(task.noise) == 0:
            return stack_steps([BranchStep(source.open(task.actions, task.alive, 1), task.alive)])
        if task.version != self._version:
            raise BranchError(f"Branches are to be followed with policy {task.version}, but there is policy {self._version}.")
        branches = BranchesBehindWrappers(source, task.views)
        return stack_steps(self._follower(branches, task.actions, task.alive, [*task.noise]))
