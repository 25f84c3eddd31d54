"""Snapshots bring every object back as it was, or say which one they cannot."""

import array
import builtins
import collections
import ctypes
import dataclasses
import functools
import io
import itertools
import os
import random
import re
import subprocess
import sys
import threading
import types
from collections import Counter, OrderedDict, defaultdict, deque

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv

from sb3_hybrid_grpo import UnbranchableEnvError
from sb3_hybrid_grpo.branching import CONSTANT, AttributesCodec, LeafCodec, Snapshot, make_brancher, register_codec
from sb3_hybrid_grpo.branching.snapshots import registry
from sb3_hybrid_grpo.branching.snapshots import snapshot as walk
from sb3_hybrid_grpo.branching.snapshots.recorder import Recorder
from tests.lockstep import branch, describe


@pytest.fixture(autouse=True)
def codecs_of_the_test_only():
    """Forget what a test registers."""
    registered = registry.user_codecs()
    yield
    registry._user_registry.clear()
    registry._user_registry.update(registered)
    registry._forget_resolved()


class Holder:
    def __init__(self, content=None, **attributes):
        self.content = content
        vars(self).update(attributes)


class Mutable:
    def __init__(self, value=0):
        self.value = value


def assert_restored(root, *changes):
    """Change what a root refers to, in several ways, restore each time, and compare."""
    before = describe(root)
    snapshot = Snapshot(root)
    for change in changes:
        change()
        assert describe(root) != before, "the test changes nothing"
        snapshot.restore()
        assert describe(root) == before


def change_all(*changes):
    return lambda: [change() for change in changes]


def test_attributes_added_changed_and_deleted():
    root = Holder([1], number=1, gone=2)
    assert_restored(
        root,
        lambda: setattr(root, "number", 5),
        lambda: setattr(root, "new", 5),
        lambda: delattr(root, "gone"),
        lambda: root.content.append(2),
        lambda: setattr(root, "content", [1]) or root.content.append(3),
    )
    assert list(vars(root)) == ["content", "number", "gone"]


CONTAINERS = {
    "dict": (
        {"a": [1], 2: 3},
        ["self.clear()", "self['a'].append(1)", "self.update(b=1)", "self.__setitem__('a', self.pop('a'))"],
    ),
    "list": ([[1], 2, 3], ["self.reverse()", "self[0].append(1)", "self.clear()", "self.extend([4, 5])"]),
    "deque": (deque([[1], 2], maxlen=2), ["self.append(3)", "self.rotate()", "self[0].append(2)", "self.clear()"]),
    "set": ({1, "b", (3,)}, ["self.add(5)", "self.discard(1)", "self.clear()", "self.symmetric_difference_update({1, 9})"]),
    "bytearray": (bytearray(b"abc"), ["self.extend(b'x')", "self.__setitem__(0, 7)", "self.clear()"]),
    "array.array": (array.array("d", [1.0, 2.0]), ["self.append(3.0)", "self.__setitem__(0, 7.0)", "self.pop()"]),
    "defaultdict": (defaultdict(list, a=[1]), ["self['b']", "self['a'].append(2)", "self.pop('a')"]),
    "Counter": (Counter("abca"), ["self.update('a')", "self.subtract('b')", "self.clear()"]),
    "OrderedDict": (
        OrderedDict(a=1, b=[2], c=3),
        ["self.move_to_end('a')", "self.popitem(last=False)", "self.update(d=1)", "self['b'].append(1)", "self.clear()"],
    ),
    "tuple of mutables": (([1], {"a": [2]}), ["self[0].append(1)", "self[1]['a'].clear()"]),
    "frozenset of mutables": (frozenset({Mutable()}), ["[setattr(item, 'value', 5) for item in self]"]),
    "set of mutables": ({Mutable()}, ["[setattr(item, 'value', 5) for item in self]"]),
    "keys that are mutable": ({Mutable(): 1}, ["[setattr(key, 'value', 5) for key in self]"]),
    "named tuple": (collections.namedtuple("Pair", "left right")([1], 2), ["self.left.append(1)"]),
    "dict view": ({1: [2]}.values(), ["[item.append(1) for item in self]"]),
    "mapping proxy": (types.MappingProxyType({"a": [1]}), ["self['a'].append(1)"]),
    "namespace": (types.SimpleNamespace(a=[1]), ["self.a.append(1)", "setattr(self, 'b', 2)"]),
    "nested": ({"a": [{"b": deque([{"c": [1]}])}]}, ["self['a'][0]['b'][0]['c'].append(1)"]),
}


@pytest.mark.parametrize("container, changes", [pytest.param(*case, id=name) for name, case in CONTAINERS.items()])
def test_containers(container, changes):
    root = Holder(container)
    assert_restored(root, *(lambda change=change: eval(change, {"self": container}) for change in changes))
    assert root.content is container


def test_order_of_dictionaries():
    content, ordered = dict.fromkeys("abc"), OrderedDict.fromkeys("abc")
    ordered.move_to_end("a")
    snapshot = Snapshot(content, ordered)
    content["a"] = content.pop("a")
    ordered.move_to_end("c", last=False)
    ordered.popitem()
    snapshot.restore()
    assert list(content) == ["a", "b", "c"]
    assert list(ordered) == ["b", "c", "a"]
    assert list(reversed(ordered)) == ["a", "c", "b"]


def test_deque_keeps_its_length_limit():
    content = deque([1, 2, 3], maxlen=3)
    snapshot = Snapshot(content)
    content.append(4)
    snapshot.restore()
    content.append(5)
    assert list(content) == [2, 3, 5]


def test_untouched_set_keeps_its_order():
    content = set(range(1000))
    for number in range(1000):
        if number not in (3, 100, 40, 77, 513):
            content.remove(number)
    order = list(content)
    snapshot = Snapshot(content)
    snapshot.restore()
    assert list(content) == order


def test_aliases_stay_aliases():
    shared = [1]
    root = Holder({"a": shared}, other=(shared,), alias=shared)
    snapshot = Snapshot(root)
    root.alias = [2]
    root.content["a"] = [3]
    shared.append(4)
    snapshot.restore()
    assert root.alias is root.content["a"] is root.other[0] is shared
    assert shared == [1]


def test_cycles():
    root = Holder([])
    root.content.append(root)
    root.loop = root.content
    first, second = {}, {}
    first["other"], second["other"] = second, first
    root.pair = first
    assert_restored(root, root.content.clear, lambda: second.update(other=None), lambda: setattr(root, "loop", None))
    assert root.pair["other"]["other"] is root.pair


def test_several_roots_and_restores():
    first, second = [1], {"a": 1}
    snapshot = Snapshot(first, second, first)
    for change in range(3):
        first.append(change)
        second[change] = change
        snapshot.restore()
        assert (first, second) == ([1], {"a": 1})


def test_snapshots_of_different_times():
    content = []
    snapshots = []
    for number in range(4):
        snapshots.append(Snapshot(content))
        content.append(number)
    for number in (2, 0, 3, 1):
        snapshots[number].restore()
        assert content == list(range(number))


class TaggedDict(dict):
    def __init__(self, *args):
        super().__init__(*args)
        self.tags = ["tag"]


class TaggedList(list):
    tags = None

    def append(self, item):
        raise AssertionError("a snapshot must not call what a subclass overrides")

    clear = extend = __setitem__ = copy = append


class TaggedDeque(deque):
    __slots__ = ("tags",)


class TaggedSet(set):
    pass


class TaggedArray(np.ndarray):
    pass


class TaggedRandom(random.Random):
    pass


@pytest.mark.parametrize(
    "content, change",
    [
        (TaggedDict({"a": [1]}), lambda self: self.update(b=2)),
        (TaggedDict({"a": [1]}), lambda self: self.tags.append("more")),
        (TaggedList([1, 2]), lambda self: list.append(self, 3)),
        (TaggedDeque([1, 2], 5), lambda self: self.append(3)),
        (TaggedSet({1, 2}), lambda self: self.add(3)),
        (np.zeros(3).view(TaggedArray), lambda self: self.fill(1)),
        (TaggedRandom(0), lambda self: self.random()),
    ],
    ids=lambda value: type(value).__name__,
)
def test_subclass_of_a_container_with_attributes(content, change):
    if not isinstance(content, TaggedDict):
        content.tags = ["tag"]
    root = Holder(content)
    assert_restored(
        root,
        lambda: change(content),
        lambda: content.tags.append("more"),
        lambda: setattr(content, "tags", None),
        change_all(lambda: change(content), lambda: content.tags.append("more")),
    )


class Slotted:
    __slots__ = ("__private", "_protected", "public", "unset")

    def __init__(self):
        self.__private, self._protected, self.public = [1], [2], [3]

    def change(self):
        self.__private.append(0)
        self.__private = [9]


class SlottedChild(Slotted):
    __slots__ = ("__private", "own")

    def __init__(self):
        super().__init__()
        self.__private, self.own = [4], [5]

    def change_own(self):
        self.__private.append(0)


class SlottedWithAttributes(SlottedChild):
    pass


@pytest.mark.parametrize("cls", [Slotted, SlottedChild, SlottedWithAttributes])
def test_slots(cls):
    obj = cls()
    changes = [
        obj.change,
        obj.public.clear,
        lambda: setattr(obj, "unset", 1),
        lambda: delattr(obj, "public"),
        lambda: setattr(obj, "_protected", None),
    ]
    if isinstance(obj, SlottedChild):
        changes += [obj.change_own, obj.own.clear]
    if isinstance(obj, SlottedWithAttributes):
        obj.attribute = [1]
        changes += [obj.attribute.clear, lambda: setattr(obj, "other", 1)]
    state = _slots_of(obj)
    snapshot = Snapshot(obj)
    for change in changes:
        change()
        assert _slots_of(obj) != state
        snapshot.restore()
        assert _slots_of(obj) == state


def _slots_of(obj):
    names = ["_Slotted__private", "_SlottedChild__private", "_protected", "public", "unset", "own", "__dict__"]
    return describe({name: getattr(obj, name, "unset") for name in names})


@dataclasses.dataclass
class Record:
    numbers: list
    count: int = 0


@dataclasses.dataclass(slots=True)
class SlottedRecord:
    numbers: list
    count: int = 0


@dataclasses.dataclass(frozen=True, slots=True)
class FrozenRecord:
    numbers: list
    count: int = 0


@pytest.mark.parametrize("cls", [Record, SlottedRecord, FrozenRecord])
def test_dataclasses(cls):
    record = cls([1])
    assert_restored(
        Holder(record),
        lambda: record.numbers.append(2),
        lambda: object.__setattr__(record, "count", 5),
        lambda: object.__setattr__(record, "numbers", None),
    )


def read_only(values):
    content = np.array(values)
    content.flags.writeable = False
    return content


def unlock_and_change(content):
    content.flags.writeable = True
    content[...] = 5


BASE = np.arange(12.0).reshape(3, 4)


@pytest.mark.parametrize(
    "content, change",
    [
        (np.zeros(3), lambda self: self.fill(1)),
        (np.array(3.0), lambda self: self.fill(1)),
        (np.zeros((0, 3)), None),
        (np.asfortranarray(np.arange(6.0).reshape(2, 3)), lambda self: self.__setitem__((0, 1), 9)),
        (BASE[::2, 1:3], lambda self: self.fill(1)),
        (BASE.T, lambda self: self.fill(1)),
        (np.array([[1], {"a": 2}, None], dtype=object), lambda self: self[0].append(2)),
        (np.array([[1], {"a": 2}, None], dtype=object), lambda self: self.fill(None)),
        (np.zeros(2, dtype=[("x", float), ("n", int)]), lambda self: self.__setitem__(0, (1.0, 2))),
        (np.array(["abc", "d"]), lambda self: self.__setitem__(0, "x")),
        (np.array([np.nan, -0.0]), lambda self: self.__setitem__(1, 0.0)),
        (np.array(["2001-01-01"], dtype="M8[D]"), lambda self: self.__setitem__(0, "2002-02-02")),
        (read_only([1.0, 2.0]), unlock_and_change),
        (np.zeros(3), lambda self: setattr(self.flags, "writeable", False)),
        (np.ma.MaskedArray([1.0, 2.0], mask=[False, True]), lambda self: self.__setitem__(0, np.ma.masked)),
        (np.ma.MaskedArray([1.0, 2.0], mask=[False, True]), lambda self: self.__setitem__(1, 3.0)),
    ],
)
def test_arrays(content, change):
    flags = repr(content.flags)
    root = Holder(content)
    if change is not None:
        assert_restored(root, lambda: change(content))
    else:
        Snapshot(root).restore()
    assert root.content is content
    assert repr(content.flags) == flags


def test_array_and_views_of_it():
    base = np.arange(10.0)
    root = Holder(base, views=[base[2:5], base[::-1], base[3:3]])
    assert_restored(root, lambda: base.fill(0), lambda: root.views[0].fill(7), lambda: root.views[1].fill(8))
    root.views[0][0] = 99
    assert base[2] == 99


def test_read_only_view_costs_nothing(tmp_path):
    """Such as a data set on disk, which no branch can change."""
    np.save(tmp_path / "data.npy", np.zeros(10))
    data = np.load(tmp_path / "data.npy", mmap_mode="r")
    state = registry.codec_of(np.ndarray).save(np.broadcast_to(data, (10**9, 10)))
    assert state is None or state.nbytes == data.nbytes
    Snapshot(Holder(data)).restore()


def test_memory_mapped_array_that_is_written(tmp_path):
    data = np.memmap(tmp_path / "data", dtype=float, shape=(3,), mode="w+")
    assert_restored(Holder(data), lambda: data.fill(1))


GENERATORS = {
    "PCG64": (np.random.default_rng(0), lambda self: self.normal()),
    "PCG64, half a draw": (np.random.default_rng(0), lambda self: self.integers(9, dtype=np.uint32)),
    "MT19937": (np.random.Generator(np.random.MT19937(0)), lambda self: self.normal(size=1000)),
    "Philox": (np.random.Generator(np.random.Philox(0)), lambda self: self.normal()),
    "SFC64": (np.random.Generator(np.random.SFC64(0)), lambda self: self.normal()),
    "bit generator": (np.random.PCG64DXSM(0), lambda self: self.random_raw()),
    "RandomState": (np.random.RandomState(0), lambda self: self.normal()),
    "RandomState of PCG64": (np.random.RandomState(np.random.PCG64(0)), lambda self: self.normal()),
    "random.Random": (random.Random(0), lambda self: self.gauss(0, 1)),
    "torch": (th.Generator(), lambda self: th.rand(1, generator=self)),
}


@pytest.mark.parametrize("generator, draw", [pytest.param(*case, id=name) for name, case in GENERATORS.items()])
def test_generators(generator, draw):
    """Also in the middle of a pair of Gaussian numbers or of 32-bit ones, of which the second is kept for later."""
    for _ in range(2):
        state = describe(generator)
        snapshot = Snapshot(Holder(generator))
        first = [draw(generator) for _ in range(3)]
        assert describe(generator) != state
        snapshot.restore()
        assert describe(generator) == state
        assert describe([draw(generator) for _ in range(3)]) == describe(first)


def test_generator_of_another_kind_takes_the_slow_way(monkeypatch):
    from sb3_hybrid_grpo.branching.snapshots.codecs import generators

    assert generators._fast_bit_generator is np.random.PCG64
    monkeypatch.setattr(generators, "_fast_bit_generator", None)
    generator = np.random.default_rng(0)
    assert_restored(Holder(generator), generator.normal)


def test_spaces():
    space = spaces.Dict({"box": spaces.Box(-1, 1, (2,)), "pair": spaces.Tuple((spaces.Discrete(3), spaces.MultiBinary(2)))})
    space.seed(0)
    assert_restored(Holder(space), space.sample, lambda: space.seed(1), lambda: space["pair"][0].sample())


def test_space_without_a_seed_repeats_its_numbers():
    """The generator that is made when a branch samples stays, but as new."""
    for space in (spaces.Discrete(10**9), spaces.Tuple((spaces.Discrete(10**9), spaces.Box(0, 1)))):
        snapshot = Snapshot(Holder(space))
        samples = []
        for _ in range(3):
            samples.append(repr([space.sample() for _ in range(3)]))
            snapshot.restore()
        assert samples[0] == samples[1] == samples[2] == repr([space.sample() for _ in range(3)])


def test_functions_with_state():
    bound = Mutable([1]).__init__
    root = Holder(
        functools.partial([0].append, 1),
        keywords=functools.partial(sorted, [3, 2], key=Mutable([1]).__init__),
        method=bound,
        builtin_method=[2].append,
        noise=np.random.default_rng(0).normal,
    )
    assert_restored(
        root,
        root.content,
        lambda: bound([2]),
        lambda: bound.__self__.value.append(3),
        lambda: root.keywords.keywords["key"]([5]),
        lambda: root.keywords.args[0].clear(),
        lambda: root.builtin_method(3),
        lambda: root.noise(),
    )


def test_types_whose_module_is_a_descriptor():
    """Cython's functions with Python 3.10 have a type of this kind."""
    odd = type("Odd", (Holder,), {"__module__": property(lambda self: "odd")})
    root = odd([1])
    assert_restored(root, lambda: root.content.append(2))


def test_torch():
    module = th.nn.Sequential(th.nn.Linear(2, 3), th.nn.BatchNorm1d(3))
    optimizer = th.optim.Adam(module.parameters())

    def train():
        optimizer.zero_grad()
        module(th.ones(4, 2) * th.arange(4)[:, None]).pow(2).sum().backward()
        optimizer.step()

    root = Holder(module, tensor=th.zeros(2, 2), view=None)
    root.view = root.tensor[0]
    parameters = dict(module.named_parameters())
    before = describe({**module.state_dict(), "tensor": root.tensor})
    snapshot = Snapshot(Holder(root, optimizer=optimizer))
    for _ in range(2):
        train()
        root.view += 1
        module.eval()
        module.extra = th.nn.Linear(1, 1)
        assert describe({**module.state_dict(), "tensor": root.tensor}) != before
        snapshot.restore()
        assert describe({**module.state_dict(), "tensor": root.tensor}) == before
        assert module.training
        assert all(parameter is parameters[name] for name, parameter in module.named_parameters())
        assert not optimizer.state


def test_objects_without_state_are_welcome():
    class Empty:
        __slots__ = ()

    stateless = [
        object(), Empty(), print, describe, str.lower, object.__repr__, Holder, np.float32(1), np.dtype(float), np.add,
        re.compile("a"), ..., range(3),
        types, slice(1), b"a", 1j, UnbranchableEnvError("x"), th.float32, random.SystemRandom(), property(len),
    ]  # fmt: skip
    content = Holder(stateless)
    Snapshot(content).restore()
    assert content.content is stateless


def generator(value=0):
    return (number for number in [value])


UNKNOWN = {
    "file open for writing": lambda: open(os.devnull, "w"),
    "file without an end": lambda: open(os.devnull),
    "thread": lambda: threading.Thread(target=print),
    "generator": generator,
    "product": lambda: itertools.product([1], [2]),
    "iterator over a dictionary": lambda: iter({1: 2}),
    "process": lambda: subprocess.Popen([sys.executable, "-c", "pass"]),
    "extension object": lambda: np.nditer(np.zeros(3)),
    "subclass of an extension type": lambda: type("Mine", (io.BufferedRWPair,), {})(io.BytesIO(), io.BytesIO()),
    "pointer": lambda: ctypes.pointer(ctypes.c_int(3)),
}


class Owner(gym.Env):
    """Owns a handle, and does what environments do."""

    observation_space = spaces.Box(-np.inf, np.inf, (1,))
    action_space = spaces.Discrete(2)

    def __init__(self, handle):
        self.handle = handle

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return np.zeros(1, dtype=np.float32), {}

    def step(self, action):
        return np.zeros(1, dtype=np.float32), 0.0, False, False, {}


@pytest.mark.parametrize("make", [pytest.param(make, id=name) for name, make in UNKNOWN.items()])
def test_objects_that_cannot_be_saved_are_refused(make):
    handle = make()
    with pytest.raises(UnbranchableEnvError, match=r"Owner\.handle") as error:
        Snapshot(gym.wrappers.TimeLimit(Owner(handle), 5))
    assert "register_codec" in str(error.value)
    assert "fork" in str(error.value)
    assert "n_samples=1" in str(error.value)
    if isinstance(handle, subprocess.Popen):
        handle.wait()
    if hasattr(handle, "close"):
        handle.close()


class Slots:
    __slots__ = ("inner",)


@pytest.mark.parametrize(
    "wrap, path",
    [
        (lambda handle: handle, r"Owner\.handle is a builtins\.generator"),
        (lambda handle: {"deep": [handle]}, r"Owner\.handle\['deep'\]\[0\] is a"),
        (lambda handle: Holder(handle), r"Owner\.handle\.content is a"),
        (lambda handle: TaggedDict({"key": handle}), r"Owner\.handle\['key'\] is a"),
        (lambda handle: (1, handle), r"Owner\.handle\[1\] is a"),
        (lambda handle: _with_slot(handle), r"Owner\.handle\.inner is a"),
        (lambda handle: _with_tag(handle), r"Owner\.handle\.tags is a"),
        (lambda handle: gym.wrappers.TransformReward(Owner(handle), abs), r"Owner\.handle\S* is a"),
    ],
)
def test_the_message_says_how_to_get_to_the_object(wrap, path):
    with pytest.raises(UnbranchableEnvError, match=path):
        Snapshot(Owner(wrap(generator())))


def _with_slot(handle):
    slots = Slots()
    slots.inner = handle
    return slots


def _with_tag(handle):
    tagged = TaggedDict({"a": 1})
    tagged.tags = handle
    return tagged


def test_refused_snapshot_changes_nothing():
    root = Holder({"a": [1]}, rng=np.random.default_rng(0), lock=generator())
    before = describe(root)
    with pytest.raises(UnbranchableEnvError):
        Snapshot(root)
    assert describe(root) == before


class World:
    """A simulator written in C, as far as Python can tell."""

    __slots__ = ("_memory",)

    def __init__(self):
        self._memory = generator()

    def state(self):
        return next(self._memory)

    def load(self, value):
        self._memory = generator(value)

    def move(self, by):
        value = self.state() + by
        self.load(value)
        return value


class WorldCodec:
    def save(self, world):
        value = world.state()
        world.load(value)
        return value

    def restore(self, world, value):
        world.load(value)

    def children(self, value):
        return ()


class WorldEnv(Owner):
    action_space = spaces.Discrete(4)

    def __init__(self):
        super().__init__(World())

    def step(self, action):
        return np.full(1, self.handle.move(int(action)), dtype=np.float32), 1.0, False, False, {}


def assert_branches_the_world(venv):
    brancher = make_brancher("snapshot", venv)
    venv.reset()
    total = 0
    for _ in range(5):
        outcome = branch(brancher, np.array([[1, 3, 0]]))
        np.testing.assert_array_equal(outcome.observations[0, :, 0], [total + 1, total + 3, total])
        total += 2
        obs, *_ = venv.step(np.array([2]))
        assert obs[0, 0] == total
    venv.close()


def test_simulator_without_a_codec():
    with pytest.raises(UnbranchableEnvError, match=r"WorldEnv\.handle\._memory is a builtins\.generator"):
        make_brancher("snapshot", DummyVecEnv([WorldEnv]))


@pytest.mark.parametrize("key", [World, f"{World.__module__}.World"], ids=["type", "qualified name"])
@pytest.mark.parametrize("codec", [WorldCodec(), LeafCodec(WorldCodec().save, World.load)], ids=["class", "LeafCodec"])
def test_user_codec(codec, key):
    register_codec(key, codec)
    assert_branches_the_world(DummyVecEnv([WorldEnv]))


def test_user_codec_serves_subclasses():
    class Bigger(World):
        pass

    class BiggerEnv(WorldEnv):
        def __init__(self):
            super().__init__()
            self.handle = Bigger()

    register_codec(World, WorldCodec())
    assert_branches_the_world(DummyVecEnv([BiggerEnv]))


@pytest.mark.parametrize("start_method", ["spawn", "forkserver"])
def test_user_codec_travels_to_workers(start_method):
    """Also with types that no module holds."""

    class Moon(World):
        pass

    class MoonEnv(WorldEnv):
        def __init__(self):
            super().__init__()
            self.handle = Moon()

    register_codec(Moon, LeafCodec(lambda moon: WorldCodec().save(moon), lambda moon, value: moon.load(value)))
    assert_branches_the_world(SubprocVecEnv([MoonEnv], start_method=start_method))


def test_refusal_travels_from_workers():
    venv = SubprocVecEnv([WorldEnv, WorldEnv], start_method="spawn")
    with pytest.raises(UnbranchableEnvError, match=r"(?s)environment 0.*WorldEnv.*\.handle\._memory.*n_samples=1"):
        make_brancher("snapshot", venv)
    venv.reset()
    obs, *_ = venv.step(np.array([2, 3]))
    assert obs.ravel().tolist() == [2, 3]
    venv.close()


def test_codec_that_raises_is_named_with_its_object():
    register_codec(World, LeafCodec(lambda world: 1 / 0, World.load))
    with pytest.raises(
        UnbranchableEnvError, match=r"(?s)WorldEnv\.handle is a .*World, .*ZeroDivisionError.*n_samples=1"
    ) as error:
        make_brancher("snapshot", DummyVecEnv([WorldEnv]))
    assert isinstance(error.value.__cause__, ZeroDivisionError)


def test_codec_may_be_exchanged():
    register_codec(World, CONSTANT)
    root = Holder(World())
    snapshot = Snapshot(root)
    root.content.move(3)
    snapshot.restore()
    assert root.content.move(0) == 3
    register_codec(World, WorldCodec())
    snapshot = Snapshot(root)
    root.content.move(2)
    snapshot.restore()
    assert root.content.move(0) == 3


def test_codec_with_children():
    class Tree:
        __slots__ = ("branches", "lock")

        def __init__(self):
            self.branches, self.lock = [[1]], generator()

    class TreeCodec:
        def save(self, tree):
            return tree.branches

        def restore(self, tree, state):
            tree.branches = state

        def children(self, state):
            return [state]

    register_codec(Tree, TreeCodec())
    tree = Tree()
    snapshot = Snapshot(tree)
    tree.branches[0].append(2)
    tree.branches = None
    snapshot.restore()
    assert tree.branches == [[1]]


def test_constant():
    class Plotter:
        def __init__(self):
            self.lines, self.lock = [], generator()

    register_codec(Plotter, CONSTANT)
    root = Holder(Plotter(), numbers=[1])
    snapshot = Snapshot(root)
    root.content.lines.append(1)
    root.numbers.append(2)
    snapshot.restore()
    assert root.content.lines == [1]
    assert root.numbers == [1]


def test_attributes_codec_with_constants():
    class Table(Holder):
        pass

    register_codec(Table, AttributesCodec(constant=("table", "lock")))
    root = Table([1], table={"big": 1}, lock=generator())
    table = root.table
    snapshot = Snapshot(root)
    root.content.append(2)
    root.table["big"] = 2
    root.table = None
    snapshot.restore()
    assert root.content == [1]
    assert root.table is table
    assert table == {"big": 2}


def test_arguments_kept_by_gymnasium_are_not_walked():
    """They are there to make further copies of the environment."""

    class Kept(gym.Env, gym.utils.EzPickle):
        def __init__(self, lock):
            gym.utils.EzPickle.__init__(self, lock)
            self.number = 1

    env = Kept(generator())
    snapshot = Snapshot(env)
    env.number = 2
    snapshot.restore()
    assert env.number == 1


def test_pygame_objects():
    pygame = pytest.importorskip("pygame")

    class Player(pygame.sprite.Sprite):
        def __init__(self):
            super().__init__()
            self.rect = pygame.Rect(1, 2, 3, 4)
            self.speed = pygame.Vector2(1, 0)
            self.image = pygame.Surface((2, 2))

    player = Player()
    group = pygame.sprite.Group(player)
    snapshot = Snapshot(Holder(group, clock=pygame.time.Clock()))
    player.rect.move_ip(5, 5)
    player.speed.update(7, 7)
    player.lives = 3
    group.empty()
    snapshot.restore()
    assert player.rect == pygame.Rect(1, 2, 3, 4)
    assert player.speed == pygame.Vector2(1, 0)
    assert not hasattr(player, "lives")
    assert group.sprites() == [player]


def test_mujoco_data():
    mujoco = pytest.importorskip("mujoco")
    model = mujoco.MjModel.from_xml_string(
        "<mujoco><worldbody><body name='ball'><freejoint/><geom size='.1'/></body></worldbody></mujoco>"
    )
    data = mujoco.MjData(model)
    root = Holder(data, model=model, ball=data.body("ball"), position=data.qpos)
    assert_restored(root, lambda: mujoco.mj_step(model, data), lambda: data.qvel.fill(3), lambda: root.position.fill(1))
    snapshots = []
    for _ in range(3):
        snapshots.append((describe(root), Snapshot(root)))
        mujoco.mj_step(model, data)
    for before, snapshot in reversed(snapshots):
        snapshot.restore()
        assert describe(root) == before


REARRANGEMENTS = {
    "attribute replaced": lambda root: setattr(root, "content", Mutable(5)),
    "attribute added": lambda root: setattr(root, "more", [1]),
    "attribute removed": lambda root: delattr(root, "items"),
    "item replaced": lambda root: root.items.__setitem__(0, Mutable(7)),
    "item added": lambda root: root.items.append(Mutable(8)),
    "constant becomes an object": lambda root: setattr(root, "number", [3]),
    "array of objects": lambda root: root.objects.__setitem__(0, Mutable(9)),
    "numbers only": lambda root: (setattr(root, "number", 2), root.array.fill(4)),
}


@pytest.mark.parametrize("rearrange", REARRANGEMENTS.values(), ids=REARRANGEMENTS)
def test_recorder_notices_that_objects_refer_to_others(rearrange):
    objects = np.array([Mutable(3), None], dtype=object)
    root = Holder(Mutable(1), items=[Mutable(2), (Mutable(4),)], number=1, array=np.zeros(3), objects=objects)
    recorder = Recorder(root)
    for value in range(3):
        root.content.value = value
        recorder.take()
    rearrange(root)
    before = describe(root)
    snapshot = recorder.take()
    for obj in (root.content, root.items[0] if hasattr(root, "items") else root.content, objects[0]):
        obj.value += 1
    root.array += 1
    root.number = getattr(root, "more", root.number)
    if isinstance(root.number, list):
        root.number.append(4)
    snapshot.restore()
    assert describe(root) == before


def test_recorder_does_not_walk_over_what_has_not_changed(monkeypatch):
    root = Holder([Mutable(1)], array=np.zeros(2))
    recorder = Recorder(root)
    for _ in range(2):
        recorder.take()
    monkeypatch.setattr(walk, "codec_of", None)
    monkeypatch.setattr(walk, "resolved", None)
    snapshot = recorder.take()
    root.content[0].value, root.array[0] = 2, 3
    snapshot.restore()
    assert (root.content[0].value, root.array[0]) == (1, 0)
    root.content = [Mutable(2)]
    with pytest.raises(AttributeError):
        recorder.take()


def test_recorder_says_what_it_can_no_longer_save():
    root = Holder([1])
    recorder = Recorder(root)
    for _ in range(3):
        recorder.take()
    root.content.append(generator())
    with pytest.raises(UnbranchableEnvError, match=r"Holder\.content\[1\] is a builtins\.generator"):
        recorder.take()


def test_later_state_of_a_recorder_is_apart_from_an_earlier_one():
    root = Holder(np.zeros(1))
    recorder = Recorder(root)
    snapshots = []
    for value in range(5):
        root.content[0] = value
        snapshots.append(recorder.take())
    for value in (3, 0, 4, 1, 2):
        snapshots[value].restore()
        assert root.content[0] == value


def test_namespaces_of_eval():
    class Formula:
        def __init__(self):
            self.names = {"x": 1.0}

    formula = Formula()
    assert eval("x + 1", formula.names) == 2.0
    n_builtins = len(vars(builtins))
    snapshot = Snapshot(formula)
    assert all(visit.obj is not vars(builtins) for visit in snapshot.visits)
    exec("x = 5.0; y = 1", formula.names)
    again, _ = snapshot.again()
    assert all(visit.obj is not vars(builtins) for visit in again.visits)
    snapshot.restore()
    assert formula.names["x"] == 1.0 and "y" not in formula.names and len(vars(builtins)) == n_builtins
