"""Locks, files, caches and generators that steps use come back; weak references and threads are refused by name."""

import functools
import io
import os
import queue
import subprocess
import sys
import threading
import weakref

import gymnasium as gym
import numpy as np
import pytest

from sb3_hybrid_grpo import UnbranchableEnvError
from sb3_hybrid_grpo.branching import Snapshot, register_codec
from sb3_hybrid_grpo.branching.snapshots import registry


class Holder:
    def __init__(self, content=None, **attributes):
        self.content = content
        vars(self).update(attributes)


LOCKS = {"lock": threading.Lock, "reentrant lock": threading.RLock, "condition": threading.Condition, "queue": queue.Queue}


@pytest.mark.parametrize("make", LOCKS.values(), ids=LOCKS)
def test_locks_that_nobody_holds(make):
    lock = make()
    snapshot = Snapshot(Holder(lock))
    for _ in range(2):
        if hasattr(lock, "acquire"):
            lock.acquire()
        else:
            lock.put(1)
        snapshot.restore()
    assert lock.acquire(blocking=False) if hasattr(lock, "acquire") else lock.empty()


@pytest.mark.parametrize("make", [threading.Lock, threading.RLock])
def test_locks_that_somebody_holds_are_refused(make):
    lock = make()
    with lock, pytest.raises(UnbranchableEnvError, match=r"Holder\.content is a \S*[lL]ock.* somebody holds it"):
        Snapshot(Holder(lock))
    thread = threading.Thread(target=lock.acquire)
    thread.start()
    thread.join()
    with pytest.raises(UnbranchableEnvError, match="somebody holds it"):
        Snapshot(Holder(lock))


def test_event():
    event = threading.Event()
    snapshot = Snapshot(Holder(event))
    event.set()
    snapshot.restore()
    assert not event.is_set()


@pytest.mark.parametrize("mode, options", [("r", {}), ("rb", {}), ("rb", {"buffering": 0})], ids=["text", "binary", "raw"])
def test_files_that_are_read(tmp_path, mode, options):
    path = tmp_path / "levels.txt"
    path.write_text("first\nsecond\nthird\n")
    with open(path, mode, **options) as file:
        file.readline()
        snapshot = Snapshot(Holder(file))
        for n_lines in (1, 2, 0):
            for _ in range(n_lines):
                file.readline()
            snapshot.restore()
        assert "second" in str(file.readline())
    Snapshot(Holder(file)).restore()


def test_files_that_are_written_or_have_no_end_are_refused(tmp_path):
    for mode in ("w", "a", "r+"):
        with (
            open(tmp_path / "log", mode) as file,
            pytest.raises(
                UnbranchableEnvError, match=r"Holder\.content is a \S* that cannot be saved: it is open for writing"
            ),
        ):
            Snapshot(Holder(file))
    with open(os.devnull) as file, pytest.raises(UnbranchableEnvError, match="no regular file"):
        Snapshot(Holder(file))


def test_cache_without_a_limit():
    numbers = iter(range(100))
    cached = functools.cache(lambda key: (key, next(numbers)))
    root = Holder(cached, numbers=numbers)
    first = cached("a")
    snapshot = Snapshot(root)
    for _ in range(2):
        assert cached("b") == ("b", 1)
        cached("c")
        snapshot.restore()
    assert (cached("b"), cached("a")) == (("b", 1), first)


def test_cache_with_a_limit_is_refused():
    with pytest.raises(UnbranchableEnvError, match=r"Holder\.content is a .*lru_cache_wrapper.* maxsize=None"):
        Snapshot(Holder(functools.lru_cache(lambda key: key)))


class Part:
    def __init__(self):
        self.value = 1


def test_weak_references_lead_to_state():
    part = Part()
    snapshot = Snapshot(Holder(weakref.ref(part)))
    part.value = 2
    snapshot.restore()
    assert part.value == 1


def test_weak_references_that_wait_for_an_end_are_refused():
    part = Part()
    with pytest.raises(UnbranchableEnvError, match="keeps objects alive"):
        Snapshot(Holder(weakref.ref(part, lambda _: None)))


@pytest.mark.parametrize("make", [weakref.WeakSet, weakref.WeakValueDictionary, weakref.WeakKeyDictionary])
def test_weak_containers_are_refused(make):
    with pytest.raises(UnbranchableEnvError, match=r"Holder\.content is a \S*Weak\S* .* keeps objects alive"):
        Snapshot(Holder(make()))


class Finalized:
    def __del__(self):
        pass


class FinalizedEnv(gym.Env):
    def __del__(self):
        self.close()


def test_objects_with_del_are_refused_but_not_environments():
    with pytest.raises(UnbranchableEnvError, match=r"Holder\.content is a \S*Finalized .* __del__"):
        Snapshot(Holder(Finalized()))
    Snapshot(FinalizedEnv()).restore()


def test_refusal_is_lifted_by_a_codec():
    registered = registry.user_codecs()
    register_codec(Finalized, registry.CONSTANT)
    try:
        Snapshot(Holder(Finalized())).restore()
    finally:
        registry._user_registry.clear()
        registry._user_registry.update(registered)
        registry._forget_resolved()


def test_threads_and_processes_are_refused_even_without_work():
    with subprocess.Popen([sys.executable, "-c", ""]) as process:
        process.wait()
        for handle in (threading.Thread(target=print), process):
            with pytest.raises(UnbranchableEnvError, match=r"Holder\.content is a"):
                Snapshot(Holder(handle))


def test_generators_that_are_spawned():
    generator, sequence = np.random.default_rng(0), np.random.SeedSequence(5)
    root = Holder(generator, sequence=sequence)
    snapshot = Snapshot(root)
    spawned = []
    for _ in range(3):
        spawned.append((generator.spawn(1)[0].random(), sequence.spawn(2)[1].generate_state(1)[0]))
        snapshot.restore()
    assert spawned[0] == spawned[1] == spawned[2]
    assert (sequence.n_children_spawned, generator.bit_generator.seed_seq.n_children_spawned) == (0, 0)
    assert sequence.pool.tolist() == np.random.SeedSequence(5).pool.tolist()


def test_file_in_memory_that_is_closed():
    Snapshot(Holder(io.StringIO().close())).restore()


def test_enumerations_of_pybind11():
    """They are of an extension type of their own, which holds a number."""
    kind_of_class = type("pybind11_type", (type,), {})
    members = {"__members__": {}, "__entries": {}}
    enumeration = kind_of_class("Color", (io.BufferedRWPair,), members)
    Snapshot(Holder(enumeration(io.BytesIO(), io.BytesIO()))).restore()
    with pytest.raises(UnbranchableEnvError):
        Snapshot(Holder(kind_of_class("World", (io.BufferedRWPair,), {})(io.BytesIO(), io.BytesIO())))
