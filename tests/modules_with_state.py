"""Environments that keep state where no attribute of theirs leads to, each in a module of its own that is made anew."""

import sys
import types

_HEAD = """
import functools
import numpy as np
from gymnasium import spaces
import gymnasium as gym

class Base(gym.Env):
    observation_space = spaces.Box(-10, 10, (1,))
    action_space = spaces.Discrete(3)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.position, self.age = 0.0, 0
        return np.zeros(1, dtype=np.float32), {}

    def step(self, action):
        self.age += 1
        self.position += float(action) - 1 + self.np_random.normal()
        return np.array([self.position], dtype=np.float32), float(self.count(action)), self.age >= 7, False, {}

"""

PLACES = {
    "namespace of exec": """
NAMES = {"n": 0}
exec("n += 1", NAMES)
class Env(Base):
    def count(self, action):
        exec("n += 1", NAMES)
        return NAMES["n"]
""",
    "class attribute": """
class Env(Base):
    n = 0
    def count(self, action):
        type(self).n += 1
        return self.n
""",
    "class by its name": """
class Env(Base):
    n = 0
    def count(self, action):
        Env.n += 1
        return Env.n
""",
    "class through a variable": """
class Env(Base):
    n = 0
    def count(self, action):
        mine = self.__class__
        mine.n += int(action)
        return mine.n
""",
    "attribute of the class that is made late": """
class Env(Base):
    def count(self, action):
        Env.best = max(getattr(Env, "best", 0.0), abs(self.position))
        return Env.best
""",
    "subclass of what counts": """
class Counter(Base):
    n = 0
    def count(self, action):
        type(self).n += 1
        return self.n
class Env(Counter):
    pass
""",
    "method of the class": """
class Env(Base):
    n = 0
    @classmethod
    def increase(cls):
        cls.n += 1
    def count(self, action):
        self.increase()
        return self.n
""",
    "setattr": """
class Env(Base):
    n = 0
    def count(self, action):
        setattr(type(self), "n", self.n + 1)
        return self.n
""",
    "list of the class": """
class Env(Base):
    history = []
    def count(self, action):
        self.history.append(action)
        return len(self.history) + sum(self.history)
""",
    "array of the class": """
class Env(Base):
    visits = np.zeros(3)
    def count(self, action):
        self.visits[action] += 1
        return self.visits[action]
""",
    "class of a part": """
class Ghost:
    n_made = 0
    def __init__(self):
        Ghost.n_made += 1
        self.number = Ghost.n_made
class Env(Base):
    def count(self, action):
        self.ghost = Ghost()
        return self.ghost.number
""",
    "late": """
class Env(Base):
    n = 0
    level = 1
    def count(self, action):
        Env.n += 1
        if Env.n % 23 == 0:
            Env.level += 1
        return Env.level
""",
    "global variable": """
n = 0
class Env(Base):
    def count(self, action):
        global n
        n += 1
        return n
""",
    "global variable that is made late": """
class Env(Base):
    def count(self, action):
        global best
        best = max(globals().get("best", 0.0), abs(self.position))
        return best
""",
    "global dictionary": """
SCORES = {"best": 0.0, "all": []}
class Env(Base):
    def count(self, action):
        SCORES["best"] = max(SCORES["best"], abs(self.position))
        SCORES["all"].append(action)
        return SCORES["best"] + len(SCORES["all"])
""",
    "global generator": """
GENERATOR = np.random.default_rng(0)
class Env(Base):
    def count(self, action):
        return GENERATOR.normal()
""",
    "global object": """
class World:
    def __init__(self):
        self.n = 0
    def advance(self):
        self.n += 1
        return self.n
world = World()
class Env(Base):
    def count(self, action):
        return world.advance()
""",
    "functions that call each other": """
total = [0]
def add(amount):
    total[0] += amount
def settle(amount):
    add(amount)
    return total[0]
class Env(Base):
    def count(self, action):
        return settle(int(action))
""",
    "another module": """
import hiding_place_beside
class Env(Base):
    def count(self, action):
        hiding_place_beside.n += 1
        return hiding_place_beside.n
""",
    "module imported in a step": """
class Env(Base):
    def count(self, action):
        import hiding_place_beside as beside
        beside.n += 1
        return beside.n
""",
    "closure": """
def make():
    n = 0
    class Env(Base):
        def count(self, action):
            nonlocal n
            n += 1
            return n
    return Env
Env = make()
""",
    "list of a closure": """
def make():
    actions = []
    class Env(Base):
        def count(self, action):
            actions.append(action)
            return len(actions) + sum(actions)
    return Env
Env = make()
""",
    "function held by an attribute": """
class Env(Base):
    def __init__(self):
        actions = []
        self.count = lambda action: actions.append(action) or len(actions) + sum(actions)
""",
    "decorator": """
def counting(function):
    n = 0
    @functools.wraps(function)
    def counted(*args):
        nonlocal n
        n += 1
        return function(*args) + n
    return counted
class Env(Base):
    @counting
    def count(self, action):
        return action
""",
    "default argument": """
class Env(Base):
    def count(self, action, actions=[]):
        actions.append(action)
        return len(actions) + sum(actions)
""",
    "default argument by name": """
class Env(Base):
    def count(self, action, *, counts={}):
        counts[int(action)] = counts.get(int(action), 0) + 1
        return counts[int(action)]
""",
    "two default arguments": """
class Env(Base):
    def count(self, action, actions=[], others=[]):
        (actions if action else others).append(action)
        return 10 * len(actions) + len(others)
""",
    "decorator of two methods": """
def counting(function):
    n = 0
    @functools.wraps(function)
    def counted(*args):
        nonlocal n
        n += 1
        return function(*args) + n
    return counted
class Env(Base):
    @counting
    def half(self, action):
        return action / 2
    @counting
    def count(self, action):
        return self.half(action) if action else 0.0
""",
    "beside a lock": """
import threading
class Env(Base):
    lock = threading.Lock()
    n = 0
    def count(self, action):
        with self.lock:
            setattr(type(self), "n", self.n + 1)
        return self.n
""",
    "beside compiled functions": """
scale = 1.0
double = np.vectorize(lambda x: 2 * x)
class Env(Base):
    def count(self, action):
        global scale
        scale *= 1.01
        return float(double(action)) * scale
""",
    "attribute of a function": """
def increase():
    increase.n = getattr(increase, "n", 0) + 1
    return increase.n
class Env(Base):
    def count(self, action):
        return increase()
""",
    "property": """
class Env(Base):
    n = 0
    @property
    def next_number(self):
        Env.n += 1
        return Env.n
    def count(self, action):
        return self.next_number
""",
    "method that getattr names": """
class Env(Base):
    n = 0
    def do_count(self):
        Env.n += 1
        return Env.n
    def count(self, action):
        return getattr(self, "do_" + "count")()
""",
    "wrapper": """
class Inner(Base):
    def count(self, action):
        return 1.0
class Env(gym.Wrapper):
    scale = 1.0
    def __init__(self):
        super().__init__(Inner())
    def step(self, action):
        obs, reward, *rest = self.env.step(action)
        type(self).scale *= 1.1
        return obs, reward * self.scale, *rest
""",
}

REFUSED = {
    "cache": """
class Env(Base):
    @functools.lru_cache
    def draw(self, action):
        return self.np_random.normal()
    def count(self, action):
        return self.draw(int(action))
""",
    "function of each episode": """
class Env(Base):
    def reset(self, **kwargs):
        actions = []
        self.count = lambda action: actions.append(action) or len(actions)
        return super().reset(**kwargs)
""",
    "iterator of a module": """
import itertools, threading
numbers = (n for n in itertools.count())
class Env(Base):
    def count(self, action):
        return next(numbers)
""",
}


def make(source):
    """Make an environment of new code, so that nothing of another one is left in it."""
    beside = types.ModuleType("hiding_place_beside")
    beside.n = 0
    sys.modules[beside.__name__] = beside
    module = types.ModuleType("hiding_place")
    sys.modules[module.__name__] = module
    exec(_HEAD + source, vars(module))
    return module.Env()
