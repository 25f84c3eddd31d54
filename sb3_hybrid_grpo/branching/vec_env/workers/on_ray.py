"""Workers that are actors of Ray, on this machine or on the nodes of a cluster."""

import os
import pickle
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from itertools import chain
from typing import Any

import gymnasium as gym
from stable_baselines3.common.vec_env.base_vec_env import CloudpickleWrapper

from sb3_hybrid_grpo.branching.vec_env.workers.own import OwnTransport
from sb3_hybrid_grpo.branching.vec_env.workers.transport import Transport
from sb3_hybrid_grpo.branching.vec_env.workers.vec_env import WorkersVecEnv
from sb3_hybrid_grpo.branching.vec_env.workers.worker import Failed, Worker
from sb3_hybrid_grpo.common import MissingExtraError, WorkerLostError

_LAST_MOMENTS = 5.0
_START_TIMEOUT = 180.0


class RayVecEnv(WorkersVecEnv):
    """
    Environments in actors of Ray, several in each, for ``HybridGRPO``, PPO and all other algorithms of SB3.

    Actors are spread over the nodes of the cluster that this process is connected to. If there is none, ``ray.init()``
    connects it to the one that ``RAY_ADDRESS`` names or that runs on this machine, or starts one here.

    :param env_fns: functions that make the environments, shipped by cloudpickle as what is registered in Gymnasium: what they
        import must be installed on all nodes
    :param n_workers: number of actors, by default one for each CPU of the cluster, and never more than environments
    :param ray_options: options of the actors, such as ``num_cpus``, ``resources`` or ``runtime_env``
    :param timeout: seconds after which an actor that does not answer is given up; ``None`` to wait forever
    :param restart_workers: whether ``HybridGRPO`` and ``GRPO`` start the rollout again, with new actors, when one is lost
    :param start_timeout: seconds after which actors that have not started are given up
    :raises MissingExtraError: if Ray is not installed
    :raises WorkerLostError: if the cluster has no room for all actors
    :raises InvalidArgumentError: if an argument has a value that cannot work
    """

    def __init__(
        self,
        env_fns: Sequence[Callable[[], gym.Env[Any, Any]]],
        n_workers: int | None = None,
        ray_options: Mapping[str, Any] | None = None,
        timeout: float | None = None,
        restart_workers: bool = False,
        start_timeout: float = _START_TIMEOUT,
    ) -> None:
        ray = import_ray()
        if not ray.is_initialized():
            ray.init(log_to_driver=False)
        self._ray_options = {"num_cpus": 1, **(ray_options or {})}
        self._start_timeout = start_timeout
        if n_workers is None:
            n_workers = max(int(ray.cluster_resources().get("CPU", 1)), 1)
        super().__init__(env_fns, n_workers, timeout, restart_workers)

    def _connect(
        self, env_fns: Sequence[CloudpickleWrapper], groups: Sequence[range], timeout: float | None
    ) -> tuple[Transport, bool]:
        return RayTransport(env_fns, groups, timeout, self._ray_options, self._start_timeout), False


class RayTransport(OwnTransport):
    """
    Actors, and the answers that they owe.

    :param env_fns: the functions that make the environments of each
    :param groups: the environments of each
    :param timeout: seconds after which one that does not answer is lost
    :param options: options of the actors
    :param start_timeout: seconds after which actors that have not started are given up
    :raises WorkerLostError: if the cluster has no room for all actors
    """

    def __init__(
        self,
        env_fns: Sequence[CloudpickleWrapper],
        groups: Sequence[range],
        timeout: float | None,
        options: Mapping[str, Any],
        start_timeout: float = _START_TIMEOUT,
    ) -> None:
        super().__init__(groups, timeout)
        self._ray = import_ray()
        actor_class = self._ray.remote(_Actor).options(**{"scheduling_strategy": "SPREAD", **options})
        self.actors = [actor_class.remote(worker_fns) for worker_fns in env_fns]
        self._owed: list[deque[Any]] = [deque() for _ in self.actors]
        self._shared = _Shared(None)
        self._whereabouts = ["not started"] * len(self.actors)
        self._await_start(options, start_timeout)

    def _await_start(self, options: Mapping[str, Any], seconds: float) -> None:
        asked = [actor.whereabouts.remote() for actor in self.actors]
        started, missing = self._ray.wait(asked, num_returns=len(asked), timeout=seconds)
        try:
            self._whereabouts = self._ray.get(asked) if not missing else self._whereabouts
        except self._ray.exceptions.RayError as error:
            self.kill()
            raise WorkerLostError(f"An actor of Ray could not start: {error}") from error
        if missing:
            n_nodes, n_cpus = len(self._alive_nodes()), self._ray.cluster_resources().get("CPU", 0)
            self.kill()
            raise WorkerLostError(
                f"Ray started {len(started)} of {len(asked)} actors in start_timeout={seconds} s. Each asks for {options} "
                f"and the cluster has {n_cpus:g} CPUs on {n_nodes} nodes, some of which others may use. Ask for fewer workers "
                "(n_workers) with more environments each, for less (ray_options), or add nodes."
            )

    def _post(self, worker: int, method: str, *arguments: Any) -> None:
        if not self.actors:
            raise ConnectionError("the actors have been ended")
        packed = [part.reference if isinstance(part, _Shared) else _pack(part) for part in arguments]
        with self._room():
            self._owed[worker].append(self.actors[worker].answer_packed.remote(method, *packed))

    def _fetch(self, worker: int, timeout: float | None) -> Any:
        if not self._owed[worker]:
            raise ConnectionError("the actors have been ended")
        answer = self._owed[worker][0]
        try:
            result = self._ray.get(answer, timeout=timeout)
        except self._ray.exceptions.GetTimeoutError as error:
            raise TimeoutError from error
        except self._ray.exceptions.RayError as error:
            raise ConnectionError(str(error)) from error
        self._owed[worker].popleft()
        return pickle.loads(result).var

    def kill(self) -> None:
        """End all actors, see ``Transport``."""
        for actor in self.actors:
            with suppress(Exception):
                self._ray.kill(actor)
        self.actors = []
        # What the frames of an exception still know of would stay in the object store as long as the exception.
        self._shared.reference = None
        with suppress(Exception):
            from ray._private.internal_api import free

            free([*chain(*self._owed)])
        for owed in self._owed:
            owed.clear()

    def find_lost(self) -> set[int]:
        """Look for actors that have ended, see ``Transport``: those that are busy do not answer, nor do they raise."""
        asked = {actor.whereabouts.remote(): worker for worker, actor in enumerate(self.actors)}
        answered, _ = self._ray.wait([*asked], num_returns=len(asked), timeout=_LAST_MOMENTS) if asked else ([], [])
        return {asked[answer] for answer in answered if self._is_error(answer)}

    def _is_error(self, answer: Any) -> bool:
        try:
            self._ray.get(answer)
        except self._ray.exceptions.RayError:
            return True
        return False

    def describe(self, worker: int) -> str:
        """Name the process and the node of an actor, see ``Transport``."""
        whereabouts = self._whereabouts[worker]
        is_alive = any(whereabouts.endswith(f" {node}") for node in self._alive_nodes())
        return whereabouts if is_alive else f"{whereabouts}, which is dead"

    def share(self, value: Any) -> Any:
        """Put a value into the object store once, see ``Transport``."""
        with self._room():
            self._shared = _Shared(self._ray.put(_pack(value)))
        return self._shared

    @contextmanager
    def _room(self) -> Iterator[None]:
        """Say what is wrong if there is none in the object store."""
        try:
            yield
        except (self._ray.exceptions.ObjectStoreFullError, self._ray.exceptions.OutOfDiskError) as error:
            raise MemoryError(f"The object store of Ray is full: {error}") from error

    def _alive_nodes(self) -> list[str]:
        return [node["NodeID"] for node in self._ray.nodes() if node["Alive"]]


class _Shared:
    """
    What ``RayTransport.share`` hands out, so that there is one place that keeps it in the object store.

    :param reference: Ray's reference to it
    """

    def __init__(self, reference: Any) -> None:
        self.reference = reference


class _Actor(Worker):
    """A worker that knows its node, and whose answers are packed: arrays that Ray itself unpacks cannot be written into."""

    def answer_packed(self, method: str, *arguments: bytes) -> bytes:
        """
        Answer a call.

        :param method: see ``Worker.answer``
        :param arguments: its arguments, packed
        :return: the answer, packed
        """
        try:
            return _pack(self.answer(method, *(pickle.loads(part).var for part in arguments)))
        except Exception as error:
            # It cannot be pickled, or not be unpickled.
            return _pack(Failed.of(error))

    def whereabouts(self) -> str:
        """
        Say where this is.

        :return: its process and node
        """
        ray = import_ray()
        node = ray.get_runtime_context().get_node_id()
        return f"process {os.getpid()} on {ray.util.get_node_ip_address()}, node {node}"


def _pack(value: Any) -> bytes:
    return pickle.dumps(CloudpickleWrapper(value))


def import_ray() -> Any:
    """
    Import Ray, which is used by those alone who ask for it.

    :return: the package
    :raises MissingExtraError: if it is not installed
    """
    try:
        import ray
    except ImportError as error:
        raise MissingExtraError(
            'RayVecEnv and engine="ray" need Ray, which is not installed: pip install "sb3-hybrid-grpo[ray]"'
        ) from error
    return ray
