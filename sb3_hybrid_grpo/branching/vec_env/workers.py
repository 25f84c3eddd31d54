"""Branching inside the workers of a ``SubprocVecEnv``."""

import contextlib
import sys
import traceback
from collections.abc import Sequence
from operator import attrgetter
from types import SimpleNamespace
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np
from stable_baselines3.common.vec_env import SubprocVecEnv
from stable_baselines3.common.vec_env.base_vec_env import CloudpickleWrapper

from sb3_hybrid_grpo.branching.simulator import register_transparent_wrapper, transparent_wrappers
from sb3_hybrid_grpo.branching.snapshots import CONSTANT, register_builtin, register_codec, user_codecs
from sb3_hybrid_grpo.branching.vec_env.current import CurrentBrancher
from sb3_hybrid_grpo.common import BranchError, BranchOutcome, BranchTimeoutError, HybridGRPOError, join, warn

_WORKER_ATTRIBUTE = "sb3_hybrid_grpo_branches"
_GRACE_SECONDS = 5.0


class _WorkerBranches:
    """
    Branches the environment of a ``SubprocVecEnv`` worker, called there through ``env_method``.

    :param registered: codecs and transparent wrappers registered in the main process
    :param timeout: seconds that all branches of the environment may take for one step
    :param name: name of the brancher
    """

    def __init__(self, registered: CloudpickleWrapper, timeout: float | None, name: str) -> None:
        self._registered = registered
        self._timeout = timeout
        self._name = name
        self._current: CurrentBrancher

    def __call__(self, method: str, *arguments: Any) -> Any:
        """
        Call a method of the worker's brancher.

        :param method: its name; ``"__init__"`` and ``"renew"`` make the brancher and return what the user should know about
            it, and whether it can remember states; ``"remember"`` returns whether that came too late, since the environment is
            another one than before
        :param arguments: its arguments
        :return: its result, or a ``_Raised``: an exception would end the worker
        """
        try:
            if method == "__init__":
                # The one caller is SB3's worker loop, and it offers no other way to its environment.
                return self._make_brancher(sys._getframe(1).f_locals["env"], *arguments)
            if method in _OWN_METHODS:
                return getattr(self, f"_{method}")(*arguments)
            return attrgetter(method)(self._current.brancher)(*arguments)
        except HybridGRPOError as error:
            return _Raised(type(error), str(error))
        except Exception:
            return _Raised(BranchError, traceback.format_exc())

    def __deepcopy__(self, memo: Any) -> "_WorkerBranches":
        """Return itself: it is no part of the environment that holds it."""
        return self

    def _make_brancher(self, env: gym.Env[Any, Any], options: dict[str, Any]) -> tuple[str | None, bool]:
        codecs, wrappers = self._registered.var
        for cls, codec in codecs.items():
            register_codec(cls, codec)
        for wrapper_class in wrappers:
            register_transparent_wrapper(wrapper_class)
        holder = SimpleNamespace(envs=[env])
        self._current = CurrentBrancher(holder, self._name, as_returned=True, timeout=self._timeout, options=[options])
        return self._current.announcement, self._can_remember

    @property
    def _can_remember(self) -> bool:
        return getattr(self._current.brancher, "remembered", None) is not None

    def _renew(self) -> tuple[str | None, bool]:
        return self._current.renew(), self._can_remember

    def _include_masks(self) -> None:
        self._current.include_masks()

    def _open(self, *arguments: Any) -> BranchOutcome:
        if self._current.is_outdated:
            announcement = self._current.renew()
            if announcement is not None:
                warn(announcement)
        return self._current.brancher.open(*arguments)

    def _remember(self) -> bool:
        self._current.brancher.remembered.remember()  # type: ignore[attr-defined]
        return self._current.is_outdated


_OWN_METHODS = ("renew", "include_masks", "open", "remember")


class _Raised(NamedTuple):
    error_class: type[HybridGRPOError]
    message: str


register_builtin(_WorkerBranches, CONSTANT)


class SubprocBrancher:
    """
    Sends each worker its actions, then collects the outcomes: the workers branch at the same time.

    ``is_outdated`` tells whether a worker has said that its environment is another one than before.

    :param venv: the vectorised environment
    :param timeout: seconds that all branches of an environment may take for one step
    :param name: name of the way to branch, see ``choose_brancher``
    :raises UnbranchableEnvError: if an environment cannot be branched exactly in this way
    :raises BranchError: if an environment raises while it is probed
    """

    def __init__(self, venv: SubprocVecEnv, timeout: float | None, name: str) -> None:
        self.venv = venv
        self._timeout = timeout
        self.is_outdated = False
        registered = CloudpickleWrapper((user_codecs(), transparent_wrappers()))
        venv.set_attr(_WORKER_ATTRIBUTE, _WorkerBranches(registered, timeout, name))
        self.announcement = self._prepare(self.call("__init__", [(options,) for options in venv._options]))

    def _prepare(self, answers: list[tuple[str | None, bool]]) -> str | None:
        announcements, can_remember = zip(*answers, strict=True)
        self.remembered = _WorkerStates(self) if all(can_remember) else None
        return next(filter(None, announcements), None)

    def renew(self) -> str | None:
        """
        Have workers turn to the environments that they have now.

        :return: what the user should know about how they are branched, if that is news
        :raises UnbranchableEnvError: if one of them cannot be branched exactly
        """
        self.is_outdated = False
        return self._prepare(self.call("renew", [() for _ in self.venv.remotes]))

    def open(self, actions: np.ndarray, alive: np.ndarray, horizon: int) -> BranchOutcome:
        """Open branches and take their first steps, see ``VecEnvBrancher.open``."""
        self.start(actions, alive, horizon)
        return self.wait()

    def start(self, actions: np.ndarray, alive: np.ndarray, horizon: int) -> None:
        """Open branches without waiting, see ``VecEnvBrancher.start``."""
        rows = zip(actions, alive, strict=True)
        self.send("open", [(row[None], row_alive[None], horizon) for row, row_alive in rows])

    def wait(self) -> BranchOutcome:
        """Return what ``start`` asked for."""
        return join(self.receive())

    def advance(self, actions: np.ndarray, alive: np.ndarray) -> BranchOutcome:
        """Take a further step in the open branches, see ``VecEnvBrancher.advance``."""
        return self.step("advance", actions, alive)

    def step(self, method: str, actions: np.ndarray, alive: np.ndarray, *arguments: Any) -> BranchOutcome:
        """
        Have each worker step its branches.

        :param method: name of a method of its brancher
        :param actions: actions as the environments take them, [E, n, \\*action_shape]
        :param alive: which branches take a step, [E, n]
        :param arguments: what else the method takes
        :return: the outcomes, zero where not ``alive``
        """
        rows = zip(actions, alive, strict=True)
        return join(self.call(method, [(row[None], row_alive[None], *arguments) for row, row_alive in rows]))

    def include_masks(self) -> None:
        """Have outcomes include masks of invalid actions from now on."""
        self.call("include_masks", [() for _ in self.venv.remotes])

    def close(self) -> None:
        """Do nothing: a worker forgets its branches when the next ones are opened."""

    def call(self, method: str, arguments: Sequence[tuple[Any, ...]]) -> list[Any]:
        """
        Call a method in every worker.

        :param method: its name, see ``_WorkerBranches``
        :param arguments: its arguments for each worker
        :return: the answers
        :raises HybridGRPOError: if a worker raised, or is lost
        """
        self.send(method, arguments)
        return self.receive()

    def send(self, method: str, arguments: Sequence[tuple[Any, ...]]) -> None:
        """
        Call a method in every worker, without waiting for the answers.

        :param method: its name
        :param arguments: its arguments for each worker
        """
        try:
            for remote, row in zip(self.venv.remotes, arguments, strict=True):
                remote.send(("env_method", (_WORKER_ATTRIBUTE, (method, *row), {})))
        except OSError as error:
            raise BranchError(self._give_up("died in a branch")) from error

    def receive(self) -> list[Any]:
        """
        Wait for the answers to ``send``.

        :return: an answer of each worker
        """
        answers: list[Any] = []
        try:
            for remote in self.venv.remotes:
                # The worker itself interrupts an environment that hangs, unless that never returns to Python.
                if self._timeout is not None and not remote.poll(2 * self._timeout + _GRACE_SECONDS):
                    raise BranchTimeoutError(self._give_up(f"did not answer within branch_timeout={self._timeout} s"))
                answers.append(remote.recv())
        except (EOFError, OSError) as error:
            raise BranchError(self._give_up("died in a branch")) from error
        except KeyboardInterrupt:
            self._drain(len(answers))
            raise
        for env_idx, answer in enumerate(answers):
            if isinstance(answer, _Raised):
                raise answer.error_class(f"In the worker process of environment {env_idx}: {answer.message}")
        return answers

    def _give_up(self, problem: str) -> str:
        """End all workers, since one of them is lost, and return a description."""
        processes = self.venv.processes
        for process in processes:
            process.join(timeout=0.1)
        lost = {idx: process.exitcode for idx, process in enumerate(processes) if process.exitcode is not None}
        for process, remote in zip(processes, self.venv.remotes, strict=True):
            process.kill()
            process.join()
            remote.close()
        self.venv.closed = True
        who = ", ".join(f"{idx} (exit code {exitcode})" for idx, exitcode in lost.items())
        return (
            f"The worker process of an environment {problem}: environment {who or 'unknown'}. All workers were ended and the "
            "vectorised environment is closed. Make it anew and go on from the last checkpoint."
        )

    def _drain(self, n_received: int) -> None:
        """Take the answers that are still due, so that the next command gets its own."""
        for remote in self.venv.remotes[n_received:]:
            with contextlib.suppress(EOFError, OSError):
                if remote.poll(_GRACE_SECONDS):
                    remote.recv()


class _WorkerStates:
    """Has workers remember their states, see ``RememberedStates``."""

    branches_at_once = 2048

    def __init__(self, workers: SubprocBrancher) -> None:
        self._workers = workers

    def remember(self) -> None:
        self._workers.send("remember", [() for _ in self._workers.venv.remotes])

    def confirm(self) -> np.ndarray:
        came_too_late = np.array(self._workers.receive())
        self._workers.is_outdated |= bool(came_too_late.any())
        return came_too_late

    def forget(self) -> None:
        self._workers.call("remembered.forget", [() for _ in self._workers.venv.remotes])

    def open(self, actions: np.ndarray, alive: np.ndarray, horizon: int) -> BranchOutcome:
        return self._workers.step("remembered.open", actions, alive, horizon)

    def advance(self, actions: np.ndarray, alive: np.ndarray) -> BranchOutcome:
        return self._workers.step("remembered.advance", actions, alive)
