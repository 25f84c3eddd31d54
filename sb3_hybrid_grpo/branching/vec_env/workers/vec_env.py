"""A vectorised environment whose environments live in workers, several in each."""

import weakref
from abc import abstractmethod
from collections import OrderedDict, deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from itertools import chain
from typing import Any

import gymnasium as gym
import numpy as np
from stable_baselines3.common.vec_env import VecEnv
from stable_baselines3.common.vec_env.base_vec_env import CloudpickleWrapper, VecEnvIndices, VecEnvObs, VecEnvStepReturn
from stable_baselines3.common.vec_env.util import dict_to_obs

from sb3_hybrid_grpo.branching.vec_env.workers.ids import ids_of_this_process
from sb3_hybrid_grpo.branching.vec_env.workers.observations import ObservationArrays, SharedObservations, can_share
from sb3_hybrid_grpo.branching.vec_env.workers.team import Team
from sb3_hybrid_grpo.branching.vec_env.workers.transport import Transport
from sb3_hybrid_grpo.branching.vec_env.workers.worker import OF_ENVIRONMENTS, STEP, Introduction, Stepped
from sb3_hybrid_grpo.common import InvalidArgumentError, check_positive_integer, warn

_SECONDS_TO_CLOSE = 5.0


class WorkersVecEnv(VecEnv):
    """
    What vectorised environments of workers have in common: all but the way to the workers.

    Observations, rewards and infos are those of a ``DummyVecEnv`` of the same environments, bit for bit.

    :param env_fns: functions that make the environments
    :param n_workers: number of workers; they get as many environments each, or one more
    :param timeout: seconds after which a worker that does not answer is given up; ``None`` to wait forever
    :param restart_workers: whether ``HybridGRPO`` and ``GRPO`` start the rollout again, with new workers, when one is lost
    :raises InvalidArgumentError: if an argument has a value that cannot work
    """

    def __init__(
        self,
        env_fns: Sequence[Callable[[], gym.Env[Any, Any]]],
        n_workers: int,
        timeout: float | None = None,
        restart_workers: bool = False,
    ) -> None:
        if not env_fns:
            raise InvalidArgumentError("env_fns is empty: pass a function that makes an environment for each of them.")
        check_positive_integer("n_workers", n_workers)
        if timeout is not None and not timeout > 0:
            raise InvalidArgumentError(f"timeout must be a number of seconds above 0, or None, not {timeout!r}.")
        self._env_fns = [*env_fns]
        n_workers = min(n_workers, len(env_fns))
        self._groups = [range(part[0], part[-1] + 1) for part in np.array_split(np.arange(len(env_fns)), n_workers)]
        self._places = [(worker, idx) for worker, group in enumerate(self._groups) for idx in range(len(group))]
        self._timeout = timeout
        self.restart_workers = restart_workers
        self.waiting = False
        self._first_seed: int | None = None
        self._n_restarts = 0
        introduction = self._start(len(env_fns))
        super().__init__(len(env_fns), introduction.observation_space, introduction.action_space)
        self.metadata = introduction.metadata

    @abstractmethod
    def _connect(
        self, env_fns: Sequence[CloudpickleWrapper], groups: Sequence[range], timeout: float | None
    ) -> tuple[Transport, bool]:
        """
        Start workers.

        :param env_fns: the functions that make the environments of each worker
        :param groups: the environments of each worker
        :param timeout: seconds after which a worker that does not answer is lost
        :return: the way to them, and whether they can share memory with this process
        """

    def _start(self, n_envs: int) -> Introduction:
        """Start workers, and have them make their environments."""
        env_fns = [CloudpickleWrapper([self._env_fns[idx] for idx in group]) for group in self._groups]
        self.transport, is_here = self._connect(env_fns, self._groups, self._timeout)
        self._team = Team(self.transport, "in a step of the vectorised environment")
        self._shared: SharedObservations | None = None
        self._recorded: deque[tuple[Stepped, ...]] = deque()
        try:
            introduction: Introduction = self._team.broadcast("introduce", ids_of_this_process())[0]
            if is_here and can_share(introduction.observation_space):
                self._shared = SharedObservations(introduction.observation_space, n_envs)
                self._call("write_into", [(self._shared.name, n_envs, group.start) for group in self._groups])
        except BaseException:
            _release(self.transport, self._shared)
            raise
        self._release = weakref.finalize(self, _release, self.transport, self._shared)
        return introduction

    @property
    def is_lost(self) -> bool:
        """Whether the workers have been ended because one of them was lost."""
        return self.transport.is_ended

    def restart(self) -> None:
        """
        End all workers and start new ones, with new environments.

        They have their original attributes, and seeds that no environment had before if there were seeds.
        """
        self._release()
        self.waiting = False
        self._n_restarts += 1
        self._start(self.num_envs)
        if self._first_seed is not None:
            first_seed = self._first_seed
            self.seed(first_seed + self._n_restarts * self.num_envs)
            self._first_seed = first_seed

    def play_back(self, recorded: Sequence[Sequence[Stepped]]) -> None:
        """
        Return steps that have been taken already when steps are asked for, until none is left or ``reset``.

        :param recorded: steps of each worker
        """
        self._recorded = deque(zip(*recorded, strict=True))

    def seed(self, seed: int | None = None) -> Sequence[int | None]:
        """
        Set the seeds of the next reset.

        :param seed: seed of the first environment, the others have the following ones; a random one if ``None``
        :return: the seeds
        """
        seeds = super().seed(seed)
        self._first_seed = seeds[0]
        return seeds

    def reset(self) -> VecEnvObs:
        """
        Start an episode in all environments.

        :return: its observations
        """
        self._recorded.clear()
        answers = self._call(
            "start_episodes",
            [(self._seeds[group.start : group.stop], self._options[group.start : group.stop]) for group in self._groups],
        )
        observations, reset_infos = zip(*answers, strict=True)
        self.reset_infos = [*chain(*reset_infos)]
        self._reset_seeds()
        self._reset_options()
        return self._joined(observations)

    def step_async(self, actions: np.ndarray) -> None:
        """
        Ask workers for a step.

        :param actions: an action for each environment
        """
        if not self._recorded:
            self._team.send(STEP, [(actions[group.start : group.stop],) for group in self._groups])
        self.waiting = True

    def step_wait(self) -> VecEnvStepReturn:
        """
        Wait for the step.

        :return: observations, rewards, ends of episodes and infos
        """
        try:
            answers: Sequence[Stepped] = self._recorded.popleft() if self._recorded else self._team.receive()
        finally:
            self.waiting = False
        for group, stepped in zip(self._groups, answers, strict=True):
            for idx, info in stepped.reset_infos.items():
                self.reset_infos[group[idx]] = info
        observations, rewards, dones, infos, _ = zip(*answers, strict=True)
        return self._joined(observations), np.concatenate(rewards), np.concatenate(dones), [*chain(*infos)]

    def close(self) -> None:
        """Close the environments and end the workers."""
        if not self._release.alive:
            return
        with suppress(Exception):
            if self.waiting:
                self.step_wait()
            self._team = Team(self.transport, "when it was closed", _SECONDS_TO_CLOSE)
            self._call("leave")
        self._release()

    def get_images(self) -> Sequence[np.ndarray | None]:
        """
        Render the environments.

        :return: an image of each
        """
        if self.render_mode != "rgb_array":
            warn(f"The render mode is {self.render_mode}, but this method assumes it is `rgb_array` to obtain images.")
            return [None for _ in range(self.num_envs)]
        return [*chain(*self._call("render_all"))]

    def has_attr(self, attr_name: str) -> bool:
        """
        Tell whether all environments have an attribute.

        :param attr_name: its name
        :return: whether they have it
        """
        return all(self._call("has", [(attr_name,)] * len(self._groups)))

    def get_attr(self, attr_name: str, indices: VecEnvIndices = None) -> list[Any]:
        """
        Return an attribute of environments.

        :param attr_name: its name
        :param indices: which environments
        :return: its values
        """
        return self._call_some("get_attr", indices, attr_name)

    def set_attr(self, attr_name: str, value: Any, indices: VecEnvIndices = None) -> None:
        """
        Set an attribute of environments.

        :param attr_name: its name
        :param value: its value
        :param indices: which environments
        """
        self._call_some("put_attr", indices, attr_name, value)

    def env_method(
        self, method_name: str, *method_args: Any, indices: VecEnvIndices = None, **method_kwargs: Any
    ) -> list[Any]:
        """
        Call a method of environments.

        :param method_name: its name
        :param method_args: its arguments
        :param indices: which environments
        :param method_kwargs: its keyword arguments
        :return: the results
        """
        return self._call_some("call", indices, method_name, method_args, method_kwargs)

    def env_is_wrapped(
        self, wrapper_class: type[gym.Wrapper[Any, Any, Any, Any]], indices: VecEnvIndices = None
    ) -> list[bool]:
        """
        Tell whether environments are in a wrapper.

        :param wrapper_class: class of the wrapper
        :param indices: which environments
        :return: whether they are
        """
        return self._call_some("env_is_wrapped", indices, wrapper_class)

    def _call(self, method: str, arguments: Sequence[tuple[Any, ...]] | None = None) -> list[Any]:
        return self._team.call(f"{OF_ENVIRONMENTS}{method}", arguments)

    def _call_some(self, method: str, indices: VecEnvIndices, *arguments: Any) -> list[Any]:
        """Call a method with the indices, in each worker, of some environments, and return a result for each of these."""
        places = [self._places[idx] for idx in self._get_indices(indices)]
        rows: dict[int, list[int]] = {}
        for worker, idx in places:
            rows.setdefault(worker, []).append(idx)
        calls = {worker: (*arguments, row) for worker, row in rows.items()}
        results = {
            worker: iter(answer) for worker, answer in self._team.call_some(f"{OF_ENVIRONMENTS}{method}", calls).items()
        }
        return [next(results[worker]) for worker, _ in places]

    def _joined(self, parts: Sequence[ObservationArrays | None]) -> VecEnvObs:
        """Put the observations of all workers together, in arrays that the caller may write into."""
        sent = [part for part in parts if part is not None]
        if sent:
            arrays = OrderedDict((key, np.concatenate([part[key] for part in sent])) for key in sent[0])
        else:
            assert self._shared is not None
            arrays = OrderedDict((key, array.copy()) for key, array in self._shared.arrays.items())
        return dict_to_obs(self.observation_space, arrays)


def _release(transport: Transport, shared: SharedObservations | None) -> None:
    transport.kill()
    if shared is not None:
        shared.close()
