"""Environments of other packages, where these are installed: each is branched exactly, or refused."""

import functools
import json
import os
import subprocess
import sys
import tempfile
import time
import uuid
from pathlib import Path

import gymnasium as gym
import pytest
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import DummyVecEnv

from benchmarks.speed.third_party import SIMULATORS
from sb3_hybrid_grpo import HybridGRPO, UnbranchableEnvError, check_branchable
from tests.lockstep import assert_laws, make_installed, reporting, subproc
from tests.third_party_runs import RESULT

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*use of fork:DeprecationWarning"),
    # What those packages say to their own users.
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning"),
    pytest.mark.filterwarnings("ignore::RuntimeWarning"),
]


def make_minigrid(env_id):
    from minigrid.wrappers import ImgObsWrapper

    return ImgObsWrapper(gym.make(env_id, max_steps=25))


def make_flat(env_id):
    return gym.wrappers.FlattenObservation(gym.make(env_id, max_episode_steps=15))


def make_short(env_id, **kwargs):
    return gym.make(env_id, max_episode_steps=10, **kwargs)


def make_simulator(name):
    return gym.wrappers.TimeLimit(SIMULATORS[name](), 10)


CASES = {
    "chess": [(make_simulator, "python-chess")],
    "minigrid": [(make_minigrid, "MiniGrid-DoorKey-5x5-v0"), (make_minigrid, "MiniGrid-Dynamic-Obstacles-6x6-v0")],
    "gymnasium_robotics": [
        (make_short, "PointMaze_UMaze-v3"),
        (make_short, "AntMaze_UMaze-v5"),
        (make_short, "AdroitHandDoor-v1"),
    ],
    "highway_env": [(make_short, "parking-v0")],
    "shimmy": [(make_flat, "dm_control/cartpole-balance-v0"), (make_flat, "dm_control/walker-walk-v0")],
}


@pytest.mark.parametrize("vec_env_cls", [DummyVecEnv, subproc()], ids=["DummyVecEnv", "SubprocVecEnv"])
@pytest.mark.parametrize(
    "package, make, env_id",
    [pytest.param(package, *case, id=case[1]) for package, cases in CASES.items() for case in cases],
)
def test_laws(package, make, env_id, vec_env_cls):
    make_env = make_installed(package, make, env_id)
    ends = assert_laws(
        lambda: make_vec_env(reporting(make_env), 2, vec_env_cls=vec_env_cls), n_steps=30, n_branches=2, check_state=False
    )
    assert sum(ends) > 0


@pytest.mark.parametrize("package, make, env_id", [(package, *cases[0]) for package, cases in CASES.items()])
def test_check(package, make, env_id):
    assert check_branchable(make_installed(package, make, env_id), n_steps=10).brancher == "snapshot"


def test_vec_envs_of_other_packages_are_refused_by_name():
    """Agents that share a simulator are no environments that can be branched one by one."""
    supersuit = pytest.importorskip("supersuit")
    multiwalker = pytest.importorskip("pettingzoo.sisl.multiwalker_v9")
    vec_env = supersuit.pettingzoo_env_to_vec_env_v1(multiwalker.parallel_env())
    venv = supersuit.concat_vec_envs_v1(vec_env, 1, base_class="stable_baselines3")
    settings = {"n_steps": 8, "batch_size": 8, "n_epochs": 1}
    with pytest.raises(UnbranchableEnvError, match="SB3VecEnvWrapper"):
        HybridGRPO("MlpPolicy", venv, **settings)
    HybridGRPO("MlpPolicy", venv, n_samples=1, **settings).learn(24)


ROOT = Path(__file__).parents[2]
MARKER = "SB3_HYBRID_GRPO_TEST"
SECONDS = 300


def run(what, name, again=False):
    """Run a simulator in a fresh process, and see that it leaves none behind."""
    if not SIMULATORS[name].is_installed():
        pytest.skip(f"{SIMULATORS[name].package} is not installed")
    seen, errors = run_once(what, name, again)
    if seen is None and what == "plain":
        pytest.skip(f"{name} does not run here: {errors}")
    assert seen is not None, errors
    return seen


@functools.cache
def run_once(what, name, again):
    mark = uuid.uuid4().hex
    environment = {**os.environ, MARKER: mark, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "tests.third_party_runs", what, name]
    # Some leave files where they are.
    with tempfile.TemporaryDirectory() as folder:
        finished = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=SECONDS)
    results = [line for line in finished.stdout.splitlines() if line.startswith(RESULT)]
    assert left_by(mark) == []
    return json.loads(results[0].removeprefix(RESULT)) if results else None, finished.stderr.strip()[-300:]


def left_by(mark):
    """Find the processes that were started with a mark in their environment and are still there after some time."""
    for _ in range(20):
        left = []
        for path in Path("/proc").glob("[0-9]*"):
            try:
                if f"{MARKER}={mark}".encode() in (path / "environ").read_bytes():
                    left.append((path / "cmdline").read_bytes())
            except OSError:
                continue
        if not left:
            break
        time.sleep(0.1)
    return left


@pytest.mark.slow
@pytest.mark.parametrize("name", SIMULATORS)
class TestSimulators:
    def test_committed_steps_are_replayed_in_a_fresh_process(self, name):
        first, second, branched = run("plain", name), run("plain", name, again=True), run("branched", name)
        if branched["refused"]:
            assert "cannot be branched" in branched["refused"]
        agreed = zip(first["digests"], second["digests"], branched["digests"], strict=True)
        assert [step for step, (a, b, ours) in enumerate(agreed) if a == b != ours] == []

    def test_branches_tell_what_steps_return(self, name):
        run("plain", name)
        assert run("branched", name)["n_broken"] == 0

    def test_check(self, name):
        run("plain", name)
        report, branched = run("check", name), run("branched", name)
        assert (report["brancher"] is None) == (branched["refused"] is not None), report["text"]
