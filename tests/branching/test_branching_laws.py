"""The laws of branching, bit for bit: what is branched and discarded leaves no trace, and branches tell the truth."""

import csv
import functools
import random
import sys
import types
from collections import Counter, OrderedDict, deque
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from gymnasium import spaces, wrappers
from hypothesis import given, settings
from hypothesis import strategies as st
from sb3_contrib.common.wrappers import TimeFeatureWrapper
from stable_baselines3.common.atari_wrappers import ClipRewardEnv, MaxAndSkipEnv, NoopResetEnv, StickyActionEnv, WarpFrame
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import (
    DummyVecEnv,
    SubprocVecEnv,
    VecCheckNan,
    VecExtractDictObs,
    VecFrameStack,
    VecMonitor,
    VecNormalize,
    VecTransposeImage,
)

from sb3_hybrid_grpo import BranchError
from sb3_hybrid_grpo.branching import make_brancher, register_transparent_wrapper
from tests.envs import Walk, limited
from tests.lockstep import (
    Reporter,
    assert_committed_outcome,
    assert_laws,
    assert_same,
    branch,
    describe,
    follow,
    pick,
    reporting,
    sample_actions,
    state_of,
    subproc,
)

pytestmark = pytest.mark.filterwarnings("ignore:.*use of fork:DeprecationWarning")


class StartAt(gym.Wrapper):
    """Starts every second episode in a given state, close to the end of the episode."""

    def __init__(self, env, attribute, value):
        super().__init__(env)
        self.attribute, self.value, self.n_resets = attribute, value, 0

    def reset(self, **kwargs):
        obs, info = self.env.reset(**kwargs)
        self.n_resets += 1
        if self.n_resets % 2 == 0:
            setattr(self.unwrapped, self.attribute, self.value)
        return obs, info


class Case(NamedTuple):
    """An environment with a time limit short enough, and starts close enough to the goal, to see both kinds of ends."""

    limit: int
    terminates: bool = True
    start: tuple | None = None
    n_steps: int = 45
    kwargs: dict[str, Any] = {}


def latest(name):
    return next(env_id for env_id in (f"{name}-v4", f"{name}-v3", f"{name}-v1", f"{name}-v0") if env_id in gym.registry)


CASES = {
    "CartPole-v1": Case(20),
    "Pendulum-v1": Case(20, terminates=False),
    "Acrobot-v1": Case(20, start=("state", np.array([2.2, 0.0, 0.0, 0.0]))),
    "MountainCar-v0": Case(20, start=("state", np.array([0.45, 0.03]))),
    "MountainCarContinuous-v0": Case(20, start=("state", np.array([0.4, 0.03], dtype=np.float32))),
    "FrozenLake-v1": Case(6),
    latest("Taxi"): Case(20, start=("s", 16)),
    "Blackjack-v1": Case(2),
    latest("CliffWalking"): Case(20, start=("s", 35)),
    "Ant-v5": Case(12, kwargs={"healthy_z_range": (0.6, 1.0)}),
    "HalfCheetah-v5": Case(20, terminates=False),
    "Hopper-v5": Case(24, n_steps=50),
    "Humanoid-v5": Case(21),
    "HumanoidStandup-v5": Case(20, terminates=False),
    "InvertedPendulum-v5": Case(6),
    "InvertedDoublePendulum-v5": Case(6),
    "Pusher-v5": Case(20, terminates=False),
    "Reacher-v5": Case(20, terminates=False),
    "Swimmer-v5": Case(20, terminates=False),
    "Walker2d-v5": Case(25),
}


def make_case(env_id):
    case = CASES[env_id]
    env = gym.make(env_id, max_episode_steps=case.limit, **case.kwargs)
    if case.start is not None:
        env = StartAt(env, *case.start)
    return Monitor(env)


@pytest.mark.parametrize("vec_env_cls", [DummyVecEnv, subproc()], ids=["DummyVecEnv", "SubprocVecEnv"])
@pytest.mark.parametrize("env_id", CASES)
def test_environments(env_id, vec_env_cls):
    case = CASES[env_id]
    ends = assert_laws(
        lambda: make_vec_env(reporting(make_case, env_id=env_id), 2, vec_env_cls=vec_env_cls), n_steps=case.n_steps
    )
    assert ends.truncated > 0
    assert (ends.terminated > 0) == case.terminates


@pytest.mark.parametrize("start_method", ["forkserver", "spawn"])
def test_start_methods(start_method):
    """What a worker needs to know travels to processes that start from nothing."""

    def make_venv(start_method):
        return make_vec_env(reporting(limited(12)), 2, vec_env_cls=subproc(start_method))

    ends = assert_laws(lambda: make_venv(start_method), n_steps=40, make_reference=lambda: make_venv("fork"))
    assert min(ends) > 0


ACTION_SPACES = [
    spaces.Box(-1, 1, (2,)),
    spaces.Box(-3, 5, (2, 2), np.float64),
    spaces.Discrete(3, start=-1),
    spaces.MultiDiscrete([2, 3]),
    spaces.MultiBinary(4),
]


@pytest.mark.parametrize("vec_env_cls", [DummyVecEnv, subproc()], ids=["DummyVecEnv", "SubprocVecEnv"])
@pytest.mark.parametrize(
    "observation, action_space",
    [
        *(pytest.param("box", space, id=type(space).__name__) for space in ACTION_SPACES),
        *(pytest.param(name, ACTION_SPACES[0], id=f"{name} observations") for name in ("dict", "image", "discrete")),
    ],
)
def test_spaces(observation, action_space, vec_env_cls):
    make_env = reporting(limited(12, observation=observation, action_space=action_space))
    assert sum(assert_laws(lambda: make_vec_env(make_env, 2, vec_env_cls=vec_env_cls), n_steps=40)) > 3


class Hoarder(gym.Env):
    """Keeps its state in everything that can hold one, and changes all of it in place."""

    def __init__(self):
        self.observation_space = spaces.Dict(
            {"image": spaces.Box(0, 255, (5, 5, 3), np.uint8), "numbers": spaces.Box(-np.inf, np.inf, (8,), np.float64)}
        )
        self.action_space = spaces.Discrete(5)

    class Agent:
        __slots__ = ("energy", "path")

        def __init__(self):
            self.energy, self.path = 10.0, [(2, 2)]

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.board = np.zeros((5, 5), dtype=np.int8)
        self.window = self.board[1:4, 1:4]
        self.agent = self.Agent()
        self.agents = {"first": self.agent, "others": [self.Agent(), self.Agent()]}
        self.agent.path.append(self.agent)
        self.visited = {(2, 2)}
        self.recent = deque([0.0] * 3, maxlen=3)
        self.counts = Counter()
        self.order = OrderedDict((name, 0) for name in "abc")
        self.log = bytearray()
        self.weather = random.Random(int(self.np_random.integers(100)))
        self.noise = np.random.RandomState(int(self.np_random.integers(100)))
        self.filter = th.nn.BatchNorm1d(2, affine=False)
        self.act = functools.partial(self._move, self.agent)
        return self._observe(), {}

    def _move(self, agent, action):
        agent.path[0] = tuple(np.clip(np.add(agent.path[0], [(0, 0), (0, 1), (1, 0), (0, -1), (-1, 0)][action]), 0, 4))
        agent.energy -= self.weather.random()

    def _observe(self):
        image = np.repeat(self.board[:, :, None], 3, axis=2).astype(np.uint8)
        numbers = [
            self.agent.energy,
            len(self.visited),
            sum(self.recent),
            self.counts["move"],
            next(iter(self.order.values())),
        ]
        return {"image": image, "numbers": np.array([*numbers, *self.filter.running_mean, len(self.log)], dtype=np.float64)}

    def step(self, action):
        self.act(action)
        self.board[self.agent.path[0]] += 1
        self.window *= -1
        self.visited.add(self.agent.path[0])
        self.recent.append(self.noise.normal())
        self.counts["move" if action else "rest"] += 1
        self.order.move_to_end("abc"[action % 3])
        self.order["abc"[action % 3]] += 1
        self.log += b"x" * int(action)
        self.filter(th.tensor([[self.agent.energy, 0.0], [0.0, float(action)]]))
        self.agents["others"].reverse()
        self.agents["others"][0].energy += 1
        self.agents.pop("first", None) if self.action_space.sample() > 2 else self.agents.update(first=self.agent)
        if self.counts["rest"] == 2:
            self.surprise = ["attribute"]
        return self._observe(), self.recent[-1], self.agent.energy < 5, False, {"order": list(self.order)}


@pytest.mark.parametrize("vec_env_cls", [DummyVecEnv, subproc()], ids=["DummyVecEnv", "SubprocVecEnv"])
def test_environment_with_state_in_all_kinds_of_objects(vec_env_cls):
    make_env = reporting(lambda: gym.wrappers.TimeLimit(Hoarder(), 11))
    assert min(assert_laws(lambda: make_vec_env(make_env, 2, vec_env_cls=vec_env_cls), n_steps=40)) > 0


def history(make_env, plan, branched):
    """Follow a plan of macro-steps, each with any number of branches; also without the branches."""
    venv = make_vec_env(reporting(make_env), 2, seed=3)
    venv.env_method("seed_everything", 3)
    brancher = make_brancher("snapshot", venv)
    seen = [venv.reset()]
    for seed, n_branches, interlude in plan:
        rng = np.random.default_rng(seed)
        committed = sample_actions(venv.action_space, rng, (2,))
        for _ in range(2 if interlude == "branch twice" else 1):
            if branched and n_branches > 0:
                branch(brancher, sample_actions(venv.action_space, rng, (2, n_branches)))
        if interlude == "reset":
            seen.append(venv.reset())
        elif interlude == "seed":
            venv.seed(seed)
            seen.append(venv.reset())
        elif interlude == "another brancher":
            brancher = make_brancher("snapshot", venv)
        seen.append(venv.step(committed))
    return describe(seen), state_of(venv)


INTERLUDES = st.sampled_from([None, None, "reset", "seed", "branch twice", "another brancher"])


@pytest.mark.parametrize(
    "make_env",
    [
        limited(9, observation="dict"),
        lambda: gym.make("CartPole-v1", max_episode_steps=15),
        lambda: gym.make("Hopper-v5", max_episode_steps=15),
        lambda: gym.wrappers.TimeLimit(Hoarder(), 11),
        lambda: gym.wrappers.NormalizeReward(gym.wrappers.StickyAction(limited(9)(), 0.4)),
    ],
    ids=["Walk", "CartPole", "Hopper", "Hoarder", "wrappers"],
)
@settings(max_examples=10, derandomize=True, deadline=None, database=None)
@given(plan=st.lists(st.tuples(st.integers(0, 2**16), st.integers(0, 3), INTERLUDES), max_size=25))
def test_any_plan_of_branches_leaves_no_trace(make_env, plan):
    assert history(make_env, plan, branched=True) == history(make_env, plan, branched=False)


@pytest.mark.parametrize("env_id", ["CartPole-v1", "FrozenLake-v1", "Hopper-v5"])
def test_branches_of_a_state_share_their_random_numbers(env_id):
    """Equal actions have equal outcomes, whatever stands before them."""
    venv = make_vec_env(lambda: gym.make(env_id), 2, seed=0)
    brancher = make_brancher("snapshot", venv)
    venv.reset()
    rng = np.random.default_rng(0)
    for _ in range(10):
        actions = sample_actions(venv.action_space, rng, (2, 4))
        outcome = branch(brancher, actions)
        permuted = branch(brancher, actions[:, [3, 1, 1, 0]])
        assert_same(permuted.observations, outcome.observations[:, [3, 1, 1, 0]], "observations")
        assert_same(permuted.rewards, outcome.rewards[:, [3, 1, 1, 0]], "rewards")
        assert (permuted.terminated == outcome.terminated[:, [3, 1, 1, 0]]).all()
        venv.step(actions[:, 0])


VEC_WRAPPERS = {
    "VecNormalize": lambda venv: VecNormalize(venv),
    "VecNormalize, clipped": lambda venv: VecNormalize(venv, clip_obs=0.5, clip_reward=0.3, gamma=0.5),
    "VecNormalize, observations only": lambda venv: VecNormalize(venv, norm_reward=False),
    "VecNormalize, rewards only": lambda venv: VecNormalize(venv, norm_obs=False),
    "VecNormalize, not training": lambda venv: VecNormalize(venv, training=False),
    "VecNormalize twice": lambda venv: VecNormalize(VecNormalize(venv), gamma=0.5),
    "VecFrameStack": lambda venv: VecFrameStack(venv, 3),
    "VecFrameStack of normalised": lambda venv: VecFrameStack(VecNormalize(venv), 3),
    "VecNormalize of stacked": lambda venv: VecNormalize(VecFrameStack(venv, 3)),
    "VecMonitor": lambda venv: VecMonitor(VecNormalize(venv)),
    "VecCheckNan": lambda venv: VecCheckNan(VecMonitor(venv), raise_exception=True),
    "all": lambda venv: VecCheckNan(VecMonitor(VecFrameStack(VecNormalize(VecMonitor(venv)), 2)), raise_exception=True),
}
IMAGE_WRAPPERS = {
    "VecTransposeImage": lambda venv: VecTransposeImage(venv),
    "VecTransposeImage, skipped": lambda venv: VecTransposeImage(venv, skip=True),
    "VecFrameStack, channels last": lambda venv: VecTransposeImage(VecFrameStack(venv, 2, channels_order="last")),
    "VecFrameStack, channels first": lambda venv: VecFrameStack(VecTransposeImage(venv), 4, channels_order="first"),
    "VecFrameStack, found out": lambda venv: VecFrameStack(VecTransposeImage(venv), 2),
    "VecNormalize": lambda venv: VecTransposeImage(VecFrameStack(VecNormalize(venv, norm_obs=False), 3)),
}
DICT_WRAPPERS = {
    "VecNormalize": lambda venv: VecNormalize(venv, norm_obs_keys=["vec"]),
    "VecTransposeImage": lambda venv: VecTransposeImage(VecNormalize(venv, norm_obs_keys=["vec"])),
    "VecFrameStack": lambda venv: VecFrameStack(venv, 2, channels_order={"img": "last", "vec": None}),
    "VecFrameStack, channels first": lambda venv: VecFrameStack(
        VecTransposeImage(venv), 2, channels_order={"img": "first", "vec": "first"}
    ),
    "VecExtractDictObs, image": lambda venv: VecFrameStack(VecTransposeImage(VecExtractDictObs(venv, "img")), 2),
    "VecExtractDictObs, vector": lambda venv: VecFrameStack(VecNormalize(VecExtractDictObs(venv, "vec")), 2),
}


class Postcard(Walk):
    """Sends an image and a vector."""

    def __init__(self):
        super().__init__(observation="image")
        self.vec_space = spaces.Box(-10, 10, (2,))
        self.observation_space = spaces.Dict({"img": self.observation_space, "vec": self.vec_space})

    def _observe(self):
        return {"img": super()._observe(), "vec": np.array([self.position, self.velocity], dtype=np.float32)}


def postcards():
    return gym.wrappers.TimeLimit(Postcard(), 12)


@pytest.mark.parametrize(
    "make_env, vec_wrapper",
    [
        *(pytest.param(limited(12), wrap, id=f"box, {name}") for name, wrap in VEC_WRAPPERS.items()),
        *(pytest.param(limited(12, observation="image"), wrap, id=f"image, {name}") for name, wrap in IMAGE_WRAPPERS.items()),
        *(pytest.param(postcards, wrap, id=f"dict, {name}") for name, wrap in DICT_WRAPPERS.items()),
    ],
)
def test_vec_wrappers(make_env, vec_wrapper):
    """Law 2 holds for what the policy sees, and Law 1 for statistics, stacks and counters."""
    for vec_env_cls in (DummyVecEnv, subproc()):
        ends = assert_laws(lambda cls=vec_env_cls: vec_wrapper(cls([reporting(make_env)] * 2)), 25)
        assert sum(ends) > 0


def test_all_branches_of_a_step_are_normalised_with_the_statistics_of_the_committed_step():
    venv = VecNormalize(make_vec_env(limited(12), 2, seed=0))
    brancher = make_brancher("snapshot", venv)
    venv.reset()
    rng = np.random.default_rng(0)
    for _ in range(20):
        actions = sample_actions(venv.action_space, rng, (2, 3))
        outcome = branch(brancher, actions)
        count = venv.obs_rms.count
        venv.step(actions[:, 0])
        observed = brancher.observed(outcome)
        assert venv.obs_rms.count == count + 2
        assert_same(observed.observations, venv.normalize_obs(outcome.observations), "observations")
        assert_same(observed.rewards, venv.normalize_reward(outcome.rewards), "rewards")
        assert not np.array_equal(observed.observations, outcome.observations)


class Arcade(Walk):
    """Looks like a game, to the wrappers of games."""

    def __init__(self, **kwargs):
        super().__init__(action_space=spaces.Discrete(3), **kwargs)

    def get_action_meanings(self):
        return ["NOOP", "FIRE", "UP"]

    def render(self):
        return np.full((8, 8, 3), int(20 * abs(self.position)), dtype=np.uint8)


WRAPPERS = {
    "NormalizeObservation": lambda: wrappers.NormalizeObservation(Walk()),
    "NormalizeReward": lambda: wrappers.NormalizeReward(Walk()),
    "FrameStackObservation": lambda: wrappers.FrameStackObservation(Walk(), 3),
    "FrameStackObservation, dict": lambda: wrappers.FrameStackObservation(wrappers.FilterObservation(Postcard(), ["vec"]), 3),
    "TimeAwareObservation": lambda: wrappers.TimeAwareObservation(wrappers.TimeLimit(Walk(), 9)),
    "ClipAction": lambda: wrappers.ClipAction(Walk()),
    "RescaleAction": lambda: wrappers.RescaleAction(Walk(), np.float32(-0.5), np.float32(0.5)),
    "StickyAction": lambda: wrappers.StickyAction(Walk(), 0.5, (1, 3)),
    "RepeatAction": lambda: wrappers.RepeatAction(Walk(), 2),
    "TransformAction": lambda: wrappers.TransformAction(Walk(), lambda action: action / 2, spaces.Box(-1, 1, (2,))),
    "TransformObservation": lambda: wrappers.TransformObservation(Walk(), lambda obs: obs / 2, spaces.Box(-5, 5, (2,))),
    "TransformReward": lambda: wrappers.TransformReward(Walk(), lambda reward: reward / 2),
    "ClipReward": lambda: wrappers.ClipReward(Walk(), -0.5, 0.5),
    "DelayObservation": lambda: wrappers.DelayObservation(Walk(), 2),
    "MaxAndSkipObservation": lambda: wrappers.MaxAndSkipObservation(Walk(), 2),
    "FlattenObservation": lambda: wrappers.FlattenObservation(Walk("dict")),
    "FilterObservation": lambda: wrappers.FilterObservation(Walk("dict"), ["position"]),
    "RescaleObservation": lambda: wrappers.RescaleObservation(Walk(), np.float32(-1), np.float32(1)),
    "ReshapeObservation": lambda: wrappers.ReshapeObservation(Walk(), (2, 1)),
    "DtypeObservation": lambda: wrappers.DtypeObservation(Walk("image"), np.float32),
    "DiscretizeObservation": lambda: wrappers.DiscretizeObservation(Walk(), 5),
    "AddRenderObservation": lambda: wrappers.AddRenderObservation(Arcade(render_mode="rgb_array")),
    "AddWhiteNoise": lambda: wrappers.AddWhiteNoise(Arcade(render_mode="rgb_array"), 0.5),
    "RecordEpisodeStatistics": lambda: wrappers.NormalizeReward(wrappers.RecordEpisodeStatistics(Walk())),
    "OrderEnforcing": lambda: wrappers.ClipReward(wrappers.OrderEnforcing(Walk()), -1, 1),
    "PassiveEnvChecker": lambda: wrappers.PassiveEnvChecker(Walk()),
    "Autoreset": lambda: wrappers.Autoreset(Walk()),
    "Monitor": lambda: wrappers.NormalizeObservation(Monitor(wrappers.FrameStackObservation(Monitor(Walk()), 2))),
    "SB3's MaxAndSkipEnv": lambda: MaxAndSkipEnv(Walk(), 3),
    "SB3's StickyActionEnv": lambda: StickyActionEnv(Arcade(), 0.5),
    "SB3's NoopResetEnv": lambda: NoopResetEnv(Arcade(), 3),
    "SB3's ClipRewardEnv": lambda: ClipRewardEnv(Walk()),
    "SB3's WarpFrame": lambda: WarpFrame(wrappers.AddRenderObservation(Arcade(render_mode="rgb_array")), 7, 7),
    "sb3-contrib's TimeFeatureWrapper": lambda: TimeFeatureWrapper(Walk(), max_steps=9),
}


@pytest.mark.parametrize("make_env", [pytest.param(make_env, id=name) for name, make_env in WRAPPERS.items()])
def test_wrappers(make_env):
    """Between the environment and its time limit."""
    try:
        make_env()
    except AttributeError as error:
        pytest.skip(f"this version of Gymnasium lacks it: {error}")
    ends = assert_laws(lambda: make_vec_env(reporting(lambda: wrappers.TimeLimit(make_env(), 10)), 2), 35)
    assert sum(ends) > 0


class Bonus(gym.Wrapper):
    """Adds the return of the episode at its end, if it is told."""

    def step(self, action):
        obs, reward, terminated, truncated, info = self.env.step(action)
        told = [info[key]["r"] for key in ("episode", "other") if key in info]
        return obs, reward + sum(told), terminated, truncated, info


@pytest.mark.parametrize("recorder", [Monitor, wrappers.RecordEpisodeStatistics])
def test_wrappers_that_ask_for_statistics(recorder):
    ends = assert_laws(lambda: make_vec_env(reporting(lambda: Bonus(recorder(wrappers.TimeLimit(Walk(), 5)))), 2), 35)
    assert sum(ends) > 0


def test_branches_leave_no_rows_in_a_file_of_statistics(tmp_path):
    venv = DummyVecEnv([lambda: Bonus(Monitor(wrappers.TimeLimit(Walk(), 3), str(tmp_path / "log")))])
    venv.seed(0)
    venv.reset()
    brancher = make_brancher("snapshot", venv)
    actions = np.ones((1, 2), dtype=int)
    for _ in range(6):
        outcome = brancher.open(actions, np.ones((1, 2), dtype=bool), horizon=1)
        brancher.close()
        _, rewards, dones, _ = venv.step(actions[:, 0])
        assert (outcome.rewards[0, 0], outcome.truncated[0, 0]) == (pytest.approx(rewards[0]), dones[0])
    venv.close()
    assert len((tmp_path / "log.monitor.csv").read_text().splitlines()) == 2 + 2


def test_generator_that_is_first_needed_in_a_branch():
    """Without a seed a generator is made when it is first asked: not one by each branch."""

    class Lazy(gym.Env):
        observation_space = spaces.Box(-np.inf, np.inf, (2,))
        action_space = spaces.Discrete(4)

        def reset(self, *, seed=None, options=None):
            return np.zeros(2, dtype=np.float32), {}

        def step(self, action):
            return np.array([self.np_random.normal(), self.action_space.sample()], dtype=np.float32), 0.0, False, False, {}

    env = Lazy()
    venv = DummyVecEnv([lambda: env])
    brancher = make_brancher("snapshot", venv)
    venv.reset()
    seen = set()
    for _ in range(20):
        outcome = branch(brancher, np.zeros((1, 3), dtype=int))
        obs, *_ = venv.step([0])
        assert_same(outcome.observations, np.repeat(obs[:, None], 3, axis=1), "observation")
        seen.add(obs[0, 0])
    assert len(seen) == 20


@pytest.mark.parametrize("vec_env_cls", [DummyVecEnv, subproc()], ids=["DummyVecEnv", "SubprocVecEnv"])
def test_environment_that_is_more_precise_than_its_space(vec_env_cls):
    """Branches have the precision of the committed step, which differs between vectorised environments."""

    class Precise(Walk):
        def _observe(self):
            return np.array([self.position, self.velocity])

        def step(self, action):
            obs, reward, *rest = super().step(action)
            return obs, 0 if reward > -1 else reward, *rest

    def make_env():
        return Reporter(wrappers.TimeLimit(Precise(), 10**6))

    assert_laws(lambda: VecNormalize(make_vec_env(make_env, 2, vec_env_cls=vec_env_cls)), 2)


def read_monitor(path):
    """Return the rows of a monitor file without wall-clock times."""
    header, *rows = path.read_text().splitlines()
    assert header.startswith("#")
    return [{key: value for key, value in row.items() if key != "t"} for row in csv.DictReader(rows)]


@pytest.mark.parametrize("vec_env_cls", [DummyVecEnv, subproc()], ids=["DummyVecEnv", "SubprocVecEnv"])
def test_monitor_files(vec_env_cls, tmp_path):
    """No branch writes a row: not those of a monitor outside, nor of one between other wrappers."""

    def make_env(folder):
        env = Monitor(wrappers.TimeLimit(Walk(), 9), str(folder / "inner"))
        return Reporter(wrappers.NormalizeReward(env))

    def make_venv(folder):
        folder.mkdir()
        return make_vec_env(lambda: make_env(folder), 1, monitor_dir=str(folder), vec_env_cls=vec_env_cls)

    plain, _ = follow(make_venv(tmp_path / "plain"), 50, branched=False)
    branched, ends = follow(make_venv(tmp_path / "branched"), 50)
    assert describe([step[:4] for step in branched[1:]]) == describe([step[:4] for step in plain[1:]])
    for name in ("0.monitor.csv", "inner.monitor.csv"):
        rows = read_monitor(tmp_path / "branched" / name)
        assert rows == read_monitor(tmp_path / "plain" / name)
        assert len(rows) == sum(ends) >= 5


def test_vec_monitor_file(tmp_path):
    def make_venv(name):
        return VecMonitor(VecNormalize(DummyVecEnv([reporting(limited(9))] * 2)), str(tmp_path / name))

    plain, _ = follow(make_venv("plain"), 50, branched=False)
    branched, ends = follow(make_venv("branched"), 50)
    assert describe([step[:4] for step in branched[1:]]) == describe([step[:4] for step in plain[1:]])
    rows = read_monitor(tmp_path / "branched.monitor.csv")
    assert rows == read_monitor(tmp_path / "plain.monitor.csv")
    assert len(rows) == sum(ends) >= 5


class Recorder(gym.Wrapper):
    """Keeps what it sees outside its attributes, where no snapshot reaches it."""

    seen: list[float] = []

    def step(self, action):
        obs, reward, terminated, truncated, info = self.env.step(action)
        self.seen.append(float(reward))
        return obs, reward, terminated, truncated, info


register_transparent_wrapper(Recorder)


def test_recorders_see_only_what_is_committed(tmp_path, monkeypatch):
    class Endless(Arcade):
        def step(self, action):
            obs, reward, _, _, info = super().step(action)
            return obs, reward, False, False, info

    monkeypatch.setitem(sys.modules, "moviepy", types.ModuleType("moviepy"))
    Recorder.seen.clear()
    video = wrappers.RecordVideo(
        Endless(render_mode="rgb_array"), str(tmp_path / "videos"), step_trigger=lambda step: step == 0
    )
    frames = wrappers.RenderCollection(Recorder(wrappers.NormalizeReward(video)))
    statistics = wrappers.RecordEpisodeStatistics(frames)
    venv = DummyVecEnv([lambda: wrappers.TimeLimit(Recorder(statistics), 10)])
    brancher = make_brancher("snapshot", venv)
    venv.reset()
    n_frames = len(frames.frame_list)
    for step in range(8):
        branch(brancher, np.array([[0, 1, 2]]))
        venv.step(np.array([1]))
        assert len(Recorder.seen) == 2 * (step + 1)
        assert len(video.recorded_frames) == step + 1
        assert len(frames.frame_list) == n_frames + step + 1
        assert statistics.episode_lengths == step + 1
    video.recording = False
    video.recorded_frames.clear()


def test_transparent_wrappers_are_known_in_workers():
    """Also to a worker that never imported the module that registers them."""

    class Local(Recorder):
        seen: list[float] = []

        def n_seen(self):
            return len(self.seen)

    register_transparent_wrapper(Local)
    venv = SubprocVecEnv([lambda: wrappers.TimeLimit(Local(Walk()), 10)], start_method="spawn")
    brancher = make_brancher("snapshot", venv)
    venv.reset()
    branch(brancher, np.zeros((1, 3, 2), dtype=np.float32))
    assert venv.env_method("n_seen") == [0]
    venv.step(np.zeros((1, 2), dtype=np.float32))
    assert venv.env_method("n_seen") == [1]
    venv.close()


@pytest.mark.parametrize("set_in", ["constructor", "class"])
def test_environment_for_human_eyes_shows_no_branches(set_in):
    class Screen(Walk):
        shown: list[float] = []

        def step(self, action):
            result = super().step(action)
            if self.render_mode == "human":
                self.shown.append(self.position)
            return result

    if set_in == "class":
        Screen.render_mode = "human"
    env = Screen(render_mode="human")
    if set_in == "class":
        del env.render_mode
    venv = DummyVecEnv([lambda: wrappers.TimeLimit(env, 10)])
    brancher = make_brancher("snapshot", venv)
    venv.reset()
    before = describe(env)
    branch(brancher, np.zeros((1, 3, 2), dtype=np.float32))
    assert not env.shown
    assert describe(env) == before
    venv.step(np.zeros((1, 2), dtype=np.float32))
    assert len(env.shown) == 1


def test_actions_that_the_environment_overwrites():
    class Overwrites(Walk):
        def step(self, action):
            result = super().step(action)
            action[...] = 7
            return result

    venv = DummyVecEnv([lambda: Reporter(wrappers.TimeLimit(Overwrites(), 9))])
    follow(venv, 20)


class Trap(Walk):
    """Raises when the first component of an action says so, after it has changed all there is to change."""

    def step(self, action):
        result = super().step(action)
        np.random.random()
        if action[0] > 0.9:
            self.surprise = True
            th.rand(1)
            random.random()
            raise ArithmeticError("caught in the trap")
        return result


class RaisingWrapper(gym.Wrapper):
    """Raises like ``Trap``, but when the environment inside has made its step."""

    count = 0

    def step(self, action):
        self.count += 1
        result = self.env.step(action)
        if action[0] > 0.9:
            raise ArithmeticError("caught in the trap")
        return result


TRAPS = {
    "environment": (Trap, lambda: wrappers.TimeLimit(Trap(), 12)),
    "wrapper": (RaisingWrapper, lambda: wrappers.NormalizeReward(RaisingWrapper(limited(12)()))),
    "wrapper, monitored": (RaisingWrapper, lambda: RaisingWrapper(Monitor(limited(12)()))),
    "MuJoCo": (RaisingWrapper, lambda: RaisingWrapper(gym.make("Hopper-v5", max_episode_steps=12))),
}


@pytest.fixture
def tame(monkeypatch):
    """Keep the probe of the brancher, which samples actions, out of the traps."""
    monkeypatch.setattr(spaces.Box, "sample", lambda self: np.full(self.shape, -0.1, dtype=self.dtype))


@pytest.mark.parametrize("vec_env_cls", [DummyVecEnv, subproc()], ids=["DummyVecEnv", "SubprocVecEnv"])
@pytest.mark.parametrize("trap", TRAPS)
def test_branch_that_raises(trap, vec_env_cls, tame):
    """Law 3: in whichever environment and branch, all environments and generators stay as they were, and go on."""
    raiser, make_env = TRAPS[trap]
    venv = make_vec_env(reporting(make_env), 2, vec_env_cls=vec_env_cls)
    reference = make_vec_env(reporting(make_env), 2, vec_env_cls=vec_env_cls)
    brancher = make_brancher("snapshot", venv)
    for each in (venv, reference):
        each.env_method("seed_everything", 0)
        each.seed(0)
        each.reset()
    rng = np.random.default_rng(0)
    for step in range(30):
        actions = np.clip(sample_actions(venv.action_space, rng, (2, 3)), -0.9, 0.9)
        committed = actions[:, 0].copy()
        env_idx, branch_idx = step % 2, step % 3
        actions[env_idx, branch_idx, 0] = 1.0
        before = state_of(venv)
        with pytest.raises(BranchError, match=rf"(?s)environment {env_idx}|Environment {env_idx}.*{raiser.__name__}") as error:
            branch(brancher, actions)
        assert "ArithmeticError" in str(error.value)
        assert "caught in the trap" in str(error.value)
        assert raiser.__name__ in str(error.value)
        assert state_of(venv) == before
        if vec_env_cls is DummyVecEnv:
            assert isinstance(error.value.__cause__, ArithmeticError)
        assert describe(branched_step(venv, committed)) == describe(branched_step(reference, committed))
    venv.close()
    reference.close()


def branched_step(venv, actions):
    """Step with global generators of its own: two environments in one process share them."""
    kept = np.random.get_state()
    np.random.seed(0)
    result = venv.step(actions)
    np.random.set_state(kept)
    return result


def test_interrupted_branch(tame):
    """Ctrl-C in a branch stays what it is, and leaves nothing behind."""

    class Interrupted(Walk):
        def step(self, action):
            result = super().step(action)
            if action[0] > 0.9:
                raise KeyboardInterrupt
            return result

    venv = DummyVecEnv([lambda: Reporter(wrappers.TimeLimit(Interrupted(), 12))])
    brancher = make_brancher("snapshot", venv)
    venv.seed(0)
    venv.reset()
    before = state_of(venv)
    with pytest.raises(KeyboardInterrupt):
        branch(brancher, np.ones((1, 2, 2), dtype=np.float32))
    assert state_of(venv) == before


def test_outcomes_are_those_of_fresh_copies():
    """Not only the committed branch: every outcome is that of a second environment brought to the same state."""
    venv = make_vec_env(lambda: gym.make("Hopper-v5", max_episode_steps=30), 1, seed=0)
    brancher = make_brancher("snapshot", venv)
    venv.reset()
    rng = np.random.default_rng(0)
    taken: list[np.ndarray] = []
    for _ in range(12):
        actions = sample_actions(venv.action_space, rng, (1, 3))
        outcome = branch(brancher, actions)
        for idx in range(3):
            copy = gym.make("Hopper-v5", max_episode_steps=30)
            copy.reset(seed=0)
            for action in taken:
                copy.step(action)
            obs, reward, terminated, truncated, _ = copy.step(actions[0, idx])
            assert_same(pick(outcome.observations, (0, idx)), obs, "observation")
            assert_same(outcome.rewards[0, idx], np.float32(reward), "reward")
            assert (outcome.terminated[0, idx], outcome.truncated[0, idx]) == (terminated, truncated)
        taken.append(actions[0, 0])
        venv.step(actions[:, 0])
    assert not np.array_equal(outcome.observations[0, 0], outcome.observations[0, 1])


PATHS = {
    "CartPole": lambda: make_case("CartPole-v1"),
    "FrozenLake": lambda: make_case("FrozenLake-v1"),
    "Hopper": lambda: make_case("Hopper-v5"),
    "Ant": lambda: make_case("Ant-v5"),
    "dict": limited(9, observation="dict"),
    "Hoarder": lambda: wrappers.TimeLimit(Hoarder(), 11),
    "wrappers": lambda: wrappers.FrameStackObservation(wrappers.NormalizeReward(wrappers.StickyAction(limited(9)(), 0.4)), 3),
}


@pytest.mark.parametrize("vec_env_cls", [DummyVecEnv, subproc()], ids=["DummyVecEnv", "SubprocVecEnv"])
@pytest.mark.parametrize("make_env", PATHS.values(), ids=PATHS)
def test_branches_of_several_steps(make_env, vec_env_cls):
    """The branch that takes the actions to come sees what will come, to the end of the episode and no further."""
    n_steps, horizon = 30, 5
    venv = vec_env_cls([reporting(make_env)] * 2)
    venv.env_method("seed_everything", 0)
    brancher = make_brancher("snapshot", venv)
    venv.seed(0)
    venv.reset()
    committed = sample_actions(venv.action_space, np.random.default_rng(0), (n_steps + horizon, 2))
    rng = np.random.default_rng(1)
    paths, results = [], []
    for step in range(n_steps):
        before = state_of(venv)
        path = []
        alive = np.array([[True, True, False], [True, True, True]])
        for ahead in range(horizon):
            actions = sample_actions(venv.action_space, rng, (2, 3))
            actions[:, 0] = committed[step + ahead]
            outcome = brancher.advance(actions, alive) if ahead else brancher.open(actions, alive, horizon)
            assert state_of(venv) == before
            assert not outcome.rewards[~alive].any()
            path.append((outcome, alive))
            alive = alive & ~(outcome.terminated | outcome.truncated)
        brancher.close()
        paths.append(path)
        results.append(venv.step(committed[step]))
    venv.close()
    n_ends = 0
    for step, path in enumerate(paths):
        for env_idx in range(2):
            for ahead, (outcome, alive) in enumerate(path[: n_steps - step]):
                if not alive[env_idx, 0]:
                    n_ends += 1
                    break
                assert_committed_outcome(outcome, *results[step + ahead], env_idxs=[env_idx])
    assert n_ends > 0


@pytest.mark.parametrize("vec_env_cls", [DummyVecEnv, subproc()], ids=["DummyVecEnv", "SubprocVecEnv"])
def test_branch_that_raises_in_a_later_step(vec_env_cls, tame):
    venv = vec_env_cls([reporting(lambda: wrappers.TimeLimit(Trap(), 12))] * 2)
    brancher = make_brancher("snapshot", venv)
    venv.env_method("seed_everything", 0)
    venv.seed(0)
    venv.reset()
    alive = np.ones((2, 3), dtype=bool)
    for _ in range(5):
        actions = np.zeros((2, 3, 2), dtype=np.float32)
        before = state_of(venv)
        expected = [brancher.open(actions, alive, 3), brancher.advance(actions, alive)]
        actions[1, 2, 0] = 1.0
        with pytest.raises(BranchError, match="caught in the trap"):
            brancher.advance(actions, alive)
        assert state_of(venv) == before
        actions[1, 2, 0] = 0.0
        again = [brancher.open(actions, alive, 3), brancher.advance(actions, alive)]
        assert describe(again) == describe(expected)
        brancher.close()
        assert state_of(venv) == before
        venv.step(actions[:, 0])
    venv.close()
