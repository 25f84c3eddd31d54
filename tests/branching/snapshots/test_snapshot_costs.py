"""What snapshots cost is said once, with the name of the attribute and the line that mends it; quicker forks take over."""

import time

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces
from stable_baselines3.common.vec_env import DummyVecEnv

from sb3_hybrid_grpo.branching import AttributesCodec, LeafCodec, make_brancher, register_codec
from sb3_hybrid_grpo.branching import choice as local
from sb3_hybrid_grpo.branching.copies.child import CAN_FORK
from sb3_hybrid_grpo.branching.copies.quickest import QuickestBrancher
from sb3_hybrid_grpo.branching.simulator.env import LocalBrancher
from sb3_hybrid_grpo.branching.snapshots import branch_states, registry
from tests.lockstep import branch


class Slow:
    """Takes its time to be saved."""

    __slots__ = ()
    seconds = 6e-3


class Trader(gym.Env):
    observation_space = spaces.Box(-np.inf, np.inf, (1,))
    action_space = spaces.Discrete(2)

    def __init__(self):
        self.small, self.table = [1, 2], Slow()

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.t = 0
        return np.zeros(1, dtype=np.float32), {}

    def step(self, action):
        self.t += 1
        return np.full(1, self.t, dtype=np.float32), float(action), self.t == 40, False, {}


@pytest.fixture(autouse=True)
def slow_codec():
    registered = registry.user_codecs()
    register_codec(Slow, LeafCodec(lambda obj: time.sleep(obj.seconds), lambda obj, state: None))
    yield
    registry._user_registry.clear()
    registry._user_registry.update(registered)
    registry._forget_resolved()


def made():
    return DummyVecEnv([lambda: gym.wrappers.TimeLimit(Trader(), 40)])


def test_costly_attribute_is_named():
    line = r"register_codec\(Trader, AttributesCodec\(constant=\('table',\)\)\)"
    with pytest.warns(UserWarning, match=rf"takes \S+ ms, \d+% of it for Trader\.table, a \S+Slow\. .*{line}"):
        make_brancher("snapshot", made())


def test_line_in_the_warning_mends_it():
    register_codec(Trader, AttributesCodec(constant=("table",)))
    assert isinstance(local.choose_brancher("snapshot", made().envs).brancher, LocalBrancher)
    assert local.choose_brancher("snapshot", made().envs).announcement is None


@pytest.mark.skipif(not CAN_FORK, reason="this system cannot fork")
@pytest.mark.filterwarnings("ignore:.*use of fork:DeprecationWarning")
@pytest.mark.parametrize("milliseconds, kind", [(1.0, QuickestBrancher), (1000.0, LocalBrancher)])
def test_auto_takes_what_is_quicker(monkeypatch, milliseconds, kind):
    monkeypatch.setattr(local, "milliseconds_per_fork", lambda: milliseconds)
    choice = local.choose_brancher("auto", made().envs)
    assert type(choice.brancher) is kind
    assert "Trader.table" in choice.announcement
    assert ("forked copy" in choice.announcement) == (kind is QuickestBrancher)


def test_snapshots_that_come_to_take_long_are_announced_once(monkeypatch):
    monkeypatch.setattr(branch_states, "_STARTS_BETWEEN_MEASUREMENTS", 2)
    monkeypatch.setattr(Slow, "seconds", 0.0)
    venv = made()
    brancher = make_brancher("snapshot", venv)
    venv.reset()
    branch(brancher, np.array([[0, 1]]))
    monkeypatch.setattr(Slow, "seconds", 6e-3)
    with pytest.warns(UserWarning, match=r"Snapshots have come to take long.*Trader\.table") as warnings:
        for _ in range(6):
            branch(brancher, np.array([[0, 1]]))
    assert len(warnings) == 1
