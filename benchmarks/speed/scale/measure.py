"""Rollouts and updates with workers at several distances."""

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from stable_baselines3.common.env_util import make_vec_env

from benchmarks.learning.budgeted.tasks.minigrid import make as make_minigrid
from benchmarks.provenance import provenance
from benchmarks.speed.scale.distance import DistantVecEnv
from benchmarks.speed.workers import DOOR_KEY, cpu_seconds
from sb3_hybrid_grpo import HybridGRPO
from sb3_hybrid_grpo.compare.csv_files import append_row, read_rows

TASKS = ("Humanoid-v5", DOOR_KEY)
ECHO = "echo"
"""In place of a task: messages alone."""
N_STEPS = 64
_CARGO = (0, 10_000, 100_000, 1_000_000)
_N_ECHOES = 200
_FEWEST_STEPS = 256


class Update(NamedTuple):
    """
    How a rollout is learnt from.

    :param batch_size: number of states in a minibatch
    :param n_epochs: number of epochs
    """

    batch_size: int
    n_epochs: int


DEFAULT, LARGE = Update(64, 10), Update(256, 4)


class Case(NamedTuple):
    """
    What is measured.

    :param round_trip: seconds that a message and its answer are on the way
    :param update: how rollouts are learnt from
    """

    round_trip: float
    update: Update = DEFAULT


CASES = (*(Case(milliseconds / 1000) for milliseconds in (0, 0.1, 0.5, 2, 10)), Case(0.0, LARGE))


class Stopwatch:
    """Adds up the processor time of this process in calls of a function."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self.seconds = 0.0
        self._function = function

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Call it."""
        start = time.process_time()
        try:
            return self._function(*args, **kwargs)
        finally:
            self.seconds += time.process_time() - start


class Meter:
    """
    What is spent and sent from its creation on.

    :param venv: environments in workers
    """

    def __init__(self, venv: DistantVecEnv) -> None:
        self._venv = venv
        self._start = self._totals()

    def read(self) -> dict[str, float]:
        """Return the differences since then, as columns of a row."""
        return {name: total - self._start[name] for name, total in self._totals().items()}

    def _totals(self) -> dict[str, float]:
        transport = self._venv.transport
        return {
            "messages": transport.n_messages,
            "bytes": transport.n_bytes,
            "round_trips": transport.n_round_trips,
            "wall_seconds": time.perf_counter(),
            "on_the_way_seconds": transport.seconds_on_the_way,
            "main_seconds": time.process_time(),
            "workers_seconds": sum(cpu_seconds(process.pid) for process in transport.processes),
        }


class Collector:
    """
    Learns with environments in workers, all of which are K=8 and N=2.

    :param env_id: one of ``TASKS``
    :param n_workers: number of workers
    :param envs_per_worker: number of environments in each
    """

    def __init__(self, env_id: str, n_workers: int, envs_per_worker: int) -> None:
        self.n_envs = n_workers * envs_per_worker
        task = env_id.removeprefix("MiniGridFlat/")
        make: Any = env_id if task == env_id else lambda: make_minigrid(task)
        self.venv = make_distant(make, self.n_envs, n_workers)
        self._model = HybridGRPO("MlpPolicy", self.venv, n_steps=N_STEPS, seed=0, device="cpu", n_samples=2, branch_horizon=8)
        self._updating = Stopwatch(self._model.train)
        self._model.train = self._updating  # type: ignore[method-assign]

    def collect(self, case: Case) -> dict[str, float]:
        """
        Collect rollouts and learn from them.

        :param case: how
        :return: what there was of everything, and the seconds that it took
        """
        n_rollouts = math.ceil(_FEWEST_STEPS / (N_STEPS * self.n_envs))
        n_committed = n_rollouts * N_STEPS * self.n_envs
        self.venv.transport.round_trip = case.round_trip
        self._model.batch_size, self._model.n_epochs = case.update
        n_minibatches = n_rollouts * case.update.n_epochs * math.ceil(N_STEPS * self.n_envs / case.update.batch_size)
        self._updating.seconds = 0.0
        meter = Meter(self.venv)
        self._model.learn(n_committed, reset_num_timesteps=False)
        measured = meter.read()
        return {
            "macro_steps": n_rollouts * N_STEPS,
            "committed_steps": n_committed,
            "minibatches": n_minibatches,
            "rows": n_committed * case.update.n_epochs,
            **measured,
            "updating_seconds": self._updating.seconds,
            "committed_steps_per_second": n_committed / measured["wall_seconds"],
        }


def make_distant(env: Any, n_envs: int, n_workers: int) -> DistantVecEnv:
    """
    Make environments in distant workers, as ``make_parallel_env`` makes them in others.

    :param env: id of the environment, or a function that makes it
    :param n_envs: number of environments
    :param n_workers: number of workers
    :return: the vectorised environment
    """
    kwargs = {"n_workers": n_workers}
    venv = make_vec_env(env, n_envs, seed=0, vec_env_cls=DistantVecEnv, vec_env_kwargs=kwargs)  # type: ignore[arg-type]
    assert isinstance(venv, DistantVecEnv)
    return venv


@contextmanager
def closing(collector: Collector) -> Iterator[Collector]:
    """
    Close the environments of a collector in the end.

    :param collector: it
    """
    try:
        yield collector
    finally:
        collector.venv.close()


class Rows:
    """
    The rows of a file, to which those that are missing are added.

    :param path: a CSV file
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._done = {self._key(row) for row in read_rows(path)}

    @staticmethod
    def _key(row: dict[str, Any]) -> tuple[str, ...]:
        return tuple(str(row[name]) for name in ("environment", "workers", "envs_per_worker", *Case._fields, "round"))

    def lacks(self, setting: dict[str, Any]) -> bool:
        """
        Tell whether something has not been measured.

        :param setting: what
        """
        return self._key(setting) not in self._done

    def add(self, setting: dict[str, Any], measured: dict[str, float]) -> None:
        """
        Add a row.

        :param setting: what was measured
        :param measured: the result
        """
        append_row(self._path, {**setting, **{name: rounded(value) for name, value in measured.items()}, **provenance()})


def rounded(value: float) -> str:
    """Write a number, without digits that say nothing."""
    return str(value) if isinstance(value, int) else f"{value:.6g}"


def setting_of(env_id: str, workers: int, envs_per_worker: int, case: Case, number: int) -> dict[str, Any]:
    """Return the columns that tell a row from others."""
    where = {"environment": env_id, "workers": workers, "envs_per_worker": envs_per_worker}
    return {**where, "round_trip": case.round_trip, "update": "{}x{}".format(*case.update), "round": number}


def measure(path: Path, env_id: str, workers: int, envs_per_worker: int, n_rounds: int) -> None:
    """
    Measure all cases with some workers, in turns.

    :param path: file of rows
    :param env_id: one of ``TASKS``
    :param workers: number of workers
    :param envs_per_worker: number of environments in each
    :param n_rounds: how many times
    """
    rows = Rows(path)
    cases = [(case, setting_of(env_id, workers, envs_per_worker, case, n)) for n in range(n_rounds) for case in CASES]
    missing = [(case, setting) for case, setting in cases if rows.lacks(setting)]
    if not missing:
        return
    with closing(Collector(env_id, workers, envs_per_worker)) as collector:
        collector.collect(CASES[0])
        for case, setting in missing:
            rows.add(setting, collector.collect(case))


def measure_messages(path: Path, n_rounds: int) -> None:
    """
    Measure messages of several sizes, which say nothing.

    :param path: file of rows
    :param n_rounds: how many times
    """
    rows = Rows(path)
    sizes = [(size, setting_of(ECHO, 1, size, CASES[0], n)) for n in range(n_rounds) for size in _CARGO]
    missing = [(size, setting) for size, setting in sizes if rows.lacks(setting)]
    if not missing:
        return
    venv = make_distant("CartPole-v1", 1, 1)
    for size, setting in missing:
        cargo = np.zeros(size, np.uint8)
        meter = Meter(venv)
        for _ in range(_N_ECHOES):
            venv.set_attr("cargo", cargo)
            venv.get_attr("cargo")
        nothing = dict.fromkeys(("macro_steps", "committed_steps", "minibatches", "rows"), 0)
        rows.add(setting, {**nothing, **meter.read(), "updating_seconds": 0, "committed_steps_per_second": 0})
    venv.close()
