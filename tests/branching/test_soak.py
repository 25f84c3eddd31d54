"""100,000 branches per codec: no drift, no growth of memory, descriptors or processes. Run with ``-m slow``."""

import multiprocessing
import os
import sys

import gymnasium as gym
import numpy as np
import pytest
from stable_baselines3.common.env_util import make_vec_env

from sb3_hybrid_grpo.branching import make_brancher
from tests.envs import limited

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc"),
    pytest.mark.filterwarnings("ignore:.*use of fork:DeprecationWarning"),
]
N_BRANCHES = 100_000
PER_STATE = 20


def resident_megabytes():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20


def soak(env_id, n_branches, per_state=PER_STATE, brancher="snapshot"):
    branched, reference = (make_vec_env(env_id, 1, seed=0) for _ in range(2))
    brancher = make_brancher(brancher, branched)
    alive = np.ones((1, per_state), dtype=bool)
    np.testing.assert_array_equal(branched.reset(), reference.reset())
    branched.action_space.seed(0)
    n_states, before = n_branches // per_state, None
    for step in range(n_states):
        if step == n_states // 4:
            before = resident_megabytes(), len(os.listdir("/proc/self/fd"))
        actions = np.array([[branched.action_space.sample() for _ in range(per_state)]])
        brancher.open(actions, alive, horizon=1)
        brancher.close()
        for seen, expected in zip(branched.step(actions[:, 0])[:3], reference.step(actions[:, 0])[:3], strict=True):
            np.testing.assert_array_equal(seen, expected)
    assert resident_megabytes() - before[0] < 8
    assert len(os.listdir("/proc/self/fd")) == before[1]
    assert not multiprocessing.active_children()
    branched.close(), reference.close()


@pytest.mark.parametrize("env_id", ["CartPole-v1", "Taxi-v4", limited(observation="dict")], ids=["cartpole", "taxi", "dict"])
def test_generic_codec(env_id):
    soak(env_id, N_BRANCHES)


@pytest.mark.parametrize("env_id", ["Hopper-v5", "Ant-v5"])
def test_mujoco_codec(env_id):
    pytest.importorskip("mujoco")
    soak(env_id, N_BRANCHES)


def test_atari_codec():
    gym.register_envs(pytest.importorskip("ale_py"))
    soak("ALE/Breakout-v5", N_BRANCHES)


def test_fork():
    soak("CartPole-v1", 10_000, brancher="fork")
