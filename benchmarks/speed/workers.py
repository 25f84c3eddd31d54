"""
Rollouts of HybridGRPO with environments in workers beside those in the main process.

    python -m benchmarks.speed.workers [--envs Humanoid-v5 --vec-envs dummy subproc --rounds 5]
    python -m benchmarks.speed.workers --envs Humanoid-v5 --vec-envs grouped ray --n-envs 8 --n-workers 2 --ray-nodes 3

For each environment a model with each kind of vectorised environment is made, and they collect rollouts in turns: what
disturbs the machine disturbs all of them. Prints the fastest and the median rollout of each, its speed relative to the first
kind (median over rounds), and the seconds of processor time per rollout: where these are shared by several cores, and others
use the cores as well, wall-clock says little. A row per rollout goes to ``benchmarks/results/workers.csv``.
"""

import argparse
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any

from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv, VecEnv

from benchmarks import HERE
from benchmarks.learning.budgeted.tasks.minigrid import make as make_minigrid
from benchmarks.provenance import provenance
from benchmarks.tables import print_aligned
from sb3_hybrid_grpo import GroupedSubprocVecEnv, HybridGRPO, RayVecEnv
from sb3_hybrid_grpo.compare.csv_files import append_row

RESULTS = HERE / "results" / "workers.csv"
DOOR_KEY = "MiniGridFlat/DoorKey-5x5-v0"
VEC_ENVS: dict[str, type[VecEnv]] = {
    "dummy": DummyVecEnv,
    "subproc": SubprocVecEnv,
    "grouped": GroupedSubprocVecEnv,
    "ray": RayVecEnv,
}
_OF_OUR_OWN = ("grouped", "ray")


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """
    Read the command line.

    :param argv: its arguments, those of the process if ``None``
    :return: the options
    """
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--envs", nargs="+", default=[DOOR_KEY, "Humanoid-v5"])
    parser.add_argument("--vec-envs", nargs="+", choices=VEC_ENVS, default=["dummy", "subproc"])
    parser.add_argument("--n-envs", type=int, default=2)
    parser.add_argument("--n-workers", type=int, help="workers of grouped and ray, by default one per core")
    parser.add_argument("--ray-nodes", type=int, help="start a cluster of as many nodes on this machine")
    parser.add_argument("--n-steps", type=int, default=256, help="macro-steps per environment and rollout")
    parser.add_argument("--n-samples", type=int, default=2)
    parser.add_argument("--branch-horizon", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--output", type=Path, default=RESULTS, help="CSV file of rows")
    return parser.parse_args(argv)


class Collector:
    """
    Collects rollouts with one kind of vectorised environment, without updates.

    :param env_id: id of the environment
    :param name: name in ``VEC_ENVS``
    :param options: the command line's options
    """

    def __init__(self, env_id: str, name: str, options: argparse.Namespace) -> None:
        task = env_id.removeprefix("MiniGridFlat/")
        env: Any = env_id if task == env_id else lambda: make_minigrid(task)
        kwargs = {"n_workers": options.n_workers} if name in _OF_OUR_OWN else {}
        self.venv = make_vec_env(env, options.n_envs, seed=0, vec_env_cls=VEC_ENVS[name], vec_env_kwargs=kwargs)
        n_steps = options.n_steps
        self._model = HybridGRPO(
            "MlpPolicy",
            self.venv,
            n_steps=n_steps,
            batch_size=n_steps,
            seed=0,
            device="cpu",
            n_samples=options.n_samples,
            branch_horizon=options.branch_horizon,
        )
        self._model.train = lambda: None  # type: ignore[method-assign]
        self._n_committed = n_steps * options.n_envs

    def collect(self) -> dict[str, float]:
        """
        Collect a rollout.

        :return: committed steps per second, seconds of processor time of main process and workers, and memory of workers
        """
        holder: Any = self.venv.transport if isinstance(self.venv, GroupedSubprocVecEnv) else self.venv
        processes = [process.pid for process in getattr(holder, "processes", [])]
        cpu, workers_cpu, start = time.process_time(), sum(map(cpu_seconds, processes)), time.perf_counter()
        self._model.learn(self._n_committed, reset_num_timesteps=False)
        seconds = time.perf_counter() - start
        return {
            "committed_steps_per_second": self._n_committed / seconds,
            "main_cpu_seconds": time.process_time() - cpu,
            "workers_cpu_seconds": sum(map(cpu_seconds, processes)) - workers_cpu,
            "workers_megabytes": sum(map(megabytes, processes)),
        }


def cpu_seconds(process: int) -> float:
    """
    Look up how much processor time a process has had.

    :param process: its id
    :return: seconds; 0 where there is no ``/proc``
    """
    path = Path(f"/proc/{process}/stat")
    if not path.exists():
        return 0.0
    fields = path.read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def megabytes(process: int) -> float:
    """
    Look up how much memory a process has.

    :param process: its id
    :return: megabytes, of pages that several processes share its part; 0 where there is no ``/proc``
    """
    path = Path(f"/proc/{process}/smaps_rollup")
    if not path.exists():
        return 0.0
    proportional = next(line for line in path.read_text().splitlines() if line.startswith("Pss:"))
    return int(proportional.split()[1]) / 1024


@contextmanager
def cluster(n_nodes: int | None) -> Iterator[None]:
    """
    Have a cluster of Ray on this machine.

    :param n_nodes: number of its nodes; none is started if ``None``
    """
    if n_nodes is None:
        yield
        return
    # By default actors have a niceness of 15, and starve where others use the cores.
    os.environ["RAY_worker_niceness"] = "0"
    import ray
    from ray.cluster_utils import Cluster

    node = {"num_cpus": 2, "object_store_memory": 80_000_000}
    nodes = Cluster(initialize_head=True, head_node_args={**node, "include_dashboard": False})
    for _ in range(n_nodes - 1):
        nodes.add_node(**node)
    ray.init(address=nodes.address, log_to_driver=False)
    try:
        yield
    finally:
        ray.shutdown()
        nodes.shutdown()


def main(argv: Sequence[str] | None = None) -> None:
    """
    Measure on the machine, or on a cluster of it.

    :param argv: arguments of the command line
    """
    options, origin = parse(argv), provenance()
    with cluster(options.ray_nodes):
        measure(options, origin)


def measure(options: argparse.Namespace, origin: dict[str, Any]) -> None:
    """
    Measure, print and write the rows.

    :param options: the command line's options
    :param origin: what every row says of the machine and the versions
    """
    table = [
        ("environment", "vec_env", "best steps/s", "median steps/s", "ratio", "main CPU s", "workers CPU s", "workers MB")
    ]
    for env_id in options.envs:
        collectors = {name: Collector(env_id, name, options) for name in options.vec_envs}
        for collector in collectors.values():
            collector.collect()
        rounds: dict[str, list[dict[str, float]]] = {name: [] for name in collectors}
        for number in range(options.rounds):
            order = list(collectors) if number % 2 == 0 else list(reversed(collectors))
            for name in order:
                measured = collectors[name].collect()
                rounds[name].append(measured)
                setting = {
                    key: getattr(options, key) for key in ("n_envs", "n_workers", "n_steps", "n_samples", "branch_horizon")
                }
                row = {"environment": env_id, "vec_env": name, **setting, "round": number, **measured}
                append_row(options.output, row | origin)
        reference = [measured["committed_steps_per_second"] for measured in rounds[options.vec_envs[0]]]
        for name, results in rounds.items():
            speeds = [measured["committed_steps_per_second"] for measured in results]
            ratio = median(speed / other for speed, other in zip(speeds, reference, strict=True))
            cpu = [median(measured[key] for measured in results) for key in ("main_cpu_seconds", "workers_cpu_seconds")]
            memory = f"{results[-1]['workers_megabytes']:.0f}"
            numbers = (f"{max(speeds):.0f}", f"{median(speeds):.0f}", f"{ratio:.2f}", *(f"{each:.2f}" for each in cpu), memory)
            table.append((env_id, name, *numbers))
        for collector in collectors.values():
            collector.venv.close()
    print_aligned(table)


if __name__ == "__main__":
    main()
