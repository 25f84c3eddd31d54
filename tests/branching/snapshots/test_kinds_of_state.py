"""Whatever kind of object an environment keeps its state in, what is committed is what is committed without branching."""

import collections
import ctypes
import datetime
import functools
import io
import itertools
import threading
import weakref
from xml.etree import ElementTree

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from gymnasium.envs.toy_text import FrozenLakeEnv
from stable_baselines3.common.vec_env import DummyVecEnv

from sb3_hybrid_grpo import UnbranchableEnvError
from sb3_hybrid_grpo.branching import make_brancher
from sb3_hybrid_grpo.branching.snapshots import Snapshot
from tests.lockstep import assert_laws, reporting


class Keeps(gym.Env):
    """Its reward tells the state, which lies in one kind of object or another, and draws a random number."""

    observation_space = spaces.Box(-np.inf, np.inf, (1,))
    action_space = spaces.Discrete(4)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.t = 0
        self.begin()
        return np.zeros(1, dtype=np.float32), {}

    def step(self, action):
        self.t += 1
        value = float(self.move(int(action))) + float(self.np_random.random())
        return np.array([value], dtype=np.float32), value, self.t == 13, False, {}


class InSet(Keeps):
    def begin(self):
        self.numbers = {8 * number for number in range(9)}

    def move(self, action):
        for number in list(self.numbers)[:action]:
            self.numbers.discard(number)
            self.numbers.add((5 * number + 3) % 1000)
        return sum(place * number for place, number in enumerate(self.numbers))


class InIterators(Keeps):
    def begin(self):
        self.count, self.cycle, self.rest = itertools.count(), itertools.cycle([5, 7, 11]), iter(range(30))

    def move(self, action):
        return next(self.count) + sum(next(self.cycle) for _ in range(action)) + (next(self.rest) if action else 0)


class InFiles(Keeps):
    def begin(self):
        self.log = io.StringIO()
        self.file = open(__file__, "rb")

    def move(self, action):
        self.log.write("x" * action)
        return self.log.tell() + len(self.file.read(action))


class InDocument(Keeps):
    def begin(self):
        self.world = ElementTree.fromstring("<world><body/></world>")

    def move(self, action):
        if action % 2:
            ElementTree.SubElement(self.world, "body")
        self.world[-1].set("name", self.world[-1].get("name", "") + str(action))
        return len(ElementTree.tostring(self.world))


class InCache(Keeps):
    def begin(self):
        self.look_up = functools.cache(lambda action: self.np_random.random())

    def move(self, action):
        return self.look_up(action)


class InGradient(Keeps):
    def begin(self):
        th.manual_seed(0)
        self.network = th.nn.Linear(1, 1)

    def move(self, action):
        self.network(th.full((1, 1), float(action))).sum().backward()
        if action == 3:
            self.network.zero_grad()
        return sum(0.0 if part.grad is None else float(part.grad.sum()) for part in self.network.parameters())


class InMemory(Keeps):
    def begin(self):
        self.bytes, self.numbers, self.trace = memoryview(bytearray(4)), (ctypes.c_int * 4)(), np.zeros(2)

    def move(self, action):
        self.bytes[action] += 1
        self.numbers[action] += 2
        if action == 2:
            self.trace.resize(self.trace.size + 1, refcheck=False)
        self.trace[-1] += 1
        return self.bytes[action] + self.numbers[action] + self.trace.sum()


class InSeedSequence(Keeps):
    def begin(self):
        self.seeds = np.random.SeedSequence(3)

    def move(self, action):
        children = self.seeds.spawn(action + 1) + self.np_random.bit_generator.seed_seq.spawn(1)
        return np.random.default_rng(children[-2]).random() + len(children[-1].spawn_key)


class InLongList(Keeps):
    def begin(self):
        self.episode = [(number, "begin") for number in range(300)]

    def move(self, action):
        self.episode.append((action, [action]))
        self.episode[-1 - action // 2][1] if action < 2 else self.episode.pop(action)
        return sum(first for first, _ in self.episode)


class InTable(Keeps):
    def begin(self):
        pandas = pytest.importorskip("pandas")
        self.table = pandas.DataFrame({"price": np.arange(20.0), "name": list("abcdefghijklmnopqrst")})

    def move(self, action):
        self.table.loc[self.t + action, "price"] += 1.5
        if action == 3:
            self.table["new"] = self.table["price"] * action
        return float(self.table["price"] @ np.arange(len(self.table))) + self.table.shape[1]


class Card(int):
    """A number that counts how often it was played."""


class Name(str):
    """A text that counts as well, and may be let go."""

    def __del__(self):
        pass


class InNumbers(Keeps):
    def begin(self):
        self.cards = [Card(number) for number in range(4)]
        self.name = Name("card")
        self.began = datetime.datetime(2026, 1, 1, tzinfo=datetime.timezone.utc)
        self.zone = self.began.tzinfo
        for value in (*self.cards, self.name):
            value.n_played = 0

    def move(self, action):
        self.cards[action].n_played += 1
        self.name.n_played += action
        return 7 * self.cards[action].n_played + self.name.n_played


class InRecords(Keeps):
    def begin(self):
        self.player = np.zeros(1, dtype=[("health", float), ("items", object)])[0]
        self.player["items"] = []
        self.others = np.zeros((2, 2), dtype=[("n", int), ("seen", object), ("pair", [("items", object)], 2)])
        self.others["seen"][1, 1], self.others["pair"]["items"][0, 1, 1] = [], []

    def move(self, action):
        self.player["health"] += action
        for items in (self.player["items"], self.others["seen"][1, 1], self.others["pair"]["items"][0, 1, 1]):
            items.append(action)
        return self.player["health"] + sum(self.player["items"]) + sum(self.others["pair"]["items"][0, 1, 1])


class InTrace(Keeps):
    def begin(self):
        self.weight = th.nn.Parameter(th.zeros(2))
        self.weight.trace, self.weight.n_steps = [0.0], 0

    def move(self, action):
        self.weight.trace.append(0.5 * self.weight.trace[-1] + action)
        self.weight.n_steps += 1
        return self.weight.trace[-1] + self.weight.n_steps


class Backwards(collections.deque):
    def __iter__(self):
        return reversed(self)


class InQueue(Keeps):
    def begin(self):
        self.queue = Backwards([1, 2, 3])

    def move(self, action):
        self.queue.append(action)
        return self.queue.popleft()


class Moves(spaces.Discrete):
    """Knows the environment that it belongs to, which cannot be copied."""

    def __init__(self, env):
        super().__init__(4)
        self.env = env


class WithMovesOfItsOwn(Keeps):
    def __init__(self):
        self.lock = threading.Lock()
        self.action_space = Moves(self)

    def begin(self):
        self.total = 0

    def move(self, action):
        with self.lock:
            self.total += action
        return self.total


KINDS = [
    *(InSet, InIterators, InFiles, InDocument, InCache, InGradient, InMemory, InSeedSequence, InLongList, InTable),
    *(InNumbers, InRecords, InTrace, InQueue, WithMovesOfItsOwn),
]


@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("cls", KINDS)
def test_laws(cls):
    def make_venv():
        return DummyVecEnv([reporting(cls)])

    assert_laws(make_venv, 30, check_state=False)


class ThawingLake(FrozenLakeEnv):
    def step(self, action):
        returned = super().step(action)
        self.P[0][action].append(self.P[0][action].pop(0))
        self.metadata["n_steps"] = self.metadata.get("n_steps", 0) + 1
        return returned


class RewardedLake(FrozenLakeEnv):
    def step(self, action):
        obs, reward, *rest = super().step(action)
        return obs, 10 * reward, *rest


def test_tables_that_a_subclass_does_not_name_are_not_saved():
    few, many = (len(Snapshot(cls()).visits) for cls in (RewardedLake, ThawingLake))
    assert few < 20 and many > 64


class CountingWrapper(gym.Wrapper):
    def step(self, action):
        self.metadata["n_steps"] += 1
        return self.env.step(action)


def test_metadata_of_wrappers():
    env = CountingWrapper(FrozenLakeEnv())
    env.metadata = {"n_steps": 0}
    env.reset()
    snapshot = Snapshot(env)
    env.step(2)
    snapshot.restore()
    assert env.metadata == {"n_steps": 0}


def test_subclasses_may_change_what_gymnasium_does_not():
    env = ThawingLake()
    env.metadata = {}
    env.reset()
    snapshot = Snapshot(env)
    before = [*env.P[0][2]]
    env.step(2)
    assert env.P[0][2] != before and env.metadata
    snapshot.restore()
    assert env.P[0][2] == before and not env.metadata


class InWeakSet(Keeps):
    def begin(self):
        self.parts = weakref.WeakSet()


class InBoundedCache(Keeps):
    def begin(self):
        self.look_up = functools.lru_cache(maxsize=2)(lambda action: self.np_random.random())


class InFinalizedObject(Keeps):
    class Part:
        def __del__(self):
            pass

    def begin(self):
        self.part = self.Part()


@pytest.mark.parametrize(
    "cls, name", [(InWeakSet, "parts"), (InBoundedCache, "look_up"), (InFinalizedObject, "part")], ids=lambda value: str(value)
)
def test_what_cannot_be_saved_is_refused_by_name(cls, name):
    with pytest.raises(UnbranchableEnvError, match=rf"{cls.__name__}\.{name} is a .* that cannot be saved"):
        make_brancher("snapshot", DummyVecEnv([cls]))
