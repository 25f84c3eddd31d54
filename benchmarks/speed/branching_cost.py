"""
What a branch step costs, as a multiple of the same environment's own step.

    python -m benchmarks.speed.branching_cost

In alternation, from the same states: N branches of one step, and the committed ``env.step``, both with the caches of a
processor that did something else in between (it sampled actions). A row per environment goes to
``benchmarks/results/branching_cost.csv``; the ratio is (time of the branches / N) / (time of the step), of medians.
"""

import argparse
import contextlib
import time

import gymnasium as gym
import numpy as np
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import SubprocVecEnv

from benchmarks import HERE
from benchmarks.provenance import provenance
from sb3_hybrid_grpo.branching import make_brancher
from sb3_hybrid_grpo.compare.csv_files import write_rows

RESULTS = HERE / "results" / "branching_cost.csv"
MUJOCO = (
    "Ant HalfCheetah Hopper Humanoid HumanoidStandup InvertedDoublePendulum InvertedPendulum Pusher Reacher Swimmer Walker2d"
)
ENVIRONMENTS = {f"{name}-v5": 1.25 for name in MUJOCO.split()} | {"CartPole-v1": 2.5, "Pendulum-v1": 2.5, "ALE/Pong-v5": 1.25}


with contextlib.suppress(ImportError):
    import ale_py

    gym.register_envs(ale_py)


def time_branches(env_id: str, n_branches: int, n_states: int) -> tuple[float, float]:
    """
    Time branches and steps in alternation.

    :param env_id: the environment
    :param n_branches: number N of branches per state
    :param n_states: number of states
    :return: median seconds of N branches, and of one step
    """
    vec_env = make_vec_env(env_id, seed=0)
    brancher = make_brancher("auto", vec_env)
    env, alive = vec_env.envs[0], np.ones((1, n_branches), dtype=bool)
    vec_env.reset()
    vec_env.action_space.seed(0)
    seconds = []
    for _ in range(n_states):
        actions = np.array([[vec_env.action_space.sample() for _ in range(n_branches)]])
        start = time.perf_counter()
        brancher.open(actions, alive, horizon=1)
        brancher.close()
        branches = time.perf_counter() - start
        *_, committed = (vec_env.action_space.sample() for _ in range(n_branches))
        start = time.perf_counter()
        _, _, terminated, truncated, _ = env.step(committed)
        seconds.append((branches, time.perf_counter() - start))
        if terminated or truncated:
            env.reset()
    vec_env.close()
    return tuple(np.median(seconds, axis=0))  # type: ignore[return-value]


def branches_per_second(vec_env_cls: type | None, env_id: str, n_branches: int, n_states: int) -> float:
    """
    Measure the throughput of branches with two environments.

    :param vec_env_cls: class of the vectorised environment
    :param env_id: the environment
    :param n_branches: number N of branches per state
    :param n_states: number of states
    :return: branch steps per second
    """
    vec_env = make_vec_env(env_id, 2, seed=0, vec_env_cls=vec_env_cls)
    brancher = make_brancher("auto", vec_env)
    alive = np.ones((2, n_branches), dtype=bool)
    vec_env.reset()
    seconds = []
    for _ in range(n_states):
        actions = np.array([[vec_env.action_space.sample() for _ in range(n_branches)] for _ in range(2)])
        start = time.perf_counter()
        brancher.open(actions, alive, horizon=1)
        brancher.close()
        seconds.append(time.perf_counter() - start)
        vec_env.step(actions[:, 0])
    vec_env.close()
    return float(2 * n_branches / np.median(seconds))


def main() -> None:
    """Measure, print and write the rows."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--n-branches", type=int, default=8)
    parser.add_argument("--n-states", type=int, default=6000)
    parser.add_argument("--envs", nargs="*", default=list(ENVIRONMENTS))
    arguments = parser.parse_args()
    rows = []
    for env_id in arguments.envs:
        try:
            gym.spec(env_id)
        except gym.error.Error:
            print(f"{env_id}: not installed")
            continue
        branches, step = time_branches(env_id, arguments.n_branches, arguments.n_states)
        ratio = branches / arguments.n_branches / step
        rows.append(
            {
                "measurement": "branch step / env.step",
                "environment": env_id,
                "n_branches": arguments.n_branches,
                "branch_step_us": f"{1e6 * branches / arguments.n_branches:.2f}",
                "env_step_us": f"{1e6 * step:.2f}",
                "ratio": f"{ratio:.3f}",
                "target": f"<= {ENVIRONMENTS.get(env_id, float('nan'))}",
            }
        )
        print(*rows[-1].values(), sep="\t", flush=True)
    throughputs = [
        branches_per_second(cls, "Humanoid-v5", arguments.n_branches, arguments.n_states // 4) for cls in (SubprocVecEnv, None)
    ]
    rows.append(
        {
            "measurement": "branches/s SubprocVecEnv(2) / DummyVecEnv(2)",
            "environment": "Humanoid-v5",
            "n_branches": arguments.n_branches,
            "branch_step_us": f"{1e6 / throughputs[0]:.2f}",
            "env_step_us": f"{1e6 / throughputs[1]:.2f}",
            "ratio": f"{throughputs[0] / throughputs[1]:.3f}",
            "target": ">= 1.7",
        }
    )
    print(*rows[-1].values(), sep="\t")
    origin = provenance()
    write_rows(RESULTS, [*rows[0], *origin], (row | origin for row in rows))


if __name__ == "__main__":
    main()
