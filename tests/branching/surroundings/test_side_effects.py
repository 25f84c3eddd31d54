"""What steps do outside the process is said once, by name, can be switched off in branches, and is never shared with forks."""

import csv
import logging
import os
import re
import socket
import sqlite3
import subprocess
import sys
import warnings

import gymnasium as gym
import numpy as np
import pytest
from stable_baselines3.common.vec_env import DummyVecEnv

from sb3_hybrid_grpo import HybridGRPO, UnbranchableEnvError
from sb3_hybrid_grpo.branching import make_brancher, register_transparent_wrapper
from sb3_hybrid_grpo.branching.copies.child import CAN_FORK
from sb3_hybrid_grpo.branching.simulator import detours
from sb3_hybrid_grpo.branching.surroundings import side_effects
from sb3_hybrid_grpo.branching.surroundings.side_effects import Notice, is_outlet
from tests.envs import Walk, limited

needs_fork = pytest.mark.skipif(not CAN_FORK, reason="the platform cannot fork")
LOGGER = logging.getLogger("walks")


class Writing(gym.Wrapper):
    """Appends to a file with every step, unless it is told that a branch takes it."""

    is_branch = False

    def __init__(self, env, path, start=0):
        super().__init__(env)
        self.path, self.start, self.n_steps = str(path), start, 0

    def step(self, action):
        self.n_steps += 1
        if self.n_steps > self.start and not self.is_branch:
            with open(self.path, "a") as file:
                file.write("step\n")
        return self.env.step(action)


class Considerate(Writing):
    def on_branch_start(self):
        self.is_branch = True

    def on_branch_end(self):
        self.is_branch = False


class Logging(Walk):
    def step(self, action):
        LOGGER.info("a step")
        return super().step(action)


def warnings_of(function):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        result = function()
    return result, [str(warning.message) for warning in caught if warning.category is UserWarning]


def branch_and_step(venv, brancher, n_steps=5):
    venv.reset()
    for _ in range(n_steps):
        actions = np.zeros((1, 3, 2), dtype=np.float32)
        brancher.open(actions, np.ones((1, 3), dtype=bool), 1)
        brancher.close()
        venv.step(actions[:, 0])


@pytest.mark.parametrize("name", ["auto", "snapshot", pytest.param("fork", marks=needs_fork), "replay"])
def test_file_is_named_once(name, tmp_path):
    path = tmp_path / "steps.csv"
    venv = DummyVecEnv([lambda: Writing(Walk(), path)])
    brancher, said = warnings_of(lambda: make_brancher(name, venv))
    (message,) = said
    assert f"opens {path} for writing" in message
    assert all(text in message for text in ("register_transparent_wrapper", "on_branch_start()", "n_samples=1"))
    _, said = warnings_of(lambda: branch_and_step(venv, brancher))
    assert not said


def test_file_that_is_opened_late_is_named_when_it_is(tmp_path):
    venv = DummyVecEnv([lambda: Writing(limited()(), tmp_path / "steps.csv", start=60)])
    brancher, said = warnings_of(lambda: make_brancher("snapshot", venv))
    assert not said
    venv.envs[0].n_steps = 58
    (message,) = warnings_of(lambda: branch_and_step(venv, brancher))[1]
    assert "steps.csv for writing" in message


@pytest.mark.parametrize("name", ["snapshot", pytest.param("fork", marks=needs_fork), "replay"])
def test_hooks_switch_it_off(name, tmp_path):
    path = tmp_path / "steps.csv"
    venv = DummyVecEnv([lambda: Considerate(Walk(), path)])
    venv.reset()
    brancher, said = warnings_of(lambda: make_brancher(name, venv))
    branch_and_step(venv, brancher)
    assert not said
    assert len(path.read_text().splitlines()) == 5
    assert not venv.envs[0].is_branch


def test_hooks_are_called_when_a_branch_raises(tmp_path):
    class Fragile(Walk):
        def step(self, action):
            if action[0] > 0.5:
                raise ArithmeticError
            return super().step(np.zeros(2))

    class Tame(gym.ActionWrapper):
        def action(self, action):
            return action if self.is_wild else 0 * action

    Tame.is_wild = False
    venv = DummyVecEnv([lambda: Considerate(Tame(Fragile()), tmp_path / "steps.csv")])
    brancher = make_brancher("snapshot", venv)
    venv.reset()
    Tame.is_wild = True
    with pytest.raises(Exception, match="ArithmeticError"):
        brancher.open(np.ones((1, 2, 2), dtype=np.float32), np.ones((1, 2), dtype=bool), 1)
    assert not venv.envs[0].is_branch


def test_hook_that_raises_leaves_the_environment_as_it_was(tmp_path):
    class Faulty(Considerate):
        def on_branch_start(self):
            raise LookupError("no such switch")

    env = gym.wrappers.TransformReward(gym.wrappers.RecordEpisodeStatistics(Faulty(Walk(), tmp_path / "x")), float)
    recorder = env.env
    with pytest.raises(LookupError, match="no such switch"):
        make_brancher("snapshot", DummyVecEnv([lambda: env]))
    assert env.env is recorder


def test_transparent_wrapper_is_gone_around(tmp_path, monkeypatch):
    monkeypatch.setattr(detours, "_transparent_wrappers", set(detours._transparent_wrappers))
    path = tmp_path / "steps.csv"
    register_transparent_wrapper(Writing)
    venv = DummyVecEnv([lambda: Writing(Walk(), path)])
    brancher, said = warnings_of(lambda: make_brancher("auto", venv))
    branch_and_step(venv, brancher)
    assert not said and len(path.read_text().splitlines()) == 5


def test_training_says_it_once(tmp_path):
    env = Writing(Walk(), tmp_path / "steps.csv")
    settings = {"n_steps": 8, "batch_size": 8, "device": "cpu"}
    _, said = warnings_of(lambda: HybridGRPO("MlpPolicy", env, **settings).learn(16))
    assert len([message for message in said if "steps.csv" in message]) == 1


def test_log_is_named(caplog):
    caplog.set_level(logging.INFO, "walks")
    _, said = warnings_of(lambda: make_brancher("snapshot", DummyVecEnv([Logging])))
    assert len(said) == 1 and "logs through 'walks'" in said[0]


def test_log_that_nobody_keeps_is_none():
    LOGGER.setLevel(logging.WARNING)
    assert not warnings_of(lambda: make_brancher("snapshot", DummyVecEnv([Logging])))[1]


def connect():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        socket.create_connection(listener.getsockname()).close()


EFFECTS = {
    "socket": (connect, r"connects to \('127"),
    "data base": (lambda: sqlite3.connect("scores.db").close(), "connects to the data base scores.db"),
    "process": (lambda: subprocess.run([sys.executable, "-c", ""]), "starts .*python"),
    "removal": (lambda: (open("old", "w").close(), os.remove("old")), "opens old for writing"),
    "folder": (lambda: os.mkdir("frames"), "makes the folder frames"),
}


@pytest.mark.parametrize("act, description", EFFECTS.values(), ids=EFFECTS)
def test_effects(act, description, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with Notice() as notice:
        act()
    assert re.search(description, notice.effects[0])


def test_what_is_no_effect():
    def act():
        with open(__file__) as file, open(os.devnull, "w") as nowhere:
            nowhere.write(file.read(1))
        sqlite3.connect(":memory:").close()

    with Notice() as notice:
        act()
    assert not notice.effects and side_effects._active is None


def test_environments_that_are_known_are_not_listened_to(monkeypatch):
    monkeypatch.setattr(side_effects, "_installed", [])
    monkeypatch.setattr(side_effects.sys, "addaudithook", lambda hook: pytest.fail("an audit hook was installed"))
    venv = DummyVecEnv([lambda: gym.make("CartPole-v1")])
    venv.reset()
    make_brancher("snapshot", venv).open(np.zeros((1, 2), dtype=int), np.ones((1, 2), dtype=bool), 1)


def test_outlets(tmp_path):
    database = sqlite3.connect(tmp_path / "scores.db")
    file = open(tmp_path / "steps.csv", "w")
    for outlet in (database, database.cursor(), file, csv.writer(file), file.write):
        assert is_outlet(outlet), outlet
    cursor = database.cursor()
    database.close()
    file.close()
    with open(__file__) as read:
        for harmless in (database, cursor, file, csv.writer(file), read, [read], np.zeros(3), {}, Walk()):
            assert not is_outlet(harmless), harmless


class WithDatabase(Walk):
    def __init__(self, path):
        super().__init__()
        self.cursor = sqlite3.connect(path).cursor()


DATABASE = []


class WithGlobalDatabase(Walk):
    def step(self, action):
        DATABASE[0].execute("SELECT 1")
        return super().step(action)


@needs_fork
def test_copies_of_the_process_never_share_a_data_base(tmp_path):
    with pytest.raises(UnbranchableEnvError, match=r"WithDatabase\.cursor is a sqlite3\.Cursor"):
        make_brancher("fork", DummyVecEnv([lambda: WithDatabase(tmp_path / "scores.db")]))
    DATABASE[:] = [sqlite3.connect(tmp_path / "scores.db")]
    for name in ("fork", "snapshot", "auto"):
        with pytest.raises(
            UnbranchableEnvError, match=rf"global variable DATABASE of module {re.escape(__name__)} .*is a sqlite3\.Conn"
        ):
            make_brancher(name, DummyVecEnv([WithGlobalDatabase]))
    DATABASE.pop().close()
