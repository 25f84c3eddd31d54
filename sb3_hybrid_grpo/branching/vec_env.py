"""Branching of vectorised environments, as SB3's users build them."""

import contextlib
import sys
import traceback
import warnings
from collections.abc import Sequence
from operator import attrgetter
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv, VecEnv, VecEnvWrapper
from stable_baselines3.common.vec_env.base_vec_env import CloudpickleWrapper

from sb3_hybrid_grpo.branching.functional import FunctionalVecEnv
from sb3_hybrid_grpo.branching.functional.branches import FunctionalBranches
from sb3_hybrid_grpo.branching.in_process import InProcessBrancher
from sb3_hybrid_grpo.branching.local import choose_brancher
from sb3_hybrid_grpo.branching.outcomes import join
from sb3_hybrid_grpo.branching.remembered import RecalledBranches, RememberedStates
from sb3_hybrid_grpo.branching.simulator import register_transparent_wrapper, transparent_wrappers
from sb3_hybrid_grpo.branching.snapshot import CONSTANT, register_builtin, register_codec, user_codecs
from sb3_hybrid_grpo.branching.vec_wrappers import recallable, view_of
from sb3_hybrid_grpo.common.type_aliases import (
    BranchError,
    BranchOutcome,
    BranchTimeoutError,
    Committed,
    HybridGRPOError,
    Observations,
    UnbranchableEnvError,
)

_WORKER_ATTRIBUTE = "sb3_hybrid_grpo_branches"
_GRACE_SECONDS = 5.0


class VecEnvBrancher:
    """
    Branches a ``DummyVecEnv`` in place, a ``SubprocVecEnv`` inside its workers and the rows of a ``FunctionalVecEnv``, below
    all vectorised wrappers.

    :param venv: the training environment
    :param timeout: seconds that all branches of an environment may take for one step
    :param name: name of the way to branch, see ``make_brancher``
    :raises UnbranchableEnvError: if an environment or a wrapper does not allow exact branching
    """

    uses_simulator = True

    def __init__(self, venv: VecEnv, timeout: float | None = None, name: str = "auto") -> None:
        wrappers = []
        while isinstance(venv, VecEnvWrapper):
            wrappers.append(venv)
            venv = venv.venv
        self._views = [view_of(wrapper) for wrapper in reversed(wrappers)]
        self._has_memory = any(view.has_memory for view in self._views)
        self._simulators, announcement = _branch_simulators(venv, timeout, name)
        self.has_workers = isinstance(self._simulators, _SubprocBrancher)
        self.takes_tensors = isinstance(self._simulators, FunctionalBranches)
        if isinstance(self._simulators, FunctionalBranches):
            self.branches_at_once = self._simulators.most_rows
        self._recallable = recallable(self._views)
        self._remembered: RememberedStates | None = getattr(self._simulators, "remembered", None)
        self.can_remember = self._remembered is not None and self._recallable is not None
        if announcement is not None:
            warnings.warn(announcement, stacklevel=2)

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

    def start(self, actions: np.ndarray, alive: np.ndarray, horizon: int) -> None:
        """
        Open branches as ``open`` does, without waiting for the workers of a ``SubprocVecEnv``.

        Workers do one thing after the other: a step of the environments may be asked for before ``wait``.

        :param actions: actions as the environments take them, [E, n, \\*action_shape]
        :param alive: which of them are branched, [E, n]
        :param horizon: number of steps that a branch may take in all
        """
        for view in self._views:
            view.before_step()
        assert isinstance(self._simulators, _SubprocBrancher)
        self._simulators.start(actions, alive, horizon)

    def wait(self) -> BranchOutcome:
        """
        Return what ``start`` asked for.

        :return: the outcomes as the simulators return them, zero where not ``alive``
        :raises BranchError: if an environment raised
        """
        assert isinstance(self._simulators, _SubprocBrancher)
        return self._simulators.wait()

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
        path = [*earlier, outcome] if self._has_memory else [outcome]
        for view in self._views:
            path = view(path)
        return path[-1]

    def include_masks(self) -> None:
        """Have outcomes include masks of invalid actions, which the environments offer, from now on."""
        self._simulators.include_masks()

    def remember(self, obs: Observations | None = None) -> None:
        """
        Keep the present states, before the committed step; workers need not have done so before ``confirm``.

        :param obs: not needed: the simulators know their states
        """
        assert self._remembered is not None and self._recallable is not None
        for view in self._recallable:
            view.remember()
        self._remembered.remember()

    def confirm(self) -> None:
        """Wait until the states are kept."""
        assert self._remembered is not None
        self._remembered.confirm()

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
        self._brancher: InProcessBrancher | None = None

    def __call__(self, method: str, *arguments: Any) -> Any:
        """
        Call a method of the worker's brancher.

        :param method: its name, ``"__init__"`` to make the brancher and return what the user should know about it, and
            whether it can remember states
        :param arguments: its arguments
        :return: its result, or a ``_Raised``: an exception would end the worker
        """
        try:
            if method == "__init__":
                # The one caller is SB3's worker loop, and it offers no other way to its environment.
                return self._make_brancher(sys._getframe(1).f_locals["env"])
            return attrgetter(method)(self._brancher)(*arguments)
        except HybridGRPOError as error:
            return _Raised(type(error), str(error))
        except Exception:
            return _Raised(BranchError, traceback.format_exc())

    def __deepcopy__(self, memo: Any) -> "_WorkerBranches":
        """Return itself: it is no part of the environment that holds it."""
        return self

    def _make_brancher(self, env: gym.Env[Any, Any]) -> tuple[str | None, bool]:
        codecs, wrappers = self._registered.var
        for cls, codec in codecs.items():
            register_codec(cls, codec)
        for wrapper_class in wrappers:
            register_transparent_wrapper(wrapper_class)
        self._brancher, announcement = choose_brancher(self._name, [env], as_returned=True, timeout=self._timeout)
        return announcement, getattr(self._brancher, "remembered", None) is not None


class _Raised(NamedTuple):
    error_class: type[HybridGRPOError]
    message: str


register_builtin(_WorkerBranches, CONSTANT)


class _SubprocBrancher:
    """Sends each worker its actions, then collects the outcomes: the workers branch at the same time."""

    def __init__(self, venv: SubprocVecEnv, timeout: float | None, name: str) -> None:
        self.venv = venv
        self._timeout = timeout
        registered = CloudpickleWrapper((user_codecs(), transparent_wrappers()))
        venv.set_attr(_WORKER_ATTRIBUTE, _WorkerBranches(registered, timeout, name))
        announcements, can_remember = zip(*self.call("__init__", [() for _ in venv.remotes]), strict=True)
        self.announcement: str | None = next(filter(None, announcements), None)
        self.remembered = _WorkerStates(self) if all(can_remember) else None

    def open(self, actions: np.ndarray, alive: np.ndarray, horizon: int) -> BranchOutcome:
        self.start(actions, alive, horizon)
        return self.wait()

    def start(self, actions: np.ndarray, alive: np.ndarray, horizon: int) -> None:
        rows = zip(actions, alive, strict=True)
        self.send("open", [(row[None], row_alive[None], horizon) for row, row_alive in rows])

    def wait(self) -> BranchOutcome:
        return join(self.receive())

    def advance(self, actions: np.ndarray, alive: np.ndarray) -> BranchOutcome:
        return self.step("advance", actions, alive)

    def step(self, method: str, actions: np.ndarray, alive: np.ndarray, *arguments: Any) -> BranchOutcome:
        rows = zip(actions, alive, strict=True)
        return join(self.call(method, [(row[None], row_alive[None], *arguments) for row, row_alive in rows]))

    def include_masks(self) -> None:
        self.call("include_masks", [() for _ in self.venv.remotes])

    def close(self) -> None:
        """Do nothing: a worker forgets its branches when the next ones are opened."""

    def call(self, method: str, arguments: Sequence[tuple[Any, ...]]) -> list[Any]:
        self.send(method, arguments)
        return self.receive()

    def send(self, method: str, arguments: Sequence[tuple[Any, ...]]) -> None:
        try:
            for remote, row in zip(self.venv.remotes, arguments, strict=True):
                remote.send(("env_method", (_WORKER_ATTRIBUTE, (method, *row), {})))
        except OSError as error:
            raise BranchError(self._give_up("died in a branch")) from error

    def receive(self) -> list[Any]:
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

    def __init__(self, workers: _SubprocBrancher) -> None:
        self._workers = workers

    def remember(self) -> None:
        self._workers.send("remembered.remember", [() for _ in self._workers.venv.remotes])

    def confirm(self) -> None:
        self._workers.receive()

    def forget(self) -> None:
        self._workers.call("remembered.forget", [() for _ in self._workers.venv.remotes])

    def open(self, actions: np.ndarray, alive: np.ndarray, horizon: int) -> BranchOutcome:
        return self._workers.step("remembered.open", actions, alive, horizon)

    def advance(self, actions: np.ndarray, alive: np.ndarray) -> BranchOutcome:
        return self._workers.step("remembered.advance", actions, alive)


def _branch_simulators(
    venv: VecEnv, timeout: float | None, name: str
) -> tuple[InProcessBrancher | _SubprocBrancher | FunctionalBranches, str | None]:
    if isinstance(venv, FunctionalVecEnv):
        return FunctionalBranches(venv), None
    if type(venv).step_wait is DummyVecEnv.step_wait and isinstance(venv, DummyVecEnv):
        return choose_brancher(name, venv.envs, timeout=timeout)
    if type(venv).step_wait is SubprocVecEnv.step_wait and isinstance(venv, SubprocVecEnv):
        workers = _SubprocBrancher(venv, timeout, name)
        return workers, workers.announcement
    raise UnbranchableEnvError(
        f"{type(venv).__name__} is none of SB3's DummyVecEnv and SubprocVecEnv and no FunctionalVecEnv (or changes how "
        f"they step), so its "
        "environments cannot be reached for branching.\n"
        "Ways out: (1) build the environment with stable_baselines3.common.env_util.make_vec_env; (2) pass a brancher of "
        "your own, brancher=lambda venv: MyBrancher(venv); (3) train without branching, with n_samples=1."
    )
