"""Branching of vectorised environments, as SB3's users build them."""

import sys
import traceback
from collections.abc import Sequence
from typing import Any

import numpy as np
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv, VecEnv, VecEnvWrapper
from stable_baselines3.common.vec_env.base_vec_env import CloudpickleWrapper

from sb3_hybrid_grpo.branching.env import LocalBrancher
from sb3_hybrid_grpo.branching.snapshot import CONSTANT, register_builtin, register_codec, user_codecs
from sb3_hybrid_grpo.branching.vec_wrappers import view_of
from sb3_hybrid_grpo.common.type_aliases import BranchError, BranchOutcome, HybridGRPOError, Observations, UnbranchableEnvError

_WORKER_ATTRIBUTE = "sb3_hybrid_grpo_branches"


class VecEnvBrancher:
    """
    Branches a ``DummyVecEnv`` in place or a ``SubprocVecEnv`` inside its workers, below all vectorised wrappers.

    :param venv: the training environment
    :raises UnbranchableEnvError: if an environment or a wrapper does not allow exact branching
    """

    def __init__(self, venv: VecEnv) -> None:
        wrappers = []
        while isinstance(venv, VecEnvWrapper):
            wrappers.append(venv)
            venv = venv.venv
        self._views = [view_of(wrapper) for wrapper in reversed(wrappers)]
        self._simulators = _branch_simulators(venv)

    def branch(self, actions: np.ndarray) -> BranchOutcome:
        """
        Evaluate actions in the current state and leave the environments exactly as they were.

        :param actions: actions as the environments take them, [E, n, \\*action_shape]
        :return: their outcomes as the simulators return them
        :raises BranchError: if an environment raises; its state is restored first
        """
        for view in self._views:
            view.before_step()
        return self._simulators.branch(actions)

    def observed(self, outcome: BranchOutcome) -> BranchOutcome:
        """
        Send simulator outcomes through the vectorised wrappers, without side effects.

        :param outcome: the last result of ``branch``, after the committed ``env.step``
        :return: what the wrappers would return for it
        """
        for view in self._views:
            outcome = view(outcome)
        return outcome


class _DummyBrancher(LocalBrancher):
    """Rounds rewards as ``DummyVecEnv`` does."""

    def branch(self, actions: np.ndarray) -> BranchOutcome:
        outcome = super().branch(actions)
        return outcome._replace(rewards=outcome.rewards.astype(np.float32))


class _WorkerBranches:
    """
    Branches the environment of a ``SubprocVecEnv`` worker, called there through ``env_method``.

    :param codecs: codecs registered in the main process
    """

    def __init__(self, codecs: CloudpickleWrapper) -> None:
        self._codecs = codecs
        self._brancher: LocalBrancher | None = None

    def __call__(self, actions: np.ndarray | None) -> BranchOutcome | tuple[type[HybridGRPOError], str] | None:
        """
        Set up without actions, branch with them.

        :param actions: [1, n, \\*action_shape]
        :return: the outcome, or what was raised: an exception would end the worker
        """
        try:
            if actions is None or self._brancher is None:
                # The one caller is SB3's worker loop, and it offers no other way to its environment.
                env = sys._getframe(1).f_locals["env"]
                for cls, codec in self._codecs.var.items():
                    register_codec(cls, codec)
                self._brancher = LocalBrancher([env])
                return None
            return self._brancher.branch(actions)
        except HybridGRPOError as error:
            return type(error), str(error)
        except Exception:
            return BranchError, traceback.format_exc()


register_builtin(_WorkerBranches, CONSTANT)


class _SubprocBrancher:
    """Sends each worker its actions, then collects the outcomes: the workers branch at the same time."""

    def __init__(self, venv: SubprocVecEnv) -> None:
        self._remotes = venv.remotes
        venv.set_attr(_WORKER_ATTRIBUTE, _WorkerBranches(CloudpickleWrapper(user_codecs())))
        self._call([None] * venv.num_envs)

    def branch(self, actions: np.ndarray) -> BranchOutcome:
        outcomes = self._call([env_actions[None] for env_actions in actions])
        observations, rewards, terminated, truncated = zip(*outcomes, strict=True)
        return BranchOutcome(
            _concatenate(observations), np.concatenate(rewards), np.concatenate(terminated), np.concatenate(truncated)
        )

    def _call(self, arguments: list[np.ndarray | None]) -> list[BranchOutcome]:
        for remote, argument in zip(self._remotes, arguments, strict=True):
            remote.send(("env_method", (_WORKER_ATTRIBUTE, (argument,), {})))
        answers = [remote.recv() for remote in self._remotes]
        for env_idx, answer in enumerate(answers):
            if answer is not None and not isinstance(answer, BranchOutcome):
                error_class, message = answer
                raise error_class(f"In the worker process of environment {env_idx}: {message}")
        return answers


def _concatenate(parts: Sequence[Observations]) -> Observations:
    first = parts[0]
    if isinstance(first, dict):
        return {key: np.concatenate([part[key] for part in parts]) for key in first}  # type: ignore[index,call-overload]
    if isinstance(first, tuple):
        return tuple(np.concatenate(part) for part in zip(*parts, strict=True))
    return np.concatenate(parts)  # type: ignore[arg-type]


def _branch_simulators(venv: VecEnv) -> Any:
    if type(venv).step_wait is DummyVecEnv.step_wait and isinstance(venv, DummyVecEnv):
        return _DummyBrancher(venv.envs)
    if type(venv).step_wait is SubprocVecEnv.step_wait and isinstance(venv, SubprocVecEnv):
        return _SubprocBrancher(venv)
    raise UnbranchableEnvError(
        f"{type(venv).__name__} is neither SB3's DummyVecEnv nor its SubprocVecEnv (or changes how they step), so its "
        "environments cannot be reached for branching.\n"
        "Ways out: (1) build the environment with stable_baselines3.common.env_util.make_vec_env; (2) pass a brancher of "
        "your own, brancher=lambda venv: MyBrancher(venv); (3) train without branching, with n_samples=1."
    )
