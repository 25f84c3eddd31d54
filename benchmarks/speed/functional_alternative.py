"""
Is a branch worth a further environment? HybridGRPO with 64 functional environments, PPO with as many as HybridGRPO has
rows (1 + (N-1) K times 64), and PPO with 64, at equal processor time and with equally many minibatches.

``python -m benchmarks.speed.functional_alternative FOLDER`` goes on where it was stopped; ``--report`` prints the table.
"""

import argparse
import os
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

os.environ.setdefault("XLA_FLAGS", "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1")
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(Path.home() / ".cache" / "jax_compilation_cache"))

import numpy as np
import torch as th
from stable_baselines3 import PPO
from stable_baselines3.common.callbacks import BaseCallback

from sb3_hybrid_grpo import FunctionalVecEnv, HybridGRPO
from sb3_hybrid_grpo.compare.csv_files import read_rows, write_rows

HORIZON = 8
N_ENVS = 64
N_STEPS = 32
MINIBATCHES = 8
N_SAMPLES = {"gymnax:CartPole-v1": 2, "gymnax:Acrobot-v1": 3, "gymnax:Breakout-MinAtar": 3}
SETTINGS: dict[str, Any] = {"n_steps": N_STEPS, "n_epochs": 10, "gamma": 0.99, "gae_lambda": 0.95, "learning_rate": 1e-3}
ALGOS = ("hybrid_grpo", "ppo_more_envs", "ppo")
COLUMNS = ("env", "algo", "n_envs", "seed", "seconds", "steps", "return")
N_POINTS = 20


class Curve(BaseCallback):
    """Keeps mean returns of the episodes of late, by processor time, and stops in time."""

    def __init__(self, seconds: float) -> None:
        super().__init__()
        self.points: list[tuple[float, int, float]] = []
        self._seconds = seconds
        self._start = 0.0

    def _on_training_start(self) -> None:
        self._start = time.process_time()

    def _on_step(self) -> bool:
        return time.process_time() - self._start < self._seconds

    def _on_rollout_end(self) -> None:
        seconds = time.process_time() - self._start
        if self.model.ep_info_buffer and seconds > self._seconds * (len(self.points) + 1) / N_POINTS:
            mean = float(np.mean([episode["r"] for episode in self.model.ep_info_buffer]))
            self.points.append((round(seconds, 2), self.num_timesteps, round(mean, 3)))


def train(env_id: str, algo: str, seed: int, seconds: float) -> list[tuple[Any, ...]]:
    n_envs = N_ENVS * (1 + (N_SAMPLES[env_id] - 1) * HORIZON) if algo == "ppo_more_envs" else N_ENVS
    settings = {**SETTINGS, "batch_size": N_STEPS * n_envs // MINIBATCHES, "seed": seed, "device": "cpu"}
    if algo == "hybrid_grpo":
        settings |= {"n_samples": N_SAMPLES[env_id], "branch_horizon": HORIZON}

    def make() -> Any:
        # With the same class's compilations out of the cache.
        venv = FunctionalVecEnv(env_id, n_envs, seed=seed)
        return (HybridGRPO if algo == "hybrid_grpo" else PPO)("MlpPolicy", venv, **settings)

    make().learn(n_envs * N_STEPS)
    curve = Curve(seconds)
    make().learn(10**10, callback=curve)
    return [(env_id, algo, n_envs, seed, *point) for point in curve.points]


def report(path: Path) -> None:
    """Print mean returns of all seeds after each quarter of the time."""
    curves = defaultdict(list)
    for row in read_rows(path):
        run = row["env"], row["algo"], int(row["n_envs"]), row["seed"]
        curves[run].append((float(row["seconds"]), float(row["return"])))
    by_algo = defaultdict(list)
    for (env, algo, n_envs, _), points in curves.items():
        last = max(seconds for seconds, _ in points)
        quarters = [last * share for share in (0.25, 0.5, 0.75, 1.0)]
        by_algo[env, algo, n_envs].append([min(points, key=lambda point: abs(point[0] - at))[1] for at in quarters])
    print("| task | algorithm | environments | seeds | after 1/4, 1/2, 3/4 and all of the time | all seeds at the end |")
    print("|---|---|---|---|---|---|")
    for (env, algo, n_envs), quarters in sorted(by_algo.items()):
        means = ", ".join(f"{mean:.1f}" for mean in np.mean(quarters, axis=0))
        ends = ", ".join(f"{quarter[-1]:.1f}" for quarter in quarters)
        print(f"| {env} | {algo} | {n_envs} | {len(quarters)} | {means} | {ends} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--runs", type=int, default=10**6, help="stop after so many")
    parser.add_argument("--report", action="store_true")
    options = parser.parse_args()
    path = options.folder / "functional_alternative.csv"
    if options.report:
        report(path)
        return
    th.set_num_threads(1)
    rows = read_rows(path)
    done = {(row["env"], row["algo"], int(row["seed"])) for row in rows}
    runs = [(env_id, algo, seed) for seed in range(options.seeds) for env_id in N_SAMPLES for algo in ALGOS]
    for run in [run for run in runs if run not in done][: options.runs]:
        points = train(*run, options.seconds)
        # Whole runs at a time: one that was killed begins anew.
        rows += [dict(zip(COLUMNS, map(str, point), strict=True)) for point in points]
        write_rows(path, COLUMNS, rows)
        print(*points[-1], flush=True)


if __name__ == "__main__":
    main()
