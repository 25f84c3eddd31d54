"""
Writes the tables of environments in the documentation from what the check says about them.

    python -m benchmarks.speed.support_table [--families Atari,MiniGrid] [--write]
    python -m benchmarks.speed.support_table --third-party [--families NLE,rware] [--write]

The first table is of environments by family, the second of simulators of other packages, each tried in a process of its own.
A row whose packages are not installed, or cannot be made with the installed versions, stays as it is there.
"""

import argparse
import importlib
import json
import os
import re
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import gymnasium as gym
from stable_baselines3.common.atari_wrappers import AtariWrapper

from benchmarks import HERE
from benchmarks.speed.third_party import SIMULATORS
from sb3_hybrid_grpo import InvalidArgumentError, check_branchable
from sb3_hybrid_grpo.check import BranchReport

PAGE = HERE.parent / "docs" / "can_i_use_it.md"
MARKER = "<!-- support-table -->"
HEADER = "| family | tried | branched | a branch's step / `env.step` |\n|---|---|---|---|"
THIRD_PARTY_MARKER = "<!-- third-party-table -->"
THIRD_PARTY_HEADER = "| package | tried | branched | a committed step / PPO's |\n|---|---|---|---|"
SECONDS = 300
N_STEPS = 50
HOWS = {
    "snapshot": "exactly, from snapshots",
    "fork": "exactly, by forking",
    "replay": "exactly, by replaying episodes",
    None: "refused",
}


def image_only(env: Any) -> Any:
    return importlib.import_module("minigrid.wrappers").ImgObsWrapper(env)


class Family(NamedTuple):
    """Environments of one package, and the wrapper without which SB3 could not use them."""

    package: str
    env_ids: list[str]
    wrapper: Callable[[Any], Any] | None = None


FAMILIES = {
    "Classic control": Family("gymnasium", ["CartPole-v1", "Pendulum-v1", "Acrobot-v1", "MountainCarContinuous-v0"]),
    "Toy text": Family("gymnasium", ["FrozenLake-v1", "Blackjack-v1"]),
    "MuJoCo": Family("gymnasium", ["Hopper-v5", "HalfCheetah-v5", "Ant-v5", "Humanoid-v5"]),
    "Box2D": Family("gymnasium", ["LunarLander-v3", "BipedalWalker-v3"]),
    "Atari, as `make_atari_env` makes it": Family(
        "ale_py", ["BreakoutNoFrameskip-v4", "ALE/Pong-v5", "ALE/Qbert-v5", "ALE/SpaceInvaders-v5"], AtariWrapper
    ),
    "Atari: Air Raid, Berzerk, Double Dunk, Miniature Golf, Pitfall II, TronDead, Yars' Revenge, three board games": Family(
        "ale_py", ["ALE/Berzerk-v5", "ALE/YarsRevenge-v5"], AtariWrapper
    ),
    "MiniGrid": Family("minigrid", ["MiniGrid-DoorKey-5x5-v0", "MiniGrid-Dynamic-Obstacles-6x6-v0"], image_only),
    "Gymnasium-Robotics": Family("gymnasium_robotics", ["PointMaze_UMaze-v3", "AntMaze_UMaze-v5", "AdroitHandDoor-v1"]),
    "highway-env": Family("highway_env", ["parking-v0", "highway-fast-v0"]),
    "dm_control through Shimmy": Family(
        "shimmy", ["dm_control/cartpole-balance-v0", "dm_control/walker-walk-v0"], gym.wrappers.FlattenObservation
    ),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--families", help="comma-separated beginnings of names; all if left out")
    parser.add_argument("--write", action="store_true", help="write the table into docs/can_i_use_it.md")
    parser.add_argument("--third-party", action="store_true", help="the table of other packages instead")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    if options.third_party:
        marker, header, names, make_row = THIRD_PARTY_MARKER, THIRD_PARTY_HEADER, list(SIMULATORS), row_of_simulator
    else:
        marker, header, names, make_row = MARKER, HEADER, list(FAMILIES), row_of
    page = PAGE.read_text(encoding="utf-8")
    rows = dict(re.findall(r"^\| (.+?) \|(.+)\|$", page.split(marker)[1], flags=re.MULTILINE))
    wanted = tuple(options.families.split(",")) if options.families else ("",)
    for name in names:
        if name.startswith(wanted) and (row := make_row(name)) is not None:
            rows[name] = row
    table = "\n".join([header, *(f"| {name} |{rows[name]}|" for name in names if name in rows)])
    print(table)
    if options.write:
        before, _, after = page.split(marker)
        PAGE.write_text(f"{before}{marker}\n{table}\n{marker}{after}", encoding="utf-8")


def row_of_simulator(name: str) -> str | None:
    simulator = SIMULATORS[name]
    if not simulator.is_installed():
        print(f"{simulator.package} is not installed")
        return None
    command = [sys.executable, "-m", "benchmarks.speed.third_party", name]
    environment = {**os.environ, "PYTHONPATH": str(HERE.parent)}
    # Some leave files where they are.
    with tempfile.TemporaryDirectory() as folder:
        try:
            finished = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=SECONDS)
        except subprocess.TimeoutExpired:
            print(f"{name}: not done after {SECONDS} s", flush=True)
            return None
    if finished.returncode != 0:
        print(f"{name}: {finished.stderr.strip()[-200:]}", flush=True)
        return None
    measured = json.loads(finished.stdout.splitlines()[-1])
    ratio = "-" if measured["ratio"] is None else as_text(measured["ratio"])
    return f" `{simulator.tried}` | {HOWS[measured['brancher']]} | {ratio} "


def row_of(name: str) -> str | None:
    family = FAMILIES[name]
    try:
        gym.register_envs(importlib.import_module(family.package))
        wrappers = [] if family.wrapper is None else [family.wrapper]
        reports = [check_branchable(env_id, wrappers, n_steps=N_STEPS) for env_id in family.env_ids]
    except (ImportError, InvalidArgumentError) as error:
        print(f"{family.package}: {error}")
        return None
    tried = ", ".join(f"`{env_id}`" for env_id in family.env_ids)
    return f" {tried} | {' / '.join(sorted({HOWS[report.brancher] for report in reports}))} | {ratios(reports)} "


def ratios(reports: list[BranchReport]) -> str:
    numbers = [costs.branch_step / costs.raw_step for report in reports if (costs := report.costs) is not None]
    texts = map(as_text, (min(numbers), max(numbers))) if numbers else []
    return " to ".join(dict.fromkeys(texts)) or "-"


def as_text(number: float) -> str:
    return f"{number:.0f}" if number > 10 else f"{number:.1f}"


if __name__ == "__main__":
    main()
