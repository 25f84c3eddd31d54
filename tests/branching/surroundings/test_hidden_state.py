"""State that no attribute leads to is saved with the attributes, or refused by name; it is never wrong in silence."""

import warnings

import gymnasium as gym
import numpy as np
import pytest
from stable_baselines3.common.vec_env import DummyVecEnv

from sb3_hybrid_grpo import HybridGRPO, UnbranchableEnvError
from sb3_hybrid_grpo.branching import make_brancher
from sb3_hybrid_grpo.branching.simulator.simulator import Simulator
from sb3_hybrid_grpo.branching.snapshots.branch_states import SavedStates
from sb3_hybrid_grpo.branching.surroundings import hidden_state as hidden
from sb3_hybrid_grpo.branching.surroundings.hidden_places import hidden_places
from tests.envs import Walk, limited
from tests.lockstep import assert_same
from tests.modules_with_state import PLACES, REFUSED, make


def play(source, branched, n_steps=50, brancher_name="snapshot"):
    """Play with or without branches of two steps, and compare what they told with what the steps returned."""
    venv = DummyVecEnv([lambda: make(source)])
    brancher = make_brancher(brancher_name, venv) if branched else None
    venv.seed(1)
    seen = [venv.reset()]
    rng = np.random.default_rng(0)
    for _ in range(n_steps):
        actions, later_actions = rng.integers(3, size=(2, 1, 3))
        if branched:
            alive = np.ones((1, 3), dtype=bool)
            outcome = brancher.open(actions, alive, 2)
            alive &= ~outcome.terminated
            if alive.any():
                brancher.advance(later_actions, alive)
            brancher.close()
        obs, rewards, dones, infos = venv.step(actions[:, 0])
        if branched:
            assert_same(outcome.rewards[:, 0], rewards, "reward")
        seen += [obs, rewards, dones, *(info.get("terminal_observation") for info in infos)]
    return [np.asarray(part, dtype=np.float64).tobytes() for part in seen]


@pytest.mark.parametrize("place", PLACES)
def test_exact(place):
    assert play(PLACES[place], branched=True) == play(PLACES[place], branched=False)


def contents_of(env):
    simulator = Simulator(env)
    return hidden.HiddenState(simulator.root, simulator.attributes).contents


@pytest.mark.parametrize(
    "made, drawn",
    [
        ("np.random.default_rng(0)", "{}.normal()"),
        ("np.random.RandomState(0)", "{}.normal()"),
        ("torch.zeros(2)", "{}.add_(1)[0].item()"),
        ("{'weights': torch.zeros(2)}", "{}['weights'].add_(1)[0].item()"),
    ],
)
def test_equal_contents_are_equal_wherever_they_lie(made, drawn):
    count = f"    def count(self, action):\n        return {drawn.format('SHARED')}"
    source = f"import torch\nSHARED = {made}\nclass Env(Base):\n{count}"
    one, other = make(source), make(source)
    before = contents_of(one)
    assert None not in before.values() and len(before) == 1
    assert contents_of(other) == before
    one.count(0)
    assert contents_of(one) != before
    other.count(0)
    assert contents_of(one) == contents_of(other)


@pytest.mark.parametrize(
    "place, culprit",
    [
        ("cache", r"the cache of Env\.draw"),
        ("function of each episode", r"the closure variable actions of Env\.reset\.<lambda>.*another one after each reset"),
        ("iterator of a module", r"numbers of module hiding_place"),
    ],
)
def test_refused_by_name(place, culprit):
    with pytest.raises(UnbranchableEnvError, match=rf"(?s)Env.*cannot be branched: .*{culprit}.*Ways out"):
        make_brancher("snapshot", DummyVecEnv([lambda: make(REFUSED[place])]))


@pytest.mark.parametrize("make_env", [limited(), lambda: gym.make("CartPole-v1"), lambda: gym.make("Blackjack-v1")])
def test_nothing_is_added_where_there_is_nothing(make_env):
    brancher = make_brancher("snapshot", DummyVecEnv([make_env]))
    (simulator,) = brancher._simulators._simulators
    assert simulator.roots == simulator.attributes


def test_names():
    """Variables of the code that only draws, and attributes of the instance, are passed by."""
    source = """
COLORS = {"red": [255, 0, 0]}
SIZE = [3, 4]
class Env(Base):
    n_steps = 0
    def count(self, action):
        self.n_steps += 1
        return SIZE[0] + self.n_steps
    def paint(self):
        return COLORS["red"]
"""
    simulator = Simulator(make(source))
    (place,) = hidden_places(simulator.root, simulator.roots).places
    assert place.name == "the global variable SIZE of module hiding_place"


COSTLY = """
table = np.zeros(1_000_000)
class Env(Base):
    n = 0
    def count(self, action):
        Env.n += 1
        if Env.n > 40:
            table[int(action)] += 1
        return table.sum()
"""


def test_costly_variable_is_watched_until_it_changes(monkeypatch):
    """It is not saved with each branch; when it changes, this is said, and the run is right from there on."""
    monkeypatch.setattr(hidden, "_WATCHING_SHARE", 1e9)
    venv = DummyVecEnv([lambda: make(COSTLY)])
    brancher = make_brancher("snapshot", venv)
    (simulator,) = brancher._simulators._simulators
    assert type(simulator._states) is hidden.WatchedStates and len(simulator.roots) == len(simulator.attributes) + 2
    assert not brancher.can_remember, "what committed steps change would be missing from the states that are remembered"
    venv.reset()
    said = []
    for _ in range(60):
        actions = np.array([[1, 2]])
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            outcome = brancher.open(actions, np.ones((1, 2), dtype=bool), 1)
            brancher.close()
        said += [str(warning.message) for warning in caught]
        assert outcome.rewards[0, 0] == venv.step(actions[:, 0])[1][0]
    (announcement,) = said
    assert "the global variable table of module hiding_place" in announcement and "saved with every branch" in announcement


@pytest.mark.filterwarnings("ignore:To save and restore")  # it does take milliseconds, which a slow machine is told
def test_costly_variable_that_changes_at_once_is_saved():
    source = COSTLY.replace("> 40", "> 0")
    assert play(source, branched=True, n_steps=20) == play(source, branched=False, n_steps=20)
    simulator = make_brancher("snapshot", DummyVecEnv([lambda: make(source)]))._simulators._simulators[0]
    assert type(simulator._states) is SavedStates


def test_variables_are_as_they_were_when_the_probe_is_over():
    env = make(PLACES["class attribute"])
    make_brancher("snapshot", DummyVecEnv([lambda: env]))
    assert type(env).n == 0


def test_training_counts_committed_steps_only():
    env = make(PLACES["class attribute"])
    model = HybridGRPO("MlpPolicy", env, n_steps=16, batch_size=8, n_epochs=1, device="cpu").learn(32)
    assert type(env).n == 32 < model.num_simulator_steps


def test_learners_are_no_state():
    """A policy that an environment's code names is not copied with every branch."""

    class Consulting(Walk):
        def step(self, action):
            if model is not None:
                model.num_timesteps += 0
            return super().step(action)

    model = None
    env = Consulting()
    model = HybridGRPO("MlpPolicy", Walk(), n_steps=8, batch_size=8, device="cpu")
    simulator = Simulator(env)
    assert not [place for place in hidden_places(simulator.root, simulator.roots).places if place.root is model]


FRICTION = np.zeros(3)
BALL = """
<mujoco><worldbody>
  <body pos='0 0 9'><freejoint name='ball'/><geom size='.1'/><site name='goal'/></body>
</worldbody></mujoco>
"""


class Ball(gym.Env):
    """A ball that falls."""

    observation_space = gym.spaces.Box(-np.inf, np.inf, (12,), np.float64)
    action_space = gym.spaces.Discrete(3)

    def __init__(self):
        mujoco = pytest.importorskip("mujoco")
        self.model = mujoco.MjModel.from_xml_string(BALL)
        self.data = mujoco.MjData(self.model)
        self.n_steps = 0

    def reset(self, *, seed=None, options=None):
        import mujoco

        super().reset(seed=seed)
        mujoco.mj_resetData(self.model, self.data)
        return np.zeros(12), {}

    def step(self, action):
        import mujoco

        self.n_steps += 1
        mujoco.mj_step(self.model, self.data)
        obs = np.concatenate([self.data.qvel, self.data.qpos[:6]])
        return obs, float(obs.sum()), False, self.n_steps % 20 == 0, {}


def change_gravity(env, _):
    env.model.opt.gravity[2] *= 0.9


def change_time_step(env, _):
    env.model.opt.timestep *= 0.99


def change_mass(env, action):
    env.model.body("world").mass = env.model.body("world").mass + action
    env.data.qvel[0] = env.model.body("world").mass[0]


def move_goal(env, action):
    goal = env.model.site("goal")
    goal.pos[0] += action
    env.data.qvel[0] = goal.pos[0]


def change_damping(env, action):
    env.model.joint("ball").damping[:] += action


def change_friction(env, action):
    np.copyto(env.model.dof_damping, env.model.dof_damping + action)


def change_by_name(env, action):
    setattr(env.model.opt, "timestep", env.model.opt.timestep * 0.99)  # noqa: B010


@pytest.mark.filterwarnings("ignore:.* a branch changed the parameters of the MuJoCo model", "ignore:To save and restore")
@pytest.mark.parametrize("first", [0, 30], ids=["at once", "late"])
@pytest.mark.parametrize(
    "change", [change_gravity, change_time_step, change_mass, move_goal, change_damping, change_friction, change_by_name]
)
def test_models_that_steps_change(change, first, monkeypatch):
    monkeypatch.setattr(hidden, "_WATCHING_SHARE", np.inf)

    class ChangingBall(Ball):
        def step(self, action):
            if self.n_steps + 1 >= first:
                change(self, action)
            return super().step(action)

    def run(branched):
        venv = DummyVecEnv([ChangingBall])
        venv.seed(0)
        venv.reset()
        brancher = make_brancher("snapshot", venv) if branched else None
        seen = []
        for step, action in enumerate(np.random.default_rng(0).integers(3, size=(50, 1))):
            if branched:
                outcome = brancher.open(np.stack([action, action + 1], axis=1) % 3, np.ones((1, 2), dtype=bool), 1)
                brancher.close()
            _, rewards, *_ = venv.step(action)
            assert not branched or step == first or outcome.rewards[0, 0] == rewards[0]
            seen.append(rewards[0])
        return seen

    assert run(branched=True) == run(branched=False)


def test_models_that_resets_change_are_watched_and_not_saved():
    class RandomBall(Ball):
        def reset(self, **kwargs):
            result = super().reset(**kwargs)
            self.model.body_mass[:] = self.np_random.uniform(1, 2, self.model.nbody)
            return result

        def step(self, action):
            self.data.qvel[0] += action + FRICTION[0]
            return super().step(action)

    (simulator,) = make_brancher("snapshot", DummyVecEnv([RandomBall]))._simulators._simulators
    assert len(simulator.roots) == len(simulator.attributes) + 1, "the global array is saved, and the model is not"
    assert type(simulator._states) is hidden.WatchedStates


def test_context_variables_that_are_only_read_are_no_obstacle():
    source = """
from contextvars import ContextVar
request = ContextVar("request", default=1)
class Env(Base):
    n_steps = 0
    def count(self, action):
        self.n_steps += request.get()
        return self.n_steps
"""
    assert play(source, branched=True, n_steps=20) == play(source, branched=False, n_steps=20)
