"""Sets, iterators, documents and files in memory come back so that all that follows is the same."""

import io
import itertools
import random
import sys
from xml.etree import ElementTree

import pytest

from sb3_hybrid_grpo import UnbranchableEnvError
from sb3_hybrid_grpo.branching import Snapshot
from sb3_hybrid_grpo.branching.snapshots.codecs import memory
from sb3_hybrid_grpo.branching.snapshots.recorder import Recorder
from sb3_hybrid_grpo.branching.snapshots.registry import codec_of
from sb3_hybrid_grpo.branching.snapshots.snapshot import UnrestorableStateError
from tests.lockstep import describe


class Holder:
    def __init__(self, **attributes):
        vars(self).update(attributes)


class Key:
    """Equal to itself only, with a hash that often collides."""

    def __init__(self, value):
        self.value = value

    def __hash__(self):
        return self.value


def change(rng, keys, *sets, n=60):
    for _ in range(n):
        key, kind = rng.choice(keys), rng.random()
        for content in sets:
            if kind < 0.5:
                content.add(key)
            elif kind < 0.9:
                content.discard(key)
            elif kind < 0.95 and content:
                content.pop()
            elif kind < 0.97:
                content.update(keys[:5])
            elif kind < 0.98:
                content.clear()


class TaggedSet(set):
    pass


@pytest.mark.parametrize("cls", [set, TaggedSet])
def test_order_of_a_set_is_that_of_one_that_no_branch_has_changed(cls):
    rng = random.Random(0)
    keys = [Key(rng.randrange(2 ** rng.choice([3, 6, 60]))) for _ in range(200)]
    references = [sys.getrefcount(key) for key in keys]
    branched, expected = cls(), cls()
    for seed in range(60):
        change(random.Random(seed), keys, branched, expected)
        snapshot = Snapshot(branched)
        for n_changes in (0, 1, 5, 300):
            change(rng, keys, branched, n=n_changes)
            snapshot.restore()
            assert list(branched) == list(expected)
    assert list(branched.copy()) == list(expected.copy())
    del branched, expected, snapshot
    assert [sys.getrefcount(key) for key in keys] == references, "somebody owns objects twice, or not at all"


def test_order_that_cannot_be_restored_is_refused(monkeypatch):
    """Where the memory of sets is not known, by comparing."""
    codec = memory._ReinsertedSetCodec()
    content = {8, 0, 16}
    for number in range(100):
        content.add(number)
    for number in range(100):
        content.discard(number) if number not in (8, 16, 0) else None
    ordered, state = list(content), codec.save(content)
    codec.restore(content, state)
    assert list(content) == ordered
    content.add(5)
    codec.restore(content, state)
    content = {8, 0}
    colliding = codec.save(content)
    content.clear()
    content.update([0, 8] if list(colliding) == [8, 0] else [8, 0])
    codec.restore(content, colliding)
    assert list(content) == list(colliding)
    with pytest.raises(ValueError, match="order of iteration"):
        codec.restore(content, tuple(reversed(range(5))))


ITERATORS = {
    "list": lambda: iter([1, 2, 3]),
    "reversed": lambda: reversed([1, 2, 3]),
    "range": lambda: iter(range(3)),
    "string": lambda: iter("abc"),
    "enumerate": lambda: enumerate("abc"),
    "zip": lambda: zip([1, 2, 3], iter("abc"), strict=True),
    "map": lambda: map(abs, [1, 2, 3]),
    "count": itertools.count,
    "count by halves": lambda: itertools.count(0, 0.5),
    "large count": lambda: itertools.count(sys.maxsize - 1),
    "cycle": lambda: itertools.cycle([1, 2, 3]),
    "chain": lambda: itertools.chain([1], iter([2]), range(3)),
    "islice": lambda: itertools.islice(itertools.count(), 1, 5),
    "repeat": lambda: itertools.repeat([], 3),
    "accumulate": lambda: itertools.accumulate([1, 2, 3]),
    "takewhile": lambda: itertools.takewhile(bool, [1, 2, 0, 3]),
}


@pytest.mark.parametrize("make", [pytest.param(make, id=name) for name, make in ITERATORS.items()])
def test_iterators_go_back(make):
    def take(n):
        return list(itertools.islice(root.numbers, n))

    for n_before in (0, 1, 4):
        expected = list(itertools.islice(make(), n_before + 4))[n_before:]
        root = Holder(numbers=make())
        take(n_before)
        snapshot = Snapshot(root)
        for n_in_the_branch in (1, 2, 9):
            take(n_in_the_branch)
            snapshot.restore()
        assert take(4) == expected


def test_iterators_own_what_they_refer_to():
    marker = object()
    references = sys.getrefcount(marker)
    for make in (
        lambda: iter([marker] * 3),
        lambda: enumerate([marker] * 3),
        lambda: itertools.cycle([marker] * 3),
        lambda: itertools.accumulate([marker] * 3, lambda a, b: b),
    ):
        iterator = make()
        snapshot = Snapshot(iterator)
        for n_steps in (2, 5, 1):
            list(itertools.islice(iterator, n_steps))
            snapshot.restore()
    del iterator, snapshot, make
    assert sys.getrefcount(marker) == references


@pytest.mark.parametrize("make", [lambda: itertools.product([1], [2]), lambda: iter({1: 2}), lambda: itertools.tee([1])[0]])
def test_iterators_with_further_memory_are_refused(make):
    with pytest.raises(UnbranchableEnvError, match=r"Holder\.numbers is a"):
        Snapshot(Holder(numbers=make()))


def test_xml_document():
    document = ElementTree.fromstring("<world><body name='a'>text<geom size='1'/></body><light/></world>")
    before = ElementTree.tostring(document)
    body = document[0]
    snapshot = Snapshot(Holder(document=document))
    body.set("name", "b")
    body.text, body[0].tail, body.tag = "other", "tail", "BODY"
    document.remove(body)
    ElementTree.SubElement(document, "camera")
    snapshot.restore()
    assert ElementTree.tostring(document) == before
    assert document[0] is body


@pytest.mark.parametrize("make", [lambda: io.StringIO("first\nsecond"), lambda: io.BytesIO(b"first\nsecond")])
def test_files_in_memory(make):
    file = make()
    file.readline()
    rest = make().readlines()[1]
    snapshot = Snapshot(Holder(file=file))
    file.write(rest[:3])
    file.seek(0)
    file.truncate(2)
    snapshot.restore()
    assert file.read() == rest
    assert file.getvalue() == make().getvalue()


def test_what_cannot_be_undone_is_named_and_all_else_is_restored():
    file, numbers = io.StringIO("text"), [1]
    root = Holder(first=[1], file=file, numbers=numbers)
    snapshot = Snapshot(root)
    file.close()
    numbers.append(2)
    root.first.append(2)
    with pytest.raises(UnrestorableStateError, match=r"Holder\.file is a _io\.StringIO"):
        snapshot.restore()
    assert (root.first, numbers) == ([1], [1])


LIST_CHANGES = {
    "append": lambda self: self.append(5),
    "append what may change": lambda self: self.append([5]),
    "replace": lambda self: self.__setitem__(7, "other"),
    "replace by what is equal": lambda self: self.__setitem__(3, [3]),
    "change": lambda self: self[3].append(1),
    "replace and append": lambda self: (self.__setitem__(0, 1.0), self.append(1)),
    "remove": lambda self: self.pop(5),
    "clear": lambda self: self.clear(),
    "reverse": lambda self: self.reverse(),
    "grow": lambda self: self.extend(range(10_000)),
    "change within a tuple": lambda self: self[4][1].append(1),
}


@pytest.mark.parametrize("change", LIST_CHANGES.values(), ids=LIST_CHANGES)
def test_long_lists(change):
    content = [1, (2, "b"), 0.5, [3], (4, []), *(str(number) for number in range(memory._LONG))]
    recorder = Recorder(Holder(content=content))
    for n_rounds in range(4):
        snapshots = [(describe(content), recorder.take())]
        content.append((n_rounds, [n_rounds]))
        snapshots.append((describe(content), recorder.take()))
        for before, snapshot in (*snapshots, *reversed(snapshots), *snapshots):
            change(content)
            snapshot.restore()
            assert describe(content) == before


def test_long_list_is_looked_through_once():
    content = [(number, "text") for number in range(2 * memory._LONG)]
    codec = codec_of(list)
    state = codec.save(content)
    assert codec.save(content) is state and not state.children
    content.append([1])
    assert codec.save(content).children == [[1]]
    codec.restore(content, state)
    assert len(content) == 2 * memory._LONG
