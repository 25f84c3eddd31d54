"""Nothing is left over: neither copies of environments that nobody closed, nor processes that copies have started."""

import gc
import os
import select
import subprocess
import sys
import time

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.utils import EzPickle
from stable_baselines3.common.vec_env import DummyVecEnv

from sb3_hybrid_grpo import BranchError, HybridGRPO
from sb3_hybrid_grpo.branching import make_brancher
from sb3_hybrid_grpo.branching.choice import choose_brancher
from sb3_hybrid_grpo.branching.copies import rehearsal
from sb3_hybrid_grpo.branching.copies.fork import ForkBrancher
from sb3_hybrid_grpo.branching.copies.rehearsal import rehearse
from sb3_hybrid_grpo.branching.copies.replay import ReplayBrancher
from sb3_hybrid_grpo.branching.simulator.env import LocalBrancher
from tests.envs import Walk, far_library, limited

pytestmark = pytest.mark.filterwarnings("ignore:.*use of fork:DeprecationWarning")
CAN_FORK = pytest.mark.skipif(not hasattr(os, "fork"), reason="the platform cannot fork")
ACTION = np.zeros((1, 2, 2), dtype=np.float32)
ALIVE = np.ones((1, 2), dtype=bool)


class Tallied(Walk, EzPickle):
    """A walk of which a copy is a new one. A library counts how many are open, and copies fail when it says so."""

    def __init__(self):
        EzPickle.__init__(self)
        super().__init__()
        self.number = (far_library().connect(),)

    def step(self, action):
        if far_library().fails and self.number != (0,):
            raise ArithmeticError("the simulation exploded")
        return super().step(action)

    def close(self):
        assert far_library().step(*self.number) == 1, "closed twice"


def still_open():
    return {number for number, n_closed in far_library().worlds.items() if not n_closed}


@pytest.fixture(autouse=True)
def nothing_open(monkeypatch):
    monkeypatch.setattr(far_library(), "worlds", {})
    monkeypatch.setattr(far_library(), "fails", False, raising=False)
    yield
    gc.collect()
    assert len(far_library().worlds) != 1, "nothing was copied"
    assert not still_open(), "copies are left open"


def test_training_by_replays_closes_its_copies():
    env = gym.wrappers.TimeLimit(Tallied(), 9)
    model = HybridGRPO("MlpPolicy", env, n_steps=12, batch_size=12, branch_horizon=3, brancher="replay")
    model.learn(12)
    assert len(far_library().worlds) > 18 and len(still_open()) == 2, (
        "the environment, and the one that begins its episode anew"
    )
    model.env.close()


def test_a_brancher_that_goes_closes_its_copies():
    env = Tallied()
    brancher = ReplayBrancher([env])
    assert still_open() == {0}
    env.reset()
    brancher.open(ACTION, ALIVE, 2)
    assert len(still_open()) == 4
    brancher.close()
    del brancher
    assert still_open() == {0}
    assert not {"reset", "step", "close"} & vars(env).keys()
    env.close()


def test_branches_are_closed_as_soon_as_they_end():
    env = Tallied()
    brancher = ReplayBrancher([env])
    env.reset(seed=0)
    for horizon in (1, 2):
        brancher.open(ACTION, ALIVE, horizon)
        if horizon == 2:
            brancher.advance(ACTION, ALIVE)
        assert len(still_open()) == 2
    env.close()


def test_copies_are_closed_where_something_raises():
    env = Tallied()
    brancher = ReplayBrancher([env])
    env.reset()
    far_library().fails = True
    with pytest.raises(BranchError, match="exploded"):
        brancher.open(ACTION, ALIVE, 1)
    assert len(still_open()) == 2
    far_library().fails = False
    env.position += 1
    with pytest.raises(BranchError, match="another state"):
        brancher.open(ACTION, ALIVE, 1)
    assert len(still_open()) == 2
    far_library().fails = True
    other = Tallied()
    with pytest.raises(BranchError, match="exploded"):
        ReplayBrancher([other])
    other.close()
    assert len(still_open()) == 2
    env.close()


def test_a_copy_that_cannot_be_closed():
    class Stuck(Walk):
        def close(self):
            raise OSError("no such device")

    with pytest.raises(BranchError, match=r"Stuck.* raised OSError when a copy of it was closed: no such device"):
        ReplayBrancher([Stuck()])


def test_a_window_that_a_copy_shares_is_not_closed():
    class Draws(Walk):
        screen = "one for all"

        def close(self):
            raise AssertionError("closed")

    env = Draws()
    brancher = ReplayBrancher([env])
    env.reset()
    brancher.open(ACTION, ALIVE, 1)
    brancher.close()


class Serves(Walk):
    """Starts a process at each reset, which holds a pipe open, as it would the standard output."""

    def __init__(self, write_end):
        super().__init__()
        self.write_end, self.server, self.stuck = write_end, None, (letter for letter in "abc")

    def reset(self, **kwargs):
        self.close()
        sleep = [sys.executable, "-c", "import time; time.sleep(60)"]
        self.server = subprocess.Popen(sleep, pass_fds=[self.write_end]).pid
        return super().reset(**kwargs)

    def close(self):
        if self.server is not None:
            os.kill(self.server, 9)
            os.waitpid(self.server, 0)
            self.server = None


@pytest.fixture
def pipe():
    read_end, write_end = os.pipe()
    yield write_end
    os.close(write_end)
    is_closed, _, _ = select.select([read_end], [], [], 10)
    os.close(read_end)
    assert is_closed, "a process is left that holds the other end"


@CAN_FORK
@pytest.mark.filterwarnings("ignore:subprocess:ResourceWarning")
@pytest.mark.parametrize("end", [lambda: os._exit(3), lambda: time.sleep(60), lambda: 1 / 0, lambda: os.kill(os.getpid(), 9)])
def test_a_rehearsal_takes_along_the_processes_that_it_started(end, pipe, monkeypatch):
    monkeypatch.setattr(rehearsal, "PATIENCE", 0.3)
    monkeypatch.setattr(rehearsal, "_MOST_TIMES_AS_LONG", 0)
    assert rehearse([Serves(pipe)], end) is not None


@CAN_FORK
@pytest.mark.filterwarnings("ignore:subprocess:ResourceWarning")
def test_choosing_a_brancher_leaves_no_process(pipe):
    env = Serves(pipe)
    choice = choose_brancher("auto", [env])
    assert type(choice.brancher) is ForkBrancher
    env.reset()
    choice.brancher.open(ACTION, ALIVE, 1)
    choice.brancher.close()
    env.close()


@CAN_FORK
def test_branches_lead_groups_of_their_own():
    """What a terminal or a job scheduler sends to the parent's group is for the parent."""
    env = limited()()
    env.reset(seed=0)
    brancher = ForkBrancher([env])
    brancher.open(ACTION, ALIVE, 2)
    groups = {os.getpgid(child.pid) for child in brancher._family}
    assert groups == {child.pid for child in brancher._family} and os.getpgrp() not in groups
    brancher.close()


def test_snapshots_take_the_place_of_no_method():
    env = limited()()
    make_brancher("snapshot", DummyVecEnv([lambda: env]))
    assert isinstance(LocalBrancher([env]), LocalBrancher)
    assert not {"reset", "step", "close"} & vars(env).keys()
