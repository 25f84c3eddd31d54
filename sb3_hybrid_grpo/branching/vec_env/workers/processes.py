"""Workers that are processes of this machine."""

import multiprocessing as mp
import os
import signal
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import gymnasium as gym
from stable_baselines3.common.vec_env.base_vec_env import CloudpickleWrapper

from sb3_hybrid_grpo.branching.vec_env.workers.own import OwnTransport
from sb3_hybrid_grpo.branching.vec_env.workers.transport import Transport
from sb3_hybrid_grpo.branching.vec_env.workers.vec_env import WorkersVecEnv
from sb3_hybrid_grpo.branching.vec_env.workers.worker import Failed, Worker

_LAST_MOMENTS = 0.1
_SECONDS_TO_END = 1.0


class GroupedSubprocVecEnv(WorkersVecEnv):
    """
    Environments in processes, several in each, for ``HybridGRPO``, PPO and all other algorithms of SB3.

    Observations travel through shared memory.

    :param env_fns: functions that make the environments
    :param n_workers: number of processes, one per physical core by default, and never more than environments
    :param start_method: how processes start, as in ``SubprocVecEnv``: ``"forkserver"`` by default, else ``"spawn"``
    :param timeout: seconds after which a process that does not answer is given up; ``None`` to wait forever
    :param restart_workers: whether ``HybridGRPO`` and ``GRPO`` start the rollout again, with new processes, when one is lost
    :raises InvalidArgumentError: if an argument has a value that cannot work
    """

    def __init__(
        self,
        env_fns: Sequence[Callable[[], gym.Env[Any, Any]]],
        n_workers: int | None = None,
        start_method: str | None = None,
        timeout: float | None = None,
        restart_workers: bool = False,
    ) -> None:
        self._start_method = start_method
        super().__init__(env_fns, n_physical_cores() if n_workers is None else n_workers, timeout, restart_workers)

    def _connect(
        self, env_fns: Sequence[CloudpickleWrapper], groups: Sequence[range], timeout: float | None
    ) -> tuple[Transport, bool]:
        return ProcessTransport(env_fns, groups, timeout, self._start_method), True


class ProcessTransport(OwnTransport):
    """
    Processes and the pipes to them.

    :param env_fns: the functions that make the environments of each
    :param groups: the environments of each
    :param timeout: seconds after which one that does not answer is lost
    :param start_method: how processes start
    """

    def __init__(
        self,
        env_fns: Sequence[CloudpickleWrapper],
        groups: Sequence[range],
        timeout: float | None = None,
        start_method: str | None = None,
    ) -> None:
        super().__init__(groups, timeout)
        if start_method is None:
            start_method = "forkserver" if "forkserver" in mp.get_all_start_methods() else "spawn"
        if hasattr(os, "fork"):
            # Workers that are forked before would each have a tracker that ends the shared memory with them.
            resource_tracker.ensure_running()
        context: Any = mp.get_context(start_method)
        self.processes: list[Any] = []
        self._pipes: list[Connection] = []
        for worker_fns in env_fns:
            here, there = context.Pipe()
            process = context.Process(target=_serve, args=(there, here, worker_fns), daemon=True)
            process.start()
            there.close()
            self.processes.append(process)
            self._pipes.append(here)

    def _post(self, worker: int, method: str, *arguments: Any) -> None:
        self._pipes[worker].send((method, arguments))

    def _fetch(self, worker: int, timeout: float | None) -> Any:
        pipe = self._pipes[worker]
        if timeout is not None and not pipe.poll(timeout):
            raise TimeoutError
        return pipe.recv()

    def kill(self) -> None:
        """End all workers, see ``Transport``. Those that are not busy end by themselves."""
        for pipe in self._pipes:
            pipe.close()
        end = time.monotonic() + _SECONDS_TO_END
        for process in self.processes:
            process.join(max(end - time.monotonic(), 0))
            process.kill()
            process.join()

    def find_lost(self) -> set[int]:
        """Look for processes that have ended, see ``Transport``."""
        for process in self.processes:
            process.join(_LAST_MOMENTS)
        return {worker for worker, process in enumerate(self.processes) if process.exitcode is not None}

    def describe(self, worker: int) -> str:
        """Name the process of a worker, see ``Transport``."""
        process = self.processes[worker]
        return f"process {process.pid}" + ("" if process.exitcode is None else f", exit code {process.exitcode}")


def _serve(pipe: Connection, other_end: Connection, env_fns: CloudpickleWrapper) -> None:
    """Answer the main process until it closes the pipe, or ends."""
    other_end.close()
    # Ctrl-C is for the main process, which decides about the others.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    worker = Worker(env_fns)
    with suppress(EOFError, OSError):
        while True:
            try:
                method, arguments = pipe.recv()
                pipe.send(worker.answer(method, *arguments))
            except (EOFError, OSError):
                raise
            except Exception as error:
                # It cannot be pickled, or not be unpickled.
                pipe.send(Failed.of(error))


def n_physical_cores() -> int:
    """
    Count the cores that this process may use.

    :return: their number, without those that are threads of others, where that is known
    """
    if not hasattr(os, "sched_getaffinity"):
        return os.cpu_count() or 1
    logical = os.sched_getaffinity(0)
    siblings = {Path(f"/sys/devices/system/cpu/cpu{core}/topology/thread_siblings_list") for core in logical}
    with suppress(OSError):
        return len({path.read_text() for path in siblings})
    return len(logical)
