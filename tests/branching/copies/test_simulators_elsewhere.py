"""Simulators and clocks outside this process: refused, or noticed at the latest when a committed step shows it."""

import os
import queue
import sys
import threading
import time
from contextlib import nullcontext
from functools import partial
from types import SimpleNamespace

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import DummyVecEnv

from sb3_hybrid_grpo import BranchError, HybridGRPO, UnbranchableEnvError, make_parallel_env
from sb3_hybrid_grpo.branching import choice as local
from sb3_hybrid_grpo.branching import make_brancher
from sb3_hybrid_grpo.branching.choice import choose_brancher
from sb3_hybrid_grpo.branching.copies import fork, rehearsal
from sb3_hybrid_grpo.branching.copies.fork import ForkBrancher
from sb3_hybrid_grpo.branching.copies.replay import ReplayBrancher
from sb3_hybrid_grpo.branching.simulator.env import LocalBrancher
from sb3_hybrid_grpo.branching.vec_env.workers.team import Team
from tests.branching.copies.test_fork import hidden_walk
from tests.envs import Walk, far_library
from tests.lockstep import subproc

pytestmark = [
    pytest.mark.skipif(not hasattr(os, "fork"), reason="the platform cannot fork"),
    pytest.mark.filterwarnings("ignore:.*use of fork:DeprecationWarning"),
]


def serve(requests, answers):
    """Count requests since the last reset."""
    count = 0
    while request := os.read(requests, 1):
        count = 0 if request == b"r" else count + 1
        os.write(answers, count.to_bytes(8, "big"))
    os._exit(0)


class Counter(gym.Env):
    """
    Counts steps in another process, behind two pipes of which Python sees the numbers.

    :param late: number of steps that are not counted
    """

    observation_space = spaces.Box(-np.inf, np.inf, (1,))
    action_space = spaces.Box(-1, 1, (1,))

    def __init__(self, late=0):
        self.late = late
        their_requests, self.requests = os.pipe()
        self.answers, their_answers = os.pipe()
        if os.fork() == 0:
            os.close(self.requests)
            serve(their_requests, their_answers)
        os.close(their_requests)
        os.close(their_answers)

    def ask(self, request):
        os.write(self.requests, request)
        return int.from_bytes(os.read(self.answers, 8), "big")

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return self._observe(self.ask(b"r")), {}

    def step(self, action):
        count = max(self.ask(b"s") - self.late, 0)
        return self._observe(count), float(count), False, False, {}

    def _observe(self, count):
        return np.array([count], dtype=np.float32)

    def close(self):
        os.close(self.requests)
        os.close(self.answers)


@pytest.fixture
def counter():
    env = Counter()
    yield env
    env.close()


@pytest.mark.parametrize(
    "name, message",
    [
        ("fork", r"Counter.* by forking: in two copies .*other observations.*outside this process"),
        ("auto", r"Counter.*hidden(?s:.*)brancher='fork'.*other observations"),
        ("replay", r"Counter.*by replaying episodes: .*new copy returned other observations"),
    ],
)
def test_a_simulator_in_another_process_is_refused(name, message):
    env = Counter()
    with pytest.raises(UnbranchableEnvError, match=message):
        make_brancher(name, DummyVecEnv([lambda: env]))


def open_and_step(brancher, env, n_steps):
    """Branch and commit; return how many steps were committed before the brancher raised."""
    actions, alive = np.zeros((1, 1, 1), dtype=np.float32), np.ones((1, 1), dtype=bool)
    for n_done in range(n_steps):
        try:
            brancher.open(actions, alive, 1)
        except BranchError as error:
            return n_done, str(error)
        finally:
            brancher.close()
        env.step(actions[:, 0])
    return n_steps, ""


@pytest.mark.parametrize("vec_env_cls", [DummyVecEnv, subproc()], ids=["DummyVecEnv", "SubprocVecEnv"])
def test_what_the_probe_misses_a_committed_step_shows(vec_env_cls):
    venv = make_vec_env(partial(Counter, late=24), vec_env_cls=vec_env_cls)
    brancher = make_brancher("fork", venv)
    venv.reset()
    n_done, message = open_and_step(brancher, venv, 30)
    assert n_done == 17
    assert "Environment 0, " in message and "a branch showed other observations than the step with the same" in message
    assert open_and_step(brancher, venv, 1)[0] == 0, "there is no going on"
    venv.close()


def test_training_ends_where_branches_were_wrong():
    env = Counter(late=24)
    model = HybridGRPO("MlpPolicy", env, n_steps=32, batch_size=32, branch_horizon=1, brancher="fork")
    with pytest.raises(BranchError, match=r"Counter.*showed other observations"):
        model.learn(32)
    assert model.num_timesteps < 20
    env.close()


class Throws(Walk):
    """Raises, or dies, in copies of the process only, once it is told to."""

    home, end = None, None

    def step(self, action):
        if self.home not in (None, os.getpid()):
            self.end()
        return super().step(action)


@pytest.mark.parametrize(
    "end, what", [(lambda: 1 / 0, "raised ZeroDivisionError"), (lambda: os._exit(3), "exited with code 3")]
)
def test_branches_that_end_otherwise_than_the_committed_step(end, what):
    env = Throws()
    env.reset(seed=0)
    brancher = ForkBrancher([env])
    brancher.open(np.zeros((1, 1, 2)), np.ones((1, 1), dtype=bool), 1)
    env.home, env.end = os.getpid(), end
    env.step(np.zeros(2))
    with pytest.raises(BranchError, match=f"a branch {what}, unlike the step"):
        brancher.open(np.zeros((1, 1, 2)), np.ones((1, 1), dtype=bool), 1)


def test_comparing_is_rare_and_ends_with_the_brancher(monkeypatch):
    env = Walk()
    brancher = ForkBrancher([env])
    env.reset(seed=0)
    compared = []
    foretell = ForkBrancher.foretell

    def noted(self, *arguments):
        compared.append(n_step)
        return foretell(self, *arguments)

    monkeypatch.setattr(ForkBrancher, "foretell", noted)
    alive = np.ones((1, 1), dtype=bool)
    for n_step in range(140):
        if n_step % 70 == 0:
            env.reset()
        if n_step != 3:
            brancher._forecasts[0].is_open = True
        env.step(np.zeros(2))
    # The step before which nothing was branched does not count.
    assert compared == [0, 1, 2, 5, 9, 17, 33, 65, 129]
    brancher.open(np.zeros((1, 1, 2)), alive, 1)
    assert "step" in vars(env)
    del brancher
    assert "step" not in vars(env)


class DrawsEntropy(Walk):
    """Resets with the system's random numbers, as simulators do that are not seeded."""

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.position = int.from_bytes(os.urandom(2), "big") / 2**16
        self.hidden = (nothing for nothing in ())
        return self._observe(), {}


def test_resets_that_draw_from_the_system_are_no_obstacle():
    env = DrawsEntropy()
    with pytest.warns(UserWarning, match=r"DrawsEntropy\.hidden.*brancher='fork'"):
        brancher = make_brancher("auto", DummyVecEnv([lambda: env]))
    assert type(brancher._simulators) is ForkBrancher
    env.reset()
    n_done, message = open_and_step(ForkBrancher([env]), DummyVecEnv([lambda: env]), 6)
    assert n_done == 6, message


def test_replays_are_compared_with_every_step(monkeypatch):
    """That a copy came to another state is seen at the next branch."""

    class Drifts(Walk):
        def step(self, action):
            self.velocity += far_library().drift
            return super().step(action)

    monkeypatch.setattr(far_library(), "drift", 0.0, raising=False)

    env = Drifts()
    venv = DummyVecEnv([lambda: env])
    brancher = make_brancher("replay", venv)
    venv.reset()
    actions, alive = np.zeros((1, 1, 2)), np.ones((1, 1), dtype=bool)
    brancher.open(actions, alive, 1)
    far_library().drift = 1.0
    venv.step(actions[:, 0])
    far_library().drift = 0.0
    with pytest.raises(BranchError, match="another state when 1 steps"):
        brancher.open(actions, alive, 1)


class WaitsForAClock(Counter):
    """Waits in each step until it is time for the next one."""

    def reset(self, *, seed=None, options=None):
        self.now = 0
        return super().reset(seed=seed)

    def step(self, action):
        self.now += 1
        while self.ask(b"s") != self.now:
            pass
        return self._observe(self.now), 0.0, False, False, {}


@pytest.fixture
def impatient(monkeypatch):
    for module in (fork, rehearsal):
        monkeypatch.setattr(module, "PATIENCE", 0.5)
    monkeypatch.setattr(rehearsal, "_MOST_TIMES_AS_LONG", 1)
    monkeypatch.setattr(local, "_LONGEST_PROBE", 1)


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize(
    "name, message",
    [
        (
            "auto",
            r"WaitsForAClock.*steps that were undone.*did not end within 0 s.*clock(?s:.*)'fork'.* took longer than 0\.5 s",
        ),
        ("snapshot", r"WaitsForAClock.*brancher='snapshot'.*took longer than 1 s"),
        ("fork", r"WaitsForAClock.*a few steps in a copy of the process took longer than 0\.5 s"),
    ],
)
def test_a_step_that_waits_in_vain_when_it_is_undone(name, message):
    env = WaitsForAClock()
    with pytest.raises(UnbranchableEnvError, match=message):
        choose_brancher(name, [env])
    env.close()


@pytest.mark.usefixtures("impatient")
def test_forks_have_as_much_time_as_steps_are_said_to_take():
    env = WaitsForAClock()
    with pytest.raises(UnbranchableEnvError, match=r"steps in a copy of the process took longer than 0\.8 s"):
        choose_brancher("fork", [env], timeout=0.05)
    env.close()


def test_several_environments_have_more_time_for_plain_steps(monkeypatch):
    monkeypatch.delitem(sys.modules, "jax", raising=False)
    child = SimpleNamespace(receive=lambda patience: waited.append(patience))
    waited = []
    rehearsal._hear_of_plain_steps(child, 3)
    assert waited == [90.0]


class Slow(Walk):
    def step(self, action):
        time.sleep(0.01)
        return super().step(action)


def test_slow_environments_have_more_time(monkeypatch):
    monkeypatch.setattr(rehearsal, "PATIENCE", 0.8)
    env = Slow()

    def probe():
        time.sleep(0.5)
        return LocalBrancher([env])

    assert rehearsal.rehearse([env], probe) is None


@pytest.mark.parametrize(
    "end, message", [(lambda: os._exit(3), "process exited with code 3"), (lambda: 1 / 0, "ZeroDivisionErr")]
)
def test_what_happens_to_a_brancher_in_a_copy_stands_in_its_way(end, message):
    assert message in rehearsal.rehearse([Walk()], end)


class AsksAThread(Walk):
    """Has a thread compute, as XLA does, of which no attribute tells."""

    requests, answers = queue.Queue(), queue.Queue()

    @classmethod
    def compute(cls):
        while (value := cls.requests.get()) is not None:
            cls.answers.put(2 * value)

    def step(self, action):
        self.requests.put(float(np.mean(action)))
        return super().step(self.answers.get())


@pytest.fixture
def thread():
    thread = threading.Thread(target=AsksAThread.compute)
    thread.start()
    yield
    AsksAThread.requests.put(None)
    thread.join()


@pytest.fixture
def jax(monkeypatch):
    monkeypatch.setitem(sys.modules, "jax", object())
    monkeypatch.setattr(rehearsal, "_PATIENCE_WITH_JAX", 0.5)
    monkeypatch.setattr(fork, "PATIENCE", 0.5)


@pytest.mark.usefixtures("jax", "thread")
def test_environments_that_use_threads_of_jax_are_not_forked():
    assert type(choose_brancher("auto", [AsksAThread()]).brancher) is LocalBrancher
    with pytest.raises(UnbranchableEnvError, match=r"AsksAThread.*longer than 0\.5 s.*jax is loaded"):
        choose_brancher("fork", [AsksAThread()])


@pytest.mark.usefixtures("jax")
def test_environments_that_only_import_jax_are_forked():
    choice = choose_brancher("auto", [hidden_walk()])
    assert type(choice.brancher) is ForkBrancher and "brancher='fork'" in choice.announcement


class Copied(Walk):
    """Cannot be saved, nor stepped in copies of the process, but is made anew by copying."""

    def __init__(self):
        super().__init__()
        self.steps = (letter for letter in "abc")

    def __deepcopy__(self, memo):
        return type(self)()


def test_replays_serve_where_neither_snapshots_nor_forks_do(monkeypatch):
    def refuse(*arguments):
        raise UnbranchableEnvError("no forks")

    monkeypatch.setattr(ForkBrancher, "__init__", refuse)
    env = gym.wrappers.TimeLimit(Copied(), 9)
    with pytest.warns(UserWarning, match=r"steps.*takes the steps of the episode again.*brancher='replay'"):
        brancher = make_brancher("auto", DummyVecEnv([lambda: env]))
    assert type(brancher._simulators) is ReplayBrancher


@pytest.mark.parametrize(("n_envs", "timeout", "seconds"), [(1, None, 120), (2, None, 240), (2, 0.5, 240), (2, 3.0, 600)])
def test_environments_have_as_much_time_as_they_are_said_to_take(monkeypatch, n_envs, timeout, seconds):
    limits = []
    monkeypatch.setattr(local, "time_limit", lambda seconds, what: limits.append(seconds) or nullcontext())
    choose_brancher("snapshot", [Walk() for _ in range(n_envs)], timeout=timeout)
    assert limits == [seconds]


@pytest.mark.parametrize("timeout", [None, 0.2])
def test_workers_have_as_much_time_to_probe(monkeypatch, timeout):
    asked = []
    call = Team.call

    def recorded(self, method, arguments=None):
        asked.append((method, self._timeout))
        return call(self, method, arguments)

    monkeypatch.setattr(Team, "call", recorded)
    vec_env = make_parallel_env(Walk, 4, n_workers=2)
    try:
        make_brancher("snapshot", vec_env, timeout=timeout)
    finally:
        vec_env.close()
    assert ("prepare", None if timeout is None else 2 * 120 + 5) in asked
