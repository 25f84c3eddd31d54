"""
Writes the README's table of environments from what the check says about them.

    python -m benchmarks.speed.support_table [--families Atari,MiniGrid] [--write]

A family whose packages are not installed, or cannot be made with the installed versions, keeps the row that the README has.
"""

import argparse
import importlib
import re
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import gymnasium as gym
from stable_baselines3.common.atari_wrappers import AtariWrapper

from benchmarks import HERE
from sb3_hybrid_grpo import InvalidArgumentError, check_branchable
from sb3_hybrid_grpo.check import BranchReport

README = HERE.parent / "README.md"
MARKER = "<!-- support-table -->"
HEADER = "| family | tried | branched | a branch's step / `env.step` |\n|---|---|---|---|"
N_STEPS = 50


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
    parser.add_argument("--write", action="store_true", help="write the table into the README")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    readme = README.read_text()
    rows = dict(re.findall(r"^\| (.+?) \|(.+)\|$", readme.split(MARKER)[1], flags=re.MULTILINE)) if MARKER in readme else {}
    wanted = tuple(options.families.split(",")) if options.families else ("",)
    for name, family in FAMILIES.items():
        if name.startswith(wanted) and (row := row_of(family)) is not None:
            rows[name] = row
    table = "\n".join([HEADER, *(f"| {name} |{rows[name]}|" for name in FAMILIES if name in rows)])
    print(table)
    if options.write:
        before, _, after = readme.split(MARKER)
        README.write_text(f"{before}{MARKER}\n{table}\n{MARKER}{after}")


def row_of(family: Family) -> str | None:
    try:
        gym.register_envs(importlib.import_module(family.package))
        wrappers = [] if family.wrapper is None else [family.wrapper]
        reports = [check_branchable(env_id, wrappers, n_steps=N_STEPS) for env_id in family.env_ids]
    except (ImportError, InvalidArgumentError) as error:
        print(f"{family.package}: {error}")
        return None
    tried = ", ".join(f"`{env_id}`" for env_id in family.env_ids)
    return f" {tried} | {' / '.join(sorted({verdict(report) for report in reports}))} | {ratios(reports)} "


def verdict(report: BranchReport) -> str:
    hows = {"snapshot": "from snapshots", "fork": "by forking", "replay": "by replaying episodes"}
    return "refused" if report.brancher is None else f"exactly, {hows[report.brancher]}"


def ratios(reports: list[BranchReport]) -> str:
    numbers = [costs.branch_step / costs.raw_step for report in reports if (costs := report.costs) is not None]
    texts = [f"{number:.0f}" if number > 10 else f"{number:.1f}" for number in (min(numbers), max(numbers))] if numbers else []
    return " to ".join(dict.fromkeys(texts)) or "-"


if __name__ == "__main__":
    main()
