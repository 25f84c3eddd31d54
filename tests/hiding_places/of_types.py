"""Objects whose state is easily forgotten, or restored almost."""

import array
import ctypes
import functools
import io
import itertools
import weakref
from collections import defaultdict

import numpy as np
import pandas as pd
import torch as th
from gymnasium import spaces

from tests.hiding_places.places import LatePlace, Place, place


@place("draw_cached", "lru_cache")
def cache():
    class InCache(Place):
        n_visits = 0

        def set_up(self):
            self.rng = np.random.default_rng(0)
            self.draw_cached = functools.lru_cache(maxsize=None)(self.draw)

        def draw(self, key):
            return int(self.rng.integers(1000))

        def level(self):
            self.n_visits += 1
            return self.draw_cached(self.n_visits // self.period)

    return InCache


@place("draw_of_class", "lru_cache")
def cache_of_class():
    class InCache(Place):
        n_visits = 0

        def set_up(self):
            self.rng = np.random.default_rng(0)

        @functools.cache  # noqa: B019
        def draw_of_class(self, key):
            return int(self.rng.integers(1000))

        def level(self):
            self.n_visits += 1
            return self.draw_of_class(self.n_visits // self.period)

    return InCache


class Token:
    pass


@place("living_tokens", "WeakSet")
def weak_set():
    class InWeakSet(LatePlace):
        def set_up(self):
            self.tokens = [Token() for _ in range(100)]
            self.living_tokens = weakref.WeakSet(self.tokens)

        def change(self):
            self.tokens.pop()

        def look(self):
            return len(self.living_tokens)

    return InWeakSet


@place("Mourned", "__del__")
def finalizer():
    class Mourned:
        def __init__(self, deaths):
            self.deaths = deaths

        def __del__(self):
            self.deaths.append(1)

    class InFinalizer(LatePlace):
        def set_up(self):
            self.deaths = []
            self.mourned = Mourned(self.deaths)

        def change(self):
            self.mourned = Mourned(self.deaths)

        def look(self):
            return len(self.deaths)

    return InFinalizer


@place("accumulated")
def gradient():
    class InGradient(Place):
        def set_up(self):
            self.accumulated = th.nn.Parameter(th.zeros(1))

        def count(self):
            self.accumulated.sum().backward()
            return int(self.accumulated.grad.item())

    return InGradient


@place("cells_seen")
def order_of_set():
    """Its table is larger than that of a copy, where 9 comes before 2."""

    class InOrder(LatePlace):
        def set_up(self):
            self.cells_seen = set(range(100))
            self.cells_seen.intersection_update({2, 9})
            for number in set(range(100)) - {2, 9}:
                self.cells_seen.add(number)
                self.cells_seen.remove(number)

        def change(self):
            self.cells_seen ^= {5}

        def look(self):
            return next(iter(self.cells_seen))

    return InOrder


@place("pair_of_numbers")
def order_of_equal_set():
    """Numbers that share a place in the table come in the order in which they were added."""

    class InOrder(LatePlace):
        def set_up(self):
            self.pair_of_numbers = {0, 8}

        def change(self):
            first, second = self.pair_of_numbers
            self.pair_of_numbers.clear()
            self.pair_of_numbers.add(second)
            self.pair_of_numbers.add(first)

        def look(self):
            return next(iter(self.pair_of_numbers))

    return InOrder


def _iterating(name, make_iterator, value=lambda item: item):
    def make_class():
        class InIterator(Place):
            def set_up(self):
                self.iterator = make_iterator()

            def count(self):
                return value(next(self.iterator))

        return InIterator

    make_class.__name__ = name
    place("iterator")(make_class)


_iterating("iterator_of_itertools", itertools.count)
_iterating("iterator_of_list", lambda: iter(list(range(2000))))
_iterating("enumeration", lambda: enumerate("x" * 2000), lambda item: item[0])
_iterating("cycle", lambda: itertools.cycle(range(200)))
_iterating("generator", lambda: (n for n in range(2000)))
_iterating("mapped", lambda: map(abs, range(2000)))


@place("history")
def resized_array():
    class InSize(LatePlace):
        def set_up(self):
            self.history = np.zeros(1)

        def change(self):
            self.history.resize(len(self.history) + 1, refcheck=False)

        def look(self):
            return len(self.history)

    return InSize


@place("turned_table")
def reshaped_array():
    class InShape(LatePlace):
        def set_up(self):
            self.turned_table = np.zeros((2, 6))

        def change(self):
            self.turned_table.shape = self.turned_table.shape[::-1]

        def look(self):
            return self.turned_table.shape[0]

    return InShape


@place("grid")
def large_array():
    class InArray(LatePlace):
        def set_up(self):
            self.grid = np.zeros(300_000, dtype=np.int8)

        def change(self):
            self.grid[7919 * self.n_visits % len(self.grid)] += 1

        def look(self):
            return int(np.count_nonzero(self.grid))

    return InArray


@place("diary")
def list_of_the_past():
    class InList(LatePlace):
        def set_up(self):
            self.diary = [0]

        def change(self):
            self.diary[len(self.diary) // 2] += 1

        def look(self):
            self.diary.append(0)
            return sum(self.diary)

    return InList


@place("frame")
def data_frame():
    class InFrame(LatePlace):
        def set_up(self):
            self.frame = pd.DataFrame({"n": [0, 0], "name": ["a", "b"]})

        def change(self):
            self.frame.loc[0, "n"] += 1

        def look(self):
            return int(self.frame["n"].to_numpy()[0])

    return InFrame


@place("seeds", "SeedSequence")
def seed_sequence():
    class InSeeds(LatePlace):
        def set_up(self):
            self.seeds = np.random.SeedSequence(0)

        def change(self):
            self.seeds.spawn(1)

        def look(self):
            return self.seeds.n_children_spawned

    return InSeeds


@place("numbers_of_c")
def ctypes_array():
    class InCtypes(Place):
        def set_up(self):
            self.numbers_of_c = (ctypes.c_int * 2)()

        def count(self):
            self.numbers_of_c[0] += 1
            return self.numbers_of_c[0]

    return InCtypes


@place("text_buffer")
def string_io():
    class InText(LatePlace):
        def set_up(self):
            self.text_buffer = io.StringIO()

        def change(self):
            self.text_buffer.write("x")

        def look(self):
            return len(self.text_buffer.getvalue())

    return InText


@place("viewed", "memoryview")
def memory_view():
    class InView(Place):
        def set_up(self):
            self.viewed = memoryview(array.array("q", [0]))

        def count(self):
            self.viewed[0] += 1
            return self.viewed[0]

    return InView


class Opponent(th.nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = th.nn.Parameter(th.zeros(1))

    def learn_in_place(self):
        with th.no_grad():
            self.weight += 1

    def learn_by_data(self):
        self.weight.data += 1

    def learn_by_numpy(self):
        self.weight.detach().numpy()[:] += 1


def _learning(name, learn):
    def make_class():
        opponent = Opponent()

        class WithOpponent(LatePlace):
            def set_up(self):
                self.opponent = opponent

            def change(self):
                learn(self.opponent)

            def look(self):
                return int(self.opponent.weight.item())

        return WithOpponent

    make_class.__name__ = name
    place("opponent")(make_class)


_learning("opponent_in_place", Opponent.learn_in_place)
_learning("opponent_by_data", Opponent.learn_by_data)
_learning("opponent_by_numpy", Opponent.learn_by_numpy)


@place("actions_that_are_left")
def space_with_attributes():
    class Menu(spaces.Discrete):
        actions_that_are_left = ()

    class InSpace(LatePlace):
        def set_up(self):
            self.menu = Menu(3)
            self.menu.actions_that_are_left = []

        def change(self):
            self.menu.actions_that_are_left.append(1)

        def look(self):
            return len(self.menu.actions_that_are_left)

    return InSpace


@place("default_factory")
def factory_of_defaults():
    class InFactory(LatePlace):
        def set_up(self):
            self.numbers = defaultdict(itertools.count().__next__)

        def change(self):
            self.last = self.numbers[self.n_visits]

        def look(self):
            return getattr(self, "last", 0)

    return InFactory


@place("memo")
def slot_beside_any_attribute():
    class Proxy:
        __slots__ = ("memo", "target")

        def __init__(self, target):
            self.target = target

        def __getattr__(self, name):
            return getattr(self.target, name)

    class Target:
        memo = 0

    class InSlot(LatePlace):
        def set_up(self):
            self.proxy = Proxy(Target())

        def change(self):
            self.proxy.target.memo += 1

        def look(self):
            return self.proxy.memo

    return InSlot
