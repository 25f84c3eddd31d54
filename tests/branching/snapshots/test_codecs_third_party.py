"""Simulators that save themselves, and those that are refused by name. The real packages are among the slow tests."""

import json
import sys
import types

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces
from gymnasium.utils import EzPickle
from stable_baselines3.common.env_util import make_vec_env

from sb3_hybrid_grpo import UnbranchableEnvError, check_branchable
from sb3_hybrid_grpo.branching import make_brancher
from tests.lockstep import assert_laws, reporting


class Emulator:
    """Plays a game of which it gives away only bytes."""

    __slots__ = ("_memory",)

    def __init__(self):
        self._memory = bytearray(2)

    def get_state(self):
        return bytes(self._memory)

    def set_state(self, state):
        self._memory[:] = state

    def step(self, button):
        self._memory[0] += 1
        self._memory[1] = (3 * self._memory[1] + button) % 251


def game_data(emulator):
    """Return what tells how much the second byte has grown since the look before. Its last looks are out of sight."""
    looks = [0, 0]

    def update_ram():
        looks[:] = looks[1], emulator._memory[1]

    return types.SimpleNamespace(update_ram=update_ram, current_reward=lambda: float(looks[1] - looks[0]))


class Retro(gym.Env, EzPickle):
    """Has the parts of a ``RetroEnv``."""

    observation_space = spaces.Box(0, 255, (2,), np.uint8)
    action_space = spaces.Discrete(3)

    def __init__(self, scenario=None, movie=None):
        EzPickle.__init__(self, "Game", "state", scenario, None, None, False, 1, "stable")
        self.em = Emulator()
        self.data = game_data(self.em)
        self.movie = movie

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.em.set_state(b"\0\0")
        self.data.update_ram()
        self.img = np.frombuffer(self.em.get_state(), dtype=np.uint8)
        return self.img, {}

    def step(self, action):
        self.em.step(int(action) + int(self.np_random.integers(2)))
        self.data.update_ram()
        self.img = np.frombuffer(self.em.get_state(), dtype=np.uint8)
        return self.img, self.data.current_reward(), False, bool(self.img[0] == 9), {}


Retro.__module__, Retro.__qualname__ = "stable_retro.retro_env", "RetroEnv"


@pytest.fixture
def stable_retro(tmp_path, monkeypatch):
    (tmp_path / "scenario.json").write_text(json.dumps({"done": {}}))
    (tmp_path / "race.json").write_text(json.dumps({"scripts": ["script.lua"]}))
    data = types.ModuleType("stable_retro.data")
    data.get_file_path = lambda game, name, integration: str(tmp_path / name)
    for module in (types.ModuleType("stable_retro"), data):
        monkeypatch.setitem(sys.modules, module.__name__, module)


def test_retro_is_saved_by_its_emulator(stable_retro):
    ends = assert_laws(lambda: make_vec_env(reporting(Retro), 2), n_steps=25, n_branches=2, check_state=False)
    assert sum(ends) > 0


@pytest.mark.parametrize(
    "kwargs, reason", [({"scenario": "race"}, "Lua"), ({"movie": "film.bk2"}, "movie")], ids=["scripts", "movie"]
)
def test_retro_with_more_state_is_refused(kwargs, reason, stable_retro):
    with pytest.raises(UnbranchableEnvError, match=f"RetroEnv that cannot be saved: .*{reason}"):
        make_brancher("snapshot", make_vec_env(lambda: Retro(**kwargs), 1))


class Doom(gym.Env):
    observation_space = spaces.Box(0, 1, (1,))
    action_space = spaces.Discrete(2)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.game = DoomGame()
        return np.zeros(1, dtype=np.float32), {}

    def step(self, action):
        return np.zeros(1, dtype=np.float32), 0.0, False, False, {}


class DoomGame:
    pass


DoomGame.__module__, DoomGame.__qualname__ = "vizdoom.vizdoom", "DoomGame"


def test_simulators_with_an_inexact_restore_are_refused_by_name():
    with pytest.raises(UnbranchableEnvError, match=r"vizdoom.vizdoom.DoomGame .*VizDoom's own save and load"):
        make_brancher("snapshot", make_vec_env(Doom, 1))


class Junction(gym.Env):
    """Nothing is to be seen of the world at first."""

    observation_space = spaces.Box(0, 1, (1,))
    action_space = spaces.Discrete(2)

    def reset(self, *, seed=None, options=None):
        import libsumo

        super().reset(seed=seed)
        libsumo.load()
        return np.zeros(1, dtype=np.float32), {}

    def step(self, action):
        import libsumo

        return np.array([float(libsumo.simulationStep() > 30)], dtype=np.float32), 0.0, False, False, {}


@pytest.fixture
def libsumo(monkeypatch):
    """A module whose world is where Python cannot look."""
    world = iter(())

    def load():
        nonlocal world
        world = iter(range(100))

    module = types.ModuleType("libsumo")
    module.load, module.simulationStep = types.MethodType(lambda _: load(), object()), lambda: next(world)
    monkeypatch.setitem(sys.modules, "libsumo", module)
    return module


def test_a_module_that_is_a_simulator_is_refused_by_name(libsumo):
    for name in ("snapshot", "replay"):
        with pytest.raises(UnbranchableEnvError, match=r"the module libsumo cannot be restored: .*saveState") as caught:
            make_brancher(name, make_vec_env(Junction, 1))
        assert "register_codec" not in str(caught.value).splitlines()[1]
    assert "the module libsumo" in check_branchable(Junction, n_steps=3).variables
