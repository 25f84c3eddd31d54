"""
What a committed step of HybridGRPO costs on 64 functional environments: beside PPO on the same, and beside HybridGRPO on the
same task as a Gymnasium environment.

    python -m benchmarks.speed.functional_costs
    python -m benchmarks.speed.functional_costs --report
"""

import argparse
import os
import time
from collections import defaultdict
from collections.abc import Callable, Mapping
from pathlib import Path
from statistics import median
from typing import Any

os.environ.setdefault("XLA_FLAGS", "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1")

import torch as th
from stable_baselines3 import PPO
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import VecEnv

from benchmarks.learning.budgeted.tasks import minatar  # noqa: F401  registers its environments
from benchmarks.provenance import provenance
from sb3_hybrid_grpo import FunctionalVecEnv, HybridGRPO
from sb3_hybrid_grpo.compare.csv_files import append_row, read_rows

ROWS = Path(__file__).parents[1] / "results" / "functional_costs.csv"
N_ENVS = 64
HORIZON = 8
TASKS: Mapping[str, tuple[str, int]] = {
    "gymnax:CartPole-v1": ("CartPole-v1", 2),
    "gymnax:Acrobot-v1": ("Acrobot-v1", 3),
    "gymnax:Breakout-MinAtar": ("MinAtarFlat/breakout-v0", 3),
}
"""For each task: the same one of Gymnasium, and how many actions it has. All of them are branched."""
SETTINGS: Mapping[str, Mapping[str, Any]] = {
    "SB3's defaults": {"n_steps": 32},
    "large minibatches": {"n_steps": 32, "batch_size": 256, "n_epochs": 4},
    "PureJaxRL's minibatches": {"n_steps": 32, "batch_size": 1024, "n_epochs": 4},
}
WAYS = ("ppo, functional", "hybrid_grpo, functional", "hybrid_grpo, Gymnasium")


def make_model(way: str, env_id: str, settings: Mapping[str, Any]) -> BaseAlgorithm:
    """
    Make a model with environments of its own.

    :param way: one of ``WAYS``
    :param env_id: one of ``TASKS``
    :param settings: arguments of the algorithm
    :return: the model
    """
    algorithm, _, library = way.partition(", ")
    gym_id, n_actions = TASKS[env_id]
    make: Callable[[], VecEnv] = lambda: FunctionalVecEnv(env_id, N_ENVS, seed=0)  # noqa: E731
    env = make() if library == "functional" else make_vec_env(gym_id, N_ENVS, seed=0)
    if algorithm == "ppo":
        return PPO("MlpPolicy", env, seed=0, device="cpu", **settings)
    return HybridGRPO("MlpPolicy", env, seed=0, device="cpu", n_samples=n_actions, branch_horizon=HORIZON, **settings)


def measure(env_id: str, name: str, n_turns: int) -> None:
    """
    Time rollouts with their updates, all ways in turn.

    :param env_id: one of ``TASKS``
    :param name: one of ``SETTINGS``
    :param n_turns: number of rollouts of each way
    """
    settings = SETTINGS[name]
    n_steps = settings["n_steps"] * N_ENVS
    models = {way: make_model(way, env_id, settings).learn(2 * n_steps) for way in WAYS}
    for turn in range(n_turns):
        for way, model in models.items():
            wall, processor = time.perf_counter(), time.process_time()
            model.learn(n_steps, reset_num_timesteps=False)
            times = time.perf_counter() - wall, time.process_time() - processor
            microseconds = [round(1e6 * seconds / n_steps, 2) for seconds in times]
            row = {"env": env_id, "settings": name, "way": way, "turn": turn, "wall_us": microseconds[0]}
            append_row(ROWS, {**row, "processor_us": microseconds[1], **provenance()})
            print(*row.values(), flush=True)


def report() -> None:
    """Print the table of the documentation."""
    times: dict[tuple[str, str], dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for row in read_rows(ROWS):
        times[row["env"], row["settings"]][row["way"]].append(float(row["wall_us"]))
    print(
        "| task | settings | PPO, µs per step | HybridGRPO | HybridGRPO / PPO | HybridGRPO on Gymnasium | that / functional |"
    )
    print("|---|---|---|---|---|---|---|")
    for (env_id, name), by_way in times.items():
        ppo, ours, on_gym = (median(by_way[way]) for way in WAYS)
        print(f"| {env_id} | {name} | {ppo:.0f} | {ours:.0f} | {ours / ppo:.2f} | {on_gym:.0f} | {on_gym / ours:.1f} |")


def main() -> None:
    """Measure, or report."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--report", action="store_true")
    options = parser.parse_args()
    th.set_num_threads(1)
    if not options.report:
        done = {(row["env"], row["settings"]) for row in read_rows(ROWS)}
        for env_id in TASKS:
            for name in SETTINGS:
                if (env_id, name) not in done:
                    measure(env_id, name, options.turns)
    report()


if __name__ == "__main__":
    main()
