"""The workers of SB3's ``SubprocVecEnv``, reached through what its own loop answers."""

import sys
from types import SimpleNamespace
from typing import Any

from stable_baselines3.common.vec_env import SubprocVecEnv

from sb3_hybrid_grpo.branching.snapshots import CONSTANT, register_builtin
from sb3_hybrid_grpo.branching.vec_env.workers.dispatcher import Dispatcher
from sb3_hybrid_grpo.branching.vec_env.workers.transport import Transport

_WORKER_ATTRIBUTE = "sb3_hybrid_grpo_branches"
_LAST_MOMENTS = 0.1


class StockTransport(Transport):
    """
    The pipes of a ``SubprocVecEnv``: a call is an ``env_method`` of an attribute that its environments get.

    :param venv: the vectorised environment
    """

    def __init__(self, venv: SubprocVecEnv) -> None:
        super().__init__([range(env_idx, env_idx + 1) for env_idx in range(venv.num_envs)])
        self._venv = venv
        venv.set_attr(_WORKER_ATTRIBUTE, _StockDispatcher())

    def send(self, worker: int, method: str, *arguments: Any) -> None:
        """Call a method in a worker, see ``Transport``."""
        self._venv.remotes[worker].send(("env_method", (_WORKER_ATTRIBUTE, (method, *arguments), {})))

    def receive(self, worker: int, timeout: float | None = None) -> Any:
        """Wait for an answer, see ``Transport``."""
        remote = self._venv.remotes[worker]
        if timeout is not None and not remote.poll(timeout):
            raise TimeoutError
        return remote.recv()

    def kill(self) -> None:
        """End all workers, see ``Transport``."""
        for process, remote in zip(self._venv.processes, self._venv.remotes, strict=True):
            process.kill()
            process.join()
            remote.close()
        self._venv.closed = True

    def is_lost(self, worker: int) -> bool:
        """Tell whether a worker has ended, see ``Transport``."""
        process = self._venv.processes[worker]
        process.join(timeout=_LAST_MOMENTS)
        return process.exitcode is not None

    def describe(self, worker: int) -> str:
        """Name the process of a worker, see ``Transport``."""
        process = self._venv.processes[worker]
        return f"process {process.pid}" + ("" if process.exitcode is None else f", exit code {process.exitcode}")


class _StockDispatcher(Dispatcher):
    """A dispatcher that takes its environment from the loop of SB3's worker."""

    def __init__(self) -> None:
        super().__init__(SimpleNamespace(envs=[]))

    def __call__(self, method: str, *arguments: Any) -> Any:
        """Call a method, see ``Dispatcher``."""
        if not self._holder.envs:
            # The one caller is SB3's worker loop, and it offers no other way to its environment.
            self._holder = SimpleNamespace(envs=[sys._getframe(1).f_locals["env"]])
        return super().__call__(method, *arguments)


register_builtin(_StockDispatcher, CONSTANT)
