"""
Functional environments on a GPU: what a committed step costs beside PPO's, how exact branches are, and what ``brax:ant``
learns in equal time. ``python -m benchmarks.speed.functional_gpu FOLDER`` goes on where it was stopped.
"""

import argparse
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

# Else JAX takes three quarters of the memory at once, and PyTorch needs some.
os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", "/tmp/jax_compilation_cache")

import numpy as np
import torch as th
from stable_baselines3 import PPO
from stable_baselines3.common.callbacks import BaseCallback

from sb3_hybrid_grpo import FunctionalVecEnv, HybridGRPO
from sb3_hybrid_grpo.branching import make_brancher
from sb3_hybrid_grpo.compare.csv_files import append_row, read_rows

HORIZON = 8
N_SAMPLES = {"gymnax:CartPole-v1": 2, "gymnax:Acrobot-v1": 3, "gymnax:Breakout-MinAtar": 3, "brax:ant/spring": 2}
SETTINGS: dict[str, Any] = {"n_steps": 32, "n_epochs": 4, "gamma": 0.97, "learning_rate": 3e-4, "ent_coef": 0.0}
MINIBATCHES = 8
LEARNING = "brax:ant/spring"


class Row(NamedTuple):
    experiment: str
    env: str
    algo: str
    n_envs: int
    seed: int
    quantity: str
    seconds: float
    value: float


class Rows:
    """The rows of a CSV file, each of which is written as soon as it is known."""

    def __init__(self, path: Path, deadline: float) -> None:
        self.path = path
        self.deadline = deadline
        self.done = {(row["experiment"], row["env"], row["algo"], row["seed"]) for row in read_rows(path)}

    def write(self, *rows: Row) -> None:
        for row in rows:
            append_row(self.path, row._asdict())
            print(*row, flush=True)

    def wants(self, experiment: str, env: str, algo: str, seed: int, seconds: float) -> bool:
        """Whether something is still to be done, and there is time for it."""
        if (experiment, env, algo, str(seed)) in self.done:
            return False
        if time.monotonic() + seconds < self.deadline:
            return True
        print("no time for", experiment, env, algo, seed, flush=True)
        return False


def make_model(algo: str, env_id: str, n_envs: int, seed: int, device: str) -> Any:
    """Make a model on a vectorised environment of its own."""
    venv = FunctionalVecEnv(env_id, n_envs, seed=seed, device=device)
    batch_size = SETTINGS["n_steps"] * n_envs // MINIBATCHES
    common = {**SETTINGS, "batch_size": batch_size, "device": device, "seed": seed, "stats_window_size": 4 * n_envs}
    if algo == "ppo":
        return PPO("MlpPolicy", venv, **common)
    return HybridGRPO("MlpPolicy", venv, n_samples=N_SAMPLES[env_id], branch_horizon=HORIZON, **common)


def speed(rows: Rows, env_id: str, n_envs: int, device: str, n_pairs: int) -> None:
    """Time rollouts with their updates, the algorithms in turn."""
    if not rows.wants("speed", env_id, "hybrid_grpo", 0, 60):
        return
    models, n_steps = {}, SETTINGS["n_steps"] * n_envs
    for algo in ("ppo", "hybrid_grpo"):
        start = time.perf_counter()
        models[algo] = make_model(algo, env_id, n_envs, 0, device).learn(n_steps)
        rows.write(Row("set-up", env_id, algo, n_envs, 0, "seconds", round(time.perf_counter() - start, 2), 0))
    for pair in range(n_pairs):
        for algo, model in models.items():
            start = time.perf_counter()
            model.learn(n_steps, reset_num_timesteps=False)
            if device == "cuda":
                th.cuda.synchronize()
            seconds = time.perf_counter() - start
            rows.write(
                Row("speed", env_id, algo, n_envs, pair, "µs per step", round(seconds, 4), round(1e6 * seconds / n_steps, 4))
            )


def laws(rows: Rows, env_id: str, n_envs: int, device: str) -> None:
    """Compare branches of committed actions with the committed trajectory: largest difference of an observation."""
    if not rows.wants("laws", env_id, "hybrid_grpo", 0, 40):
        return
    start = time.perf_counter()
    venv = FunctionalVecEnv(env_id, n_envs, seed=0, device=device)
    brancher: Any = make_brancher("auto", venv)
    n_steps = 4
    actions = np.stack([[venv.action_space.sample() for _ in range(n_envs)] for _ in range(n_steps)])
    alive = np.ones((n_envs, 1), dtype=bool)
    outcome = brancher.open(th.as_tensor(actions[0], device=device)[:, None], th.as_tensor(alive, device=device), n_steps)
    assert outcome.observations.device.type == device, "branches must not leave the device"
    branched = [outcome.observations[:, 0].cpu().numpy()]
    for step in range(1, n_steps):
        outcome = brancher.advance(th.as_tensor(actions[step], device=device)[:, None], th.as_tensor(alive, device=device))
        branched.append(outcome.observations[:, 0].cpu().numpy())
    largest = 0.0
    for step in range(n_steps):
        obs, _, dones, _ = venv.step(actions[step])
        if dones.any():
            break
        largest = max(largest, float(np.abs(obs - branched[step]).max()))
    seconds = round(time.perf_counter() - start, 2)
    rows.write(Row("laws", env_id, "hybrid_grpo", n_envs, 0, "largest difference", seconds, largest))


class Curve(BaseCallback):
    """Writes the mean return of the episodes that have ended lately, and stops in time."""

    def __init__(self, write: Callable[[float, float], None], seconds: float) -> None:
        super().__init__()
        self._write = write
        self._seconds = seconds
        self._start = 0.0

    def _on_training_start(self) -> None:
        self._start = time.perf_counter()

    def _on_step(self) -> bool:
        return time.perf_counter() - self._start < self._seconds

    def _on_rollout_end(self) -> None:
        episodes = self.model.ep_info_buffer
        if episodes:
            self._write(time.perf_counter() - self._start, float(np.mean([episode["r"] for episode in episodes])))


def learning(rows: Rows, algo: str, n_envs: int, seed: int, device: str, seconds: float) -> None:
    """Train for some seconds, compilation excluded."""
    if not rows.wants("learning", LEARNING, algo, seed, seconds + 45):
        return
    # What is compiled in the first rollout comes out of the cache in the second model.
    make_model(algo, LEARNING, n_envs, seed, device).learn(SETTINGS["n_steps"] * n_envs)
    model = make_model(algo, LEARNING, n_envs, seed, device)
    model.learn(SETTINGS["n_steps"] * n_envs)
    curve: list[Row] = []

    def write(at: float, mean: float) -> None:
        steps_per_env = model.num_timesteps // n_envs
        curve.append(
            Row("learning", LEARNING, algo, n_envs, seed, f"return after {steps_per_env}", round(at, 2), round(mean, 2))
        )

    model.learn(10**10, callback=Curve(write, seconds), reset_num_timesteps=False)
    every = max(1, len(curve) // 40)
    rows.write(*curve[:-1:every], curve[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--n-envs", type=int, default=4096)
    parser.add_argument("--seconds", type=float, default=450, help="start nothing that would end later")
    parser.add_argument("--learning-seconds", type=float, default=40)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument("--envs", nargs="+", default=[LEARNING, *(env_id for env_id in N_SAMPLES if env_id != LEARNING)])
    options = parser.parse_args()
    rows = Rows(options.folder / "functional_gpu.csv", time.monotonic() + options.seconds)
    for env_id in options.envs:
        speed(rows, env_id, options.n_envs, options.device, options.pairs)
    times = 1 + (N_SAMPLES[LEARNING] - 1) * HORIZON
    for seed in range(options.seeds if LEARNING in options.envs else 0):
        learning(rows, "hybrid_grpo", options.n_envs, seed, options.device, options.learning_seconds)
        learning(rows, "ppo", times * options.n_envs, seed, options.device, options.learning_seconds)
    for env_id in options.envs:
        laws(rows, env_id, options.n_envs, options.device)


if __name__ == "__main__":
    main()
