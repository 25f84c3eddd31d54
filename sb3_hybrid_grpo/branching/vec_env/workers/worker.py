"""What a worker of our own is: its environments, and a dispatcher that branches them."""

import pickle
import traceback
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.vec_env import DummyVecEnv
from stable_baselines3.common.vec_env.base_vec_env import CloudpickleWrapper, VecEnvObs
from stable_baselines3.common.vec_env.util import dict_to_obs

from sb3_hybrid_grpo.branching.vec_env.views import VecWrapperView, see
from sb3_hybrid_grpo.branching.vec_env.workers.dispatcher import Dispatcher, Raised, Task
from sb3_hybrid_grpo.branching.vec_env.workers.ids import register_ids
from sb3_hybrid_grpo.branching.vec_env.workers.observations import ObservationArrays, SharedObservations
from sb3_hybrid_grpo.common import BranchError, BranchOutcome, BranchStep, Collector, HybridGRPOError

OF_ENVIRONMENTS = "envs."
STEP = f"{OF_ENVIRONMENTS}take_step"
BOTH = "both"


class Introduction(NamedTuple):
    """
    What a worker says when it has made its environments.

    :param observation_space: observation space of the first environment
    :param action_space: action space of the first environment
    :param metadata: metadata of the first environment
    """

    observation_space: spaces.Space[Any]
    action_space: spaces.Space[Any]
    metadata: dict[str, Any]


class Stepped(NamedTuple):
    """
    What a step of a worker's environments led to.

    :param observations: observations, unless they are in shared memory
    :param rewards: rewards, [environments]
    :param dones: whether episodes ended, [environments]
    :param infos: infos of the environments
    :param reset_infos: infos of the resets of those whose episodes ended, by number
    """

    observations: ObservationArrays | None
    rewards: np.ndarray
    dones: np.ndarray
    infos: list[dict[str, Any]]
    reset_infos: dict[int, dict[str, Any]]


class Failed(NamedTuple):
    """
    An exception of an environment, to be raised in the main process.

    :param error: the exception
    :param trace: where it was raised
    """

    error: Exception
    trace: str

    @classmethod
    def of(cls, error: Exception) -> "Failed":
        """Pack the exception that is being handled."""
        trace = traceback.format_exc()
        try:
            pickle.loads(pickle.dumps(error))
        except Exception:
            error = RuntimeError(f"{type(error).__name__}: {error}")
        return cls(error, trace)


class _Environments(DummyVecEnv):
    """The environments of a worker, stepped one after the other as in every ``DummyVecEnv``."""

    _shared: SharedObservations | None = None

    def write_into(self, name: str, n_envs: int, first: int) -> None:
        """
        Write observations into shared memory from now on.

        :param name: name of the shared memory
        :param n_envs: number of all environments
        :param first: number of the first environment of this worker
        """
        self._shared = SharedObservations(self.observation_space, n_envs, name)
        self.buf_obs.update({key: array[first : first + self.num_envs] for key, array in self._shared.arrays.items()})

    def start_episodes(
        self, seeds: list[int | None], options: list[dict[str, Any]]
    ) -> tuple[ObservationArrays | None, list[dict[str, Any]]]:
        """
        Reset all environments.

        :param seeds: their seeds
        :param options: their options
        :return: observations, unless they are in shared memory, and infos
        """
        self._seeds, self._options = seeds, options
        self.reset()
        return self._sent_observations(), self.reset_infos

    def take_step(self, actions: np.ndarray) -> Stepped:
        """
        Step all environments.

        :param actions: an action for each
        :return: what it led to
        """
        self.actions = actions
        _, rewards, dones, infos = self.step_wait()
        reset_infos = {idx: self.reset_infos[idx] for idx in map(int, np.flatnonzero(dones))}
        return Stepped(self._sent_observations(), rewards, dones, infos, reset_infos)

    def call(self, method: str, arguments: tuple[Any, ...], kwargs: dict[str, Any], indices: list[int]) -> list[Any]:
        """
        Call a method of some environments.

        :param method: its name
        :param arguments: its arguments
        :param kwargs: its keyword arguments
        :param indices: which environments
        :return: the results
        """
        return self.env_method(method, *arguments, indices=indices, **kwargs)

    def put_attr(self, name: str, value: Any, indices: list[int]) -> list[None]:
        """
        Set an attribute of some environments.

        :param name: its name
        :param value: its value
        :param indices: which environments
        :return: nothing of each
        """
        self.set_attr(name, value, indices)
        return [None for _ in indices]

    def has(self, name: str) -> bool:
        """
        Tell whether all environments have an attribute, which need not travel.

        :param name: its name
        :return: whether they have it
        """
        return self.has_attr(name)

    def render_all(self) -> list[Any]:
        """
        Render all environments.

        :return: what they return
        """
        return [env.render() for env in self.envs]

    def leave(self) -> None:
        """Close all environments."""
        self.close()
        if self._shared is not None:
            self.buf_obs.clear()
            self._shared.close()

    def _sent_observations(self) -> ObservationArrays | None:
        return self.buf_obs if self._shared is None else None

    def _obs_from_buf(self) -> VecEnvObs:
        """Return nothing: the buffers themselves are sent, or are where the main process reads them."""
        return ()


class _Residence:
    """
    The environments of a worker, see ``WorkerEnvs``.

    :param environments: these
    :param dispatcher: branches them
    :param version: number of the lesson to follow branches with
    :param views: what vectorised wrappers do to the outcomes
    """

    def __init__(
        self, environments: _Environments, dispatcher: Dispatcher, version: int, views: Sequence[VecWrapperView]
    ) -> None:
        self._environments = environments
        self._dispatcher = dispatcher
        self._version = version
        self._views = [*views]

    def remember(self) -> None:
        if any(self._call("remember")):
            raise BranchError(
                "An environment, or a wrapper of it, was exchanged while the worker collected a rollout, which takes the main "
                "process to look at the new one: use rollout_in_workers=False."
            )

    def forget(self) -> None:
        self._call("catch_up")
        self._call("remembered.forget")

    def follow(
        self, actions: np.ndarray, alive: np.ndarray, noise: Sequence[np.ndarray], from_kept: bool = False
    ) -> BranchStep:
        stacked = np.stack(noise) if noise else np.empty((0, len(actions)))
        task = Task(self._version, actions, alive, stacked, self._views)
        steps: BranchStep = self._call("follow_remembered" if from_kept else "follow", task)
        return steps

    def _call(self, method: str, *arguments: Any) -> Any:
        answer = self._dispatcher(method, *arguments)
        if isinstance(answer, Raised):
            raise answer.error_class(answer.message)
        return answer

    def step(self, actions: np.ndarray) -> tuple[Stepped, BranchOutcome]:
        stepped = self._environments.take_step(actions)
        # The next step overwrites the buffers.
        arrays = OrderedDict((key, array.copy()) for key, array in self._environments.buf_obs.items())
        observations: Any = dict_to_obs(
            self._environments.observation_space, OrderedDict((key, array[:, None]) for key, array in arrays.items())
        )
        ends = stepped.dones[:, None]
        seen = see(BranchOutcome(observations, stepped.rewards[:, None], ends, np.zeros_like(ends)), (), self._views)
        return stepped._replace(observations=arrays), seen


class Worker:
    """
    Makes environments, and answers what the main process asks of them.

    :param env_fns: functions that make the environments
    """

    def __init__(self, env_fns: CloudpickleWrapper) -> None:
        self._env_fns = env_fns
        self._environments: _Environments
        self._dispatcher: Dispatcher

    def answer(self, method: str, *arguments: Any) -> Any:
        """
        Answer a call.

        :param method: ``"introduce"``; ``"collect"``; ``BOTH`` for two calls; the name of a method of the environments, after
            ``OF_ENVIRONMENTS``; or one of the dispatcher's
        :param arguments: its arguments
        :return: its result; ``Raised`` or ``Failed`` if it raised
        """
        if method == BOTH:
            return tuple(self.answer(*call) for call in arguments)
        try:
            if method in ("introduce", "collect"):
                return getattr(self, method)(*arguments)
            name = method.removeprefix(OF_ENVIRONMENTS)
            if name == method:
                return self._dispatcher(method, *arguments)
            return getattr(self._environments, name)(*arguments)
        except Exception as error:
            return Failed.of(error)

    def introduce(self, ids: Mapping[str, bytes]) -> Introduction:
        """
        Make the environments.

        :param ids: what the main process has registered in Gymnasium
        :return: what there is to know of them
        """
        # Its siblings have the other cores.
        th.set_num_threads(1)
        register_ids(ids)
        env_fns: Sequence[Callable[[], gym.Env[Any, Any]]] = self._env_fns.var
        self._environments = _Environments([*env_fns])
        self._dispatcher = Dispatcher(self._environments)
        environments = self._environments
        return Introduction(environments.observation_space, environments.action_space, environments.metadata)

    def collect(self, collector: bytes, version: int, views: Sequence[VecWrapperView], rows: slice, *share: Any) -> Any:
        """
        Collect a whole rollout.

        :param collector: a ``Collector`` in a ``CloudpickleWrapper``, pickled
        :param version: number of the lesson to follow branches with
        :param views: what vectorised wrappers do to the outcomes
        :param rows: which environments are here
        :param share: what else the collector is given
        :return: what it returns, or ``Raised``
        """
        collect: Collector = pickle.loads(collector).var
        try:
            return collect(_Residence(self._environments, self._dispatcher, version, views), rows, *share)
        except HybridGRPOError as error:
            return Raised(type(error), str(error))
