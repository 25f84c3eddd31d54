"""Arrays and memory, also when a branch gives them another shape; large ones are copied only when they change."""

import ctypes
import mmap

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces
from stable_baselines3.common.vec_env import DummyVecEnv

from sb3_hybrid_grpo.branching import Snapshot, make_brancher
from sb3_hybrid_grpo.branching.snapshots.codecs import arrays
from sb3_hybrid_grpo.branching.snapshots.registry import codec_of
from sb3_hybrid_grpo.branching.snapshots.snapshot import UnrestorableStateError
from tests.lockstep import branch

N_LARGE = arrays.LARGE // 8


class Holder:
    def __init__(self, **attributes):
        vars(self).update(attributes)


REARRANGEMENTS = {
    "larger": lambda self: self.resize(2 * self.size, refcheck=False),
    "smaller": lambda self: self.resize((1,), refcheck=False),
    "other shape": lambda self: setattr(self, "shape", (2, -1)),
    "other data type": lambda self: setattr(self, "dtype", np.int64),
}


@pytest.mark.filterwarnings("ignore:Setting the (shape|dtype):DeprecationWarning")
@pytest.mark.parametrize("n", [6, N_LARGE], ids=["small", "large"])
@pytest.mark.parametrize("rearrange", REARRANGEMENTS.values(), ids=REARRANGEMENTS)
def test_arrays_that_are_rearranged_in_place(rearrange, n):
    content = np.arange(float(n))
    root, before = Holder(content=content), content.copy()
    snapshot = Snapshot(root)
    for _ in range(2):
        rearrange(content)
        content += 1
        snapshot.restore()
        assert content.dtype == before.dtype
        np.testing.assert_array_equal(content, before)


class Resizing(gym.Env):
    """Resizes an array in place, later than any probe sees."""

    observation_space = spaces.Box(-np.inf, np.inf, (1,))
    action_space = spaces.Discrete(2)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.t, self.trace = 0, np.zeros(4)
        return np.zeros(1, dtype=np.float32), {}

    def step(self, action):
        self.t += 1
        if self.t % 40 == 0:
            self.trace.resize(self.trace.size + 4, refcheck=False)
        self.trace[self.t % self.trace.size] += action
        return np.array([self.trace @ np.arange(self.trace.size)], dtype=np.float32), 1.0, False, False, {}


def test_array_that_is_resized_after_the_probe():
    venv, expected = DummyVecEnv([Resizing]), DummyVecEnv([Resizing])
    brancher = make_brancher("snapshot", venv)
    for env in (venv, expected):
        env.reset()
    for step in range(90):
        outcome = branch(brancher, np.array([[step % 2, 0, 1]]))
        obs, *_ = venv.step(np.array([step % 2]))
        np.testing.assert_array_equal(outcome.observations[0, 0], obs[0])
        np.testing.assert_array_equal(obs, expected.step(np.array([step % 2]))[0])


def test_large_arrays_are_copied_once_as_long_as_they_do_not_change():
    content = np.arange(float(N_LARGE))
    codec = codec_of(np.ndarray)
    first, second = codec.save(content), codec.save(content)
    assert first[0] is second[0]
    content[5] = 7
    third = codec.save(content)
    assert third[0] is not first[0]
    content[:] = 1
    for state, value in ((third, 7), (first, 5)):
        codec.restore(content, state)
        assert content[5] == value


@pytest.mark.parametrize(
    "make",
    [
        lambda: np.arange(2.0 * N_LARGE)[::2],
        lambda: np.asfortranarray(np.arange(4.0 * N_LARGE).reshape(4, -1)),
        lambda: np.zeros(N_LARGE, dtype="M8[s]"),
        lambda: np.full(N_LARGE, np.nan),
        lambda: np.zeros(N_LARGE, dtype=[("a", float), ("b", int)]),
        lambda: np.full(N_LARGE, None),
        lambda: np.ma.MaskedArray(np.zeros(N_LARGE), mask=np.arange(N_LARGE) % 2 == 0),
    ],
)
def test_large_arrays_of_all_kinds(make):
    content, before = make(), make()
    snapshots = [Snapshot(content) for _ in range(2)]
    for snapshot in snapshots:
        content[1] = content[2] if content.dtype.kind != "f" else 99
        content[0] = np.zeros_like(content[0]) if content.dtype != object else [1]
        snapshot.restore()
        assert content.tobytes() == before.tobytes()


def test_read_only_views_of_what_changes():
    base = np.zeros(3)
    view = base.view()
    view.flags.writeable = False
    root = Holder(view=view)
    snapshot = Snapshot(root)
    base[0] = 1
    snapshot.restore()
    assert view[0] == 0


def test_large_read_only_arrays_are_not_copied_and_must_not_be_made_writeable():
    content = np.zeros(N_LARGE)
    content.flags.writeable = False
    assert codec_of(np.ndarray).save(content) is None
    snapshot = Snapshot(Holder(table=content))
    snapshot.restore()
    content.flags.writeable = True
    with pytest.raises(UnrestorableStateError, match=r"Holder\.table is a numpy\.ndarray"):
        snapshot.restore()


def test_memory():
    content, array = bytearray(b"abc"), np.zeros(3)
    memory_map = mmap.mmap(-1, 4)
    memory_map[:] = b"wxyz"
    root = Holder(views=[memoryview(content)[1:], memoryview(array)], map=memory_map)
    snapshot = Snapshot(root)
    root.views[0][0], root.views[1][0], memory_map[0] = 0, 5, 0
    snapshot.restore()
    assert (bytes(content), array[0], memory_map[:]) == (b"abc", 0, b"wxyz")


class Point(ctypes.Structure):
    _fields_ = (("x", ctypes.c_double), ("history", ctypes.c_int * 3))


def test_structures_of_c():
    point, number = Point(1.0, (1, 2, 3)), ctypes.c_int(3)
    root = Holder(point=point, part=point.history, number=number, points=(Point * 2)())
    snapshot = Snapshot(root)
    point.x, point.history[1], number.value, root.points[1].x = 2.0, 9, 4, 7.0
    root.point.name = ["new"]
    snapshot.restore()
    assert (point.x, list(root.part), number.value, root.points[1].x) == (1.0, [1, 2, 3], 3, 0.0)
    assert not hasattr(point, "name")
