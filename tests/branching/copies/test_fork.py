"""Branching by forked copies of the process: the same laws, no trace of a copy, and a clear error for every fault."""

import atexit
import contextlib
import csv
import itertools
import mmap
import multiprocessing
import os
import random
import select
import signal
import socket
import sys
import threading
import time

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv

from sb3_hybrid_grpo import BranchError, BranchTimeoutError, HybridGRPO, UnbranchableEnvError
from sb3_hybrid_grpo.branching import choice as local
from sb3_hybrid_grpo.branching import make_brancher
from sb3_hybrid_grpo.branching.copies import fork
from sb3_hybrid_grpo.branching.copies.fork import ForkBrancher
from tests.envs import Walk, far_library, limited
from tests.lockstep import assert_laws_of_paths, describe, reporting, subproc

pytestmark = [
    pytest.mark.skipif(not hasattr(os, "fork"), reason="the platform cannot fork"),
    pytest.mark.filterwarnings("ignore:.*use of fork:DeprecationWarning:multiprocessing"),
]
VEC_ENVS = pytest.mark.parametrize("vec_env_cls", [DummyVecEnv, subproc()], ids=["DummyVecEnv", "SubprocVecEnv"])


BOX2D = {
    "LunarLander-v3": ({}, 150),
    "LunarLander-v3, continuous": ({"continuous": True}, 150),
    "BipedalWalker-v3": ({}, 150),
    "CarRacing-v3": ({"max_episode_steps": 7}, 8),
}


@VEC_ENVS
@pytest.mark.parametrize("case", BOX2D)
def test_box2d(case, vec_env_cls):
    pytest.importorskip("Box2D")
    env_id = case.split(",")[0]
    kwargs, n_steps = BOX2D[case]

    def make_venv():
        make_env = reporting(lambda: Monitor(gym.make(env_id, **{"max_episode_steps": 120, **kwargs})))
        return make_vec_env(make_env, 1 if env_id == "CarRacing-v3" else 2, vec_env_cls=vec_env_cls)

    assert_laws_of_paths(make_venv, n_steps, {0: 1, 1: 5})


class Gambler(gym.Env):
    """Draws from every random generator there is."""

    observation_space = spaces.Box(-np.inf, np.inf, (6,), np.float64)
    action_space = spaces.Discrete(3)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.own = random.Random(0)
        return np.zeros(6), {}

    def step(self, action):
        draws = [
            self.np_random.normal(),
            self.own.random(),
            random.random(),
            np.random.normal(),
            th.rand(()).item(),
            self.action_space.sample() + action,
        ]
        return np.array(draws), draws[2], draws[2] > 0.8, False, {}


def test_branches_draw_the_same_random_numbers_as_the_committed_step():
    venv = make_vec_env(reporting(Gambler), 1)
    venv.action_space.seed(0)
    *_, dones, _ = assert_laws_of_paths(lambda: make_vec_env(reporting(Gambler), 1), 12, {t: 1 + t % 3 for t in range(12)})
    assert dones.any()


def test_random_generators_are_made_before_the_first_branch():
    """Of spaces that nobody has seeded too: each branch would make one of its own."""
    brancher = ForkBrancher([Gambler()], as_returned=True)
    brancher._simulators[0].env.reset()
    outcome = brancher.open(np.zeros((1, 3), dtype=int), np.ones((1, 3), dtype=bool), 1)
    assert (outcome.observations[0] == outcome.observations[0, :1]).all()


def hidden_walk():
    """Return an environment that keeps its position where Python code does not find it."""
    handle = far_library().connect()

    class HidesItsState(Walk):
        def step(self, action):
            obs, _, *rest = super().step(action)
            return obs, far_library().step(handle) % 1000, *rest

    return gym.wrappers.TimeLimit(HidesItsState(), 9)


# What it catches and does not expect, pytest warns of again, but not as of the module that it came from.
@pytest.mark.filterwarnings("ignore:.*use of fork:DeprecationWarning")
@VEC_ENVS
def test_auto_falls_back_with_one_warning_and_nothing_is_changed_by_finding_out(vec_env_cls):
    def make_venv():
        return make_vec_env(reporting(hidden_walk), 2, vec_env_cls=vec_env_cls)

    with pytest.warns(UserWarning, match=r"HidesItsState.*hidden.*forked copy.*ms per branch.*brancher='fork'") as caught:
        assert_laws_of_paths(make_venv, 20, {0: 1, 1: 4, 5: 2}, name="auto")
    assert len([warning for warning in caught if warning.category is UserWarning]) == 1


@VEC_ENVS
def test_snapshot_never_forks(vec_env_cls):
    with contextlib.closing(make_vec_env(hidden_walk, 2, vec_env_cls=vec_env_cls)) as venv:
        with pytest.raises(UnbranchableEnvError, match=r"HidesItsState.*hidden(?s:.*)brancher='fork'"):
            make_brancher("snapshot", venv)


def test_auto_takes_snapshots_where_they_are_exact():
    assert isinstance(local.choose_brancher("auto", [limited()()]).brancher, local.LocalBrancher)


def test_platform_without_fork(monkeypatch):
    for module in (fork, local):
        monkeypatch.setattr(module, "CAN_FORK", False)
    with pytest.raises(UnbranchableEnvError, match=r"os\.fork"):
        make_brancher("fork", make_vec_env(hidden_walk))
    with pytest.raises(UnbranchableEnvError, match="hidden"):
        make_brancher("auto", make_vec_env(hidden_walk))


def test_training():
    model = HybridGRPO(
        "MlpPolicy",
        make_vec_env(hidden_walk, 2),
        n_steps=4,
        batch_size=4,
        n_samples=2,
        branch_horizon=2,
        brancher="fork",
        seed=0,
    )
    model.learn(8)
    assert 8 * 2 < model.num_simulator_steps <= 8 * 3


NORMAL, RAISE, KILL, HANG, EXIT, CHATTER = range(6)


class Troublesome(Walk):
    """Makes trouble in copies of the process, on request."""

    def __init__(self):
        super().__init__(action_space=spaces.Discrete(6))
        self.home, self.armed = None, False

    def arm(self):
        self.home, self.armed = os.getpid(), True

    def step(self, action):
        if self.armed and os.getpid() != self.home:
            self.make_trouble(action)
        return super().step(action / 100)

    def make_trouble(self, action):
        if action == RAISE:
            raise ArithmeticError("the simulation exploded")
        if action == KILL:
            os.kill(os.getpid(), signal.SIGKILL)
        if action == HANG:
            time.sleep(60)
        if action == EXIT:
            sys.exit("no more")
        if action == CHATTER:
            print("x" * 100_000)
            os.write(1, b"x")


@pytest.fixture
def pids(monkeypatch):
    """Return a list that fills with the ids of all processes that are forked."""
    found, real_fork = [], os.fork

    def recording_fork():
        found.append(real_fork())
        return found[-1]

    monkeypatch.setattr(os, "fork", recording_fork)
    return found


def assert_gone(pids):
    """No process is left, not even as a zombie."""
    assert pids
    for pid in pids:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)


def lowest_free_descriptor():
    descriptor = os.dup(2)
    os.close(descriptor)
    return descriptor


def troublesome_brancher(**kwargs):
    env = Troublesome()
    env.reset(seed=0)
    brancher = ForkBrancher([env], **kwargs)
    env.arm()
    return env, brancher


def branch(brancher, actions, horizon=1):
    actions = np.array([actions])
    return brancher.open(actions, np.ones(actions.shape, dtype=bool), horizon)


FAULTS = {
    RAISE: "raised ArithmeticError in a branch: the simulation exploded",
    KILL: "was killed by SIGKILL in the process of a branch",
    HANG: "took longer than branch_timeout=0.5 s",
    EXIT: "raised SystemExit in a branch: no more",
}


@pytest.mark.parametrize("horizon", [1, 3])
@pytest.mark.parametrize("fault", FAULTS)
def test_faults(fault, horizon, pids):
    env, brancher = troublesome_brancher(timeout=0.5)
    before, descriptor = describe(env), lowest_free_descriptor()
    expected = branch(brancher, [NORMAL, NORMAL])
    with pytest.raises(BranchTimeoutError if fault == HANG else BranchError, match=FAULTS[fault]) as caught:
        branch(brancher, [NORMAL, fault, NORMAL], horizon)
        brancher.advance(np.array([[fault, NORMAL, NORMAL]]), np.array([[True, False, False]]))
    assert "Troublesome" in str(caught.value) and f"Action: {fault}" in str(caught.value)
    assert_gone(pids)
    assert lowest_free_descriptor() == descriptor
    assert describe(env) == before
    np.testing.assert_array_equal(branch(brancher, [NORMAL, NORMAL]).observations, expected.observations)


def test_fault_in_a_later_step(pids):
    _, brancher = troublesome_brancher()
    branch(brancher, [NORMAL, NORMAL], horizon=3)
    with pytest.raises(BranchError, match="was killed by SIGKILL"):
        brancher.advance(np.array([[NORMAL, KILL]]), np.ones((1, 2), dtype=bool))
    assert_gone(pids)


def test_branches_that_end_at_different_times(pids):
    class Ends(Walk):
        def step(self, action):
            self.position += action[0]
            return self._observe(), 0.0, bool(self.position > 2), False, {}

    env = Ends()
    env.reset(seed=0)
    env.position = 0.0
    brancher = ForkBrancher([env])
    actions, alive = np.array([[[3.0, 0], [1.0, 0], [0.0, 0]]]), np.ones((1, 3), dtype=bool)
    outcome = brancher.open(actions, alive, 5)
    for _ in range(4):
        alive &= ~outcome.terminated
        outcome = brancher.advance(actions, alive)
    assert alive.tolist() == [[False, False, True]]
    assert_gone(pids)


def test_branch_that_dies_between_its_steps(pids):
    _, brancher = troublesome_brancher()
    branch(brancher, [NORMAL, NORMAL], horizon=3)
    os.kill(pids[-1], signal.SIGKILL)
    with pytest.raises(BranchError, match="was killed by SIGKILL"):
        brancher.advance(np.array([[NORMAL, NORMAL]]), np.ones((1, 2), dtype=bool))
    assert_gone(pids)


@pytest.mark.parametrize("fault", [RAISE, KILL])
def test_faults_in_workers(fault):
    """A worker outlives what happens in its branches."""
    with contextlib.closing(make_vec_env(Troublesome, 2, seed=0, vec_env_cls=subproc())) as venv:
        venv.reset()
        brancher = make_brancher("fork", venv)
        venv.env_method("arm")
        actions = np.array([[NORMAL, NORMAL], [NORMAL, fault]])
        with pytest.raises(BranchError, match=f"worker of environment 1.*(?s:.*){FAULTS[fault]}"):
            brancher.open(actions, np.ones((2, 2), dtype=bool), 2)
        outcome = brancher.open(actions[:, :1], np.ones((2, 1), dtype=bool), 1)
        obs, *_ = venv.step(actions[:, 0])
        np.testing.assert_array_equal(outcome.observations[:, 0].astype(np.float32), obs)


def test_environment_that_raises_at_once(pids):
    env = Troublesome()
    env.arm()
    env.make_trouble = lambda action: 1 / 0
    with pytest.raises(BranchError, match=r"Troublesome.* raised ZeroDivisionError when a few steps"):
        ForkBrancher([env])
    assert_gone(pids)


def test_system_that_refuses_another_process(monkeypatch):
    _, brancher = troublesome_brancher()

    def refuse():
        raise BlockingIOError("Resource temporarily unavailable")

    monkeypatch.setattr(os, "fork", refuse)
    descriptor = lowest_free_descriptor()
    with pytest.raises(BranchError, match=r"could not be forked.*temporarily unavailable"):
        branch(brancher, [NORMAL])
    assert lowest_free_descriptor() == descriptor


def press_ctrl_c(after, is_over):
    """Press once, and once more if Python lost it, as it does in the middle of a finalizer."""
    while not is_over.wait(after):
        os.kill(os.getpid(), signal.SIGINT)
        after = 2


@pytest.fixture
def minded_ctrl_c():
    """A shell starts jobs in the background with Ctrl-C ignored, and Python then leaves it at that."""
    handler = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, handler)


@pytest.mark.usefixtures("minded_ctrl_c")
def test_ctrl_c_leaves_no_process(pids):
    """Wherever it comes; signals reach a process group as a whole, but only the parent minds them."""
    env, brancher = troublesome_brancher(max_running=2)
    before, descriptor = describe(env), lowest_free_descriptor()
    for seconds in [0.5, *np.linspace(0.001, 0.1, 12)]:
        is_over = threading.Event()
        presser = threading.Thread(target=press_ctrl_c, args=(seconds, is_over))
        with pytest.raises(KeyboardInterrupt):
            presser.start()
            branch(brancher, [NORMAL, NORMAL, HANG, HANG], horizon=2)
        is_over.set()
        presser.join()
        assert_gone(pids)
        assert lowest_free_descriptor() == descriptor
    assert describe(env) == before


def test_branches_that_wait_ignore_requests_to_stop(pids):
    _, brancher = troublesome_brancher()
    branch(brancher, [NORMAL, NORMAL], horizon=2)
    for pid, number in itertools.product(pids[-2:], (signal.SIGINT, signal.SIGTERM)):
        os.kill(pid, number)
    brancher.advance(np.zeros((1, 2)), np.ones((1, 2), dtype=bool))


def hang_in_a_branch():
    _, brancher = troublesome_brancher()
    branch(brancher, [HANG])


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells processes that their parent died")
def test_no_branch_outlives_a_killed_process():
    read_end, write_end = os.pipe()
    process = multiprocessing.get_context("fork").Process(target=hang_in_a_branch)
    process.start()
    os.close(write_end)
    time.sleep(0.5)
    process.kill()
    process.join()
    is_closed, _, _ = select.select([read_end], [], [], 10)
    os.close(read_end)
    assert is_closed, "somebody still holds the other end"


def test_branches_run_in_parallel_up_to_the_limit(tmp_path):
    class Clocked(Troublesome):
        def make_trouble(self, action):
            start = time.monotonic()
            time.sleep(0.2)
            (tmp_path / str(os.getpid())).write_text(f"{start} {time.monotonic()}")

    for max_running in (1, 3):
        env = Clocked()
        env.reset(seed=0)
        brancher = ForkBrancher([env], max_running=max_running)
        env.arm()
        for path in tmp_path.iterdir():
            path.unlink()
        branch(brancher, [NORMAL] * 5)
        times = np.array([path.read_text().split() for path in tmp_path.iterdir()], dtype=float)
        assert len(times) == 5
        assert max(((times[:, 0] <= start) & (start < times[:, 1])).sum() for start in times[:, 0]) == max_running


def test_branches_write_nothing(tmp_path, capfd):
    """Neither what the parent had not written yet, nor what they print, nor Monitor's rows; nor do they run exit handlers."""
    env = Monitor(gym.wrappers.TimeLimit(Troublesome(), 3), str(tmp_path / "log"))
    env.reset(seed=0)
    brancher = ForkBrancher([env])
    env.unwrapped.arm()
    atexit.register((tmp_path / "exit").touch)
    print("once", end="")
    actions, alive = np.full((1, 2), CHATTER), np.ones((1, 2), dtype=bool)
    for _ in range(3):
        outcome = branch(brancher, actions[0], horizon=4)
        while not (outcome.terminated | outcome.truncated).any():
            outcome = brancher.advance(actions, alive)
        env.step(NORMAL)
    brancher.close()
    atexit.unregister((tmp_path / "exit").touch)
    env.close()
    assert capfd.readouterr().out == "once"
    assert not (tmp_path / "exit").exists()
    assert len(list(csv.reader((tmp_path / "log.monitor.csv").read_text().splitlines()))) == 3


@contextlib.contextmanager
def live_thread():
    done = threading.Event()
    thread = threading.Thread(target=done.wait)
    thread.start()
    yield thread
    done.set()
    thread.join()


@contextlib.contextmanager
def live_process():
    process = multiprocessing.get_context("fork").Process(target=time.sleep, args=(60,))
    process.start()
    yield process
    process.kill()
    process.join()


HANDLES = {
    "threading.Thread": live_thread,
    "_io.TextIOWrapper": lambda: open(os.devnull, "w"),
    "socket.socket": socket.socket,
    "multiprocessing.synchronize.Lock": lambda: contextlib.nullcontext(multiprocessing.get_context("fork").Lock()),
}


@pytest.mark.parametrize(
    "name, kind, make_handle",
    [
        *((name, kind, make_handle) for kind, make_handle in HANDLES.items() for name in ("auto", "fork")),
        ("fork", "multiprocessing.context.ForkProcess", live_process),
    ],
)
def test_what_a_copy_would_share_is_refused_by_name(name, kind, make_handle):
    env = limited()()
    with make_handle() as handle:
        env.unwrapped.parts = {"handle": handle}
        message = rf"Walk\.parts\['handle'\] is a {kind}, which a copy(?s:.*)n_samples=1"
        with pytest.raises(UnbranchableEnvError, match=message):
            make_brancher(name, DummyVecEnv([lambda: env]))


def test_arrays_in_a_file_are_refused(tmp_path):
    env = Walk()
    env.map = np.memmap(tmp_path / "map", mode="w+", shape=(3,))
    with pytest.raises(UnbranchableEnvError, match=r"Walk\.map is a numpy\S*memmap"):
        ForkBrancher([env])


def test_state_outside_the_process_is_found_out():
    shared = mmap.mmap(-1, 1)

    class HasADevice(Walk):
        def step(self, action):
            shared[0] += 1
            return super().step(action + shared[0])

    with pytest.raises(UnbranchableEnvError, match=r"HasADevice.* other observations.*outside this process"):
        ForkBrancher([HasADevice()])


@pytest.mark.parametrize("n_branches", [200, pytest.param(10_000, marks=pytest.mark.slow)])
def test_soak(n_branches, pids):
    env = Walk()
    env.reset(seed=0)
    brancher = ForkBrancher([env])
    before, descriptor = describe(env), lowest_free_descriptor()
    actions, alive = np.zeros((1, 10, 2)), np.ones((1, 10), dtype=bool)
    expected = brancher.open(actions, alive, 1).observations
    for _ in range(n_branches // 10 - 1):
        np.testing.assert_array_equal(brancher.open(actions, alive, 1).observations, expected)
    brancher.close()
    assert len(pids) >= n_branches
    assert_gone(pids)
    assert lowest_free_descriptor() == descriptor
    assert describe(env) == before
