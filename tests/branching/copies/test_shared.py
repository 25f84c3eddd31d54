"""What copies of the process would share with it: refused where an environment holds it, and never written to by a branch."""

import contextlib
import logging
import multiprocessing
import os
import socket
import sqlite3
import sys
from multiprocessing.shared_memory import SharedMemory

import numpy as np
import pytest
import torch as th

from sb3_hybrid_grpo.branching.copies.fork import ForkBrancher
from sb3_hybrid_grpo.branching.copies.shared import obstacle_to_fork
from tests.envs import Walk, far_library

FORK = pytest.mark.skipif(not hasattr(os, "fork"), reason="the platform cannot fork")


@contextlib.contextmanager
def data_base(path):
    with contextlib.closing(sqlite3.connect(path / "steps.db")) as connection:
        yield connection


@contextlib.contextmanager
def cursor(path):
    with data_base(path) as connection:
        yield connection.cursor()


@contextlib.contextmanager
def pipe(path):
    ours, theirs = multiprocessing.Pipe()
    yield ours
    ours.close()
    theirs.close()


@contextlib.contextmanager
def queue(path):
    queue = multiprocessing.get_context("fork").Queue()
    yield queue
    queue.close()


@contextlib.contextmanager
def shared_array(path):
    memory = SharedMemory(create=True, size=8)
    yield np.ndarray((1,), np.float64, buffer=memory.buf)
    memory.unlink()
    # An array in use keeps it from being closed.
    memory._mmap = memory._buf = None
    os.close(memory._fd)
    memory._fd = -1


@contextlib.contextmanager
def raw_array(path):
    yield np.frombuffer(multiprocessing.RawArray("d", 3))


SHARED = {
    "sqlite3.Connection": data_base,
    "sqlite3.Cursor": cursor,
    "multiprocessing.connection.Connection": pipe,
    "queue's": queue,
    "_io.BufferedWriter": lambda path: open(path / "log", "wb"),
    "_io.TextIOWrapper": lambda path: open(path / "log", "a"),
    "socket.socket": lambda path: socket.socket(),
    "shared memory": shared_array,
    "RawArray": raw_array,
    "torch.Tensor": lambda path: contextlib.nullcontext(th.zeros(3).share_memory_()),
}


@FORK
@pytest.mark.parametrize("kind", SHARED)
def test_what_is_shared_is_refused_by_name(kind, tmp_path):
    env = Walk()
    with SHARED[kind](tmp_path) as env.thing:
        obstacle = obstacle_to_fork([env])
        del env.thing
    assert obstacle is not None and "Walk.thing" in obstacle and "n_samples=1" in obstacle
    assert "." not in kind or f" is a {kind}, which" in obstacle


def closed_data_base(path):
    with data_base(path) as connection:
        return connection


def closed_file(path):
    with open(path / "log", "w") as file:
        return file


OWN = {
    "data base in memory": lambda path: sqlite3.connect(":memory:"),
    "closed data base": closed_data_base,
    "closed file": closed_file,
    "array": lambda path: np.zeros(3),
    "read-only view": lambda path: np.frombuffer(b"12345678"),
    "array of a bytearray": lambda path: np.frombuffer(bytearray(8)),
    "tensor": lambda path: th.zeros(3),
}


@pytest.mark.parametrize("kind", OWN)
def test_what_is_copied_with_the_process_is_no_obstacle(kind, tmp_path):
    env = Walk()
    env.thing = OWN[kind](tmp_path)
    assert obstacle_to_fork([env]) is None
    if kind == "data base in memory":
        env.thing.close()


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere branches cannot have a position of their own")
@pytest.mark.parametrize("flags", [os.O_RDONLY, os.O_RDWR])
def test_files_that_are_read_are_read_by_each_branch_from_the_same_place_on(flags, tmp_path):
    (tmp_path / "tape").write_bytes(bytes(range(200)))

    class Reads(Walk):
        def step(self, action):
            self.position = self.tape.read(1)[0]
            return self._observe(), float(self.position), False, False, {}

    env = Reads()
    with open(os.open(tmp_path / "tape", flags), "rb", buffering=0) as env.tape:
        brancher = ForkBrancher([env])
        env.reset(seed=0)
        for step in range(3):
            outcome = brancher.open(np.zeros((1, 2, 2)), np.ones((1, 2), dtype=bool), 1)
            assert outcome.rewards.tolist() == [[step, step]]
            assert env.step(np.zeros(2))[1] == step


@FORK
def test_branches_write_into_no_file_of_their_parent(tmp_path, monkeypatch):
    """Neither what it has not written yet, nor what they add to it; where an environment hides the file."""
    logger, path = logging.getLogger("tests.branching.copies.test_shared"), tmp_path / "steps.log"
    handler = logging.FileHandler(path)
    logger.addHandler(handler)
    rows = open(tmp_path / "rows.csv", "w")
    monkeypatch.setattr(far_library(), "rows", rows, raising=False)

    class Logs(Walk):
        def step(self, action):
            logger.warning("stepped")
            far_library().rows.write("row\n" * 5000)
            return super().step(action)

    env = Logs()
    brancher = ForkBrancher([env])
    env.reset(seed=0)
    for _ in range(2):
        brancher.open(np.zeros((1, 2, 2)), np.ones((1, 2), dtype=bool), 1)
        env.step(np.zeros(2))
    rows.close()
    logger.removeHandler(handler)
    handler.close()
    assert path.read_text() == "stepped\n" * 2
    assert (tmp_path / "rows.csv").read_text() == "row\n" * 10_000
