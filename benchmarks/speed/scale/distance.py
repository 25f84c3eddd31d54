"""Workers that are as far away as one likes."""

import time
from collections.abc import Callable, Sequence
from multiprocessing.connection import wait
from multiprocessing.reduction import ForkingPickler
from typing import Any

import gymnasium as gym
from stable_baselines3.common.vec_env.base_vec_env import CloudpickleWrapper

from sb3_hybrid_grpo import GroupedSubprocVecEnv
from sb3_hybrid_grpo.branching.vec_env.workers.processes import ProcessTransport
from sb3_hybrid_grpo.branching.vec_env.workers.transport import Transport


class DistantTransport(ProcessTransport):
    """
    Processes whose answers arrive late, and what goes to them and comes back. Its arguments are those of ``ProcessTransport``.

    An answer can be had when a round trip has passed since the worker gave it: what a worker does takes its time as well.
    """

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.round_trip = 0.0
        self.n_messages = 0
        self.n_bytes = 0
        self.n_round_trips = 0
        self.seconds_on_the_way = 0.0
        self._has_asked = False
        self._awaited: set[int] = set()
        self._arrivals: dict[int, float] = {}

    def _post(self, worker: int, method: str, *arguments: Any) -> None:
        message = ForkingPickler.dumps((method, arguments))
        self.n_messages += 1
        self.n_bytes += len(message)
        self._pipes[worker].send_bytes(message)
        self._awaited.add(worker)
        self._has_asked = True

    def _fetch(self, worker: int, timeout: float | None) -> Any:
        # Workers that were asked together are waited for together.
        self.n_round_trips += self._has_asked
        self._has_asked = False
        if self.round_trip:
            self._travel(worker, timeout)
        self._awaited.discard(worker)
        pipe = self._pipes[worker]
        if timeout is not None and not pipe.poll(timeout):
            raise TimeoutError
        answer = pipe.recv_bytes()
        self.n_bytes += len(answer)
        return ForkingPickler.loads(answer)

    def _travel(self, worker: int, timeout: float | None) -> None:
        """Wait as long as the answer of a worker would be on the way; those of the others are meanwhile, too."""
        while worker not in self._arrivals:
            pipes = {self._pipes[other]: other for other in self._awaited - {*self._arrivals}}
            arrived = wait([*pipes], timeout)
            if not arrived:
                raise TimeoutError
            self._arrivals |= {pipes[pipe]: time.perf_counter() for pipe in arrived}  # type: ignore[index]
        start = time.perf_counter()
        time.sleep(max(self._arrivals.pop(worker) + self.round_trip - start, 0))
        self.seconds_on_the_way += time.perf_counter() - start


class DistantVecEnv(GroupedSubprocVecEnv):
    """
    A ``GroupedSubprocVecEnv`` without shared memory, as between machines.

    :param env_fns: functions that make the environments
    :param n_workers: number of processes
    """

    transport: DistantTransport

    def __init__(self, env_fns: Sequence[Callable[[], gym.Env[Any, Any]]], n_workers: int) -> None:
        super().__init__(env_fns, n_workers)

    def _connect(
        self, env_fns: Sequence[CloudpickleWrapper], groups: Sequence[range], timeout: float | None
    ) -> tuple[Transport, bool]:
        return DistantTransport(env_fns, groups, timeout), False
