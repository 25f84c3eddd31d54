"""What goes wrong in a branch ends with one clear error; the committed state is intact, and nothing is left behind."""

import errno
import os
import pickle
import signal
import sys
import threading
import time

import gymnasium as gym
import numpy as np
import pytest
from stable_baselines3.common.callbacks import BaseCallback, CheckpointCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.monitor import Monitor, ResultsWriter
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv, VecFrameStack

from sb3_hybrid_grpo import (
    BranchError,
    BranchTimeoutError,
    GroupedSubprocVecEnv,
    HybridGRPO,
    InvalidArgumentError,
    InvalidOutcomeError,
)
from sb3_hybrid_grpo.branching import make_brancher
from sb3_hybrid_grpo.policies.actors import Actor
from sb3_hybrid_grpo.rollout.branch_paths import BranchPaths
from tests.envs import Walk, limited

SMALL = {"n_steps": 16, "batch_size": 16, "n_epochs": 1, "seed": 0, "device": "cpu"}
posix = pytest.mark.skipif(sys.platform == "win32", reason="signals of POSIX")


class Fragile(Walk):
    """Does what its attribute ``fault`` says when the first component of an action is above 0.9."""

    fault = None

    def break_by(self, fault):
        self.fault = fault

    def step(self, action):
        result = super().step(action)
        if self.fault is not None and action[0] > 0.9:
            if self.fault == "raise":
                raise ArithmeticError("the simulation exploded")
            if self.fault == "hang":
                while True:
                    time.sleep(0.01)
            if self.fault == "sigkill":
                os.kill(os.getpid(), signal.SIGKILL)
            if self.fault == "nan":
                return np.full(2, np.nan, dtype=np.float32), *result[1:]
            if self.fault == "interrupt":
                raise KeyboardInterrupt
        return result


def fragile():
    return gym.wrappers.TimeLimit(Fragile(), 50)


HARMLESS, HARMFUL = [0.0, 0.0], [1.0, 0.0]


def step(brancher, *env_actions):
    actions = np.array(env_actions, dtype=np.float32)
    return brancher.open(actions, np.ones(actions.shape[:2], dtype=bool), horizon=1)


def make(vec_env_cls, n_envs=2, **kwargs):
    vec_env = make_vec_env(fragile, n_envs, seed=0, vec_env_cls=vec_env_cls)
    return vec_env, make_brancher("auto", vec_env, **kwargs)


def assert_intact(vec_env, brancher, reference):
    """The environment goes on exactly like one that never branched."""
    for action in np.random.default_rng(0).uniform(-0.8, 0.8, size=(10, 2, 2)).astype(np.float32):
        step(brancher, [HARMLESS], [HARMLESS])
        for seen, expected in zip(vec_env.step(action)[:3], reference.step(action)[:3], strict=True):
            np.testing.assert_array_equal(np.float32(seen), np.float32(expected))


@pytest.mark.parametrize("vec_env_cls", [None, SubprocVecEnv])
@pytest.mark.parametrize(
    "fault, error", [("raise", BranchError), pytest.param("hang", BranchTimeoutError, marks=posix)], ids=["raise", "hang"]
)
def test_environment_that_raises_or_hangs(vec_env_cls, fault, error):
    vec_env, brancher = make(vec_env_cls, timeout=0.3)
    reference = make_vec_env(fragile, 2, seed=0)
    vec_env.reset(), reference.reset()
    vec_env.env_method("break_by", fault)
    start = time.monotonic()
    with pytest.raises(error, match="nvironment 1"):
        step(brancher, [HARMLESS, HARMLESS], [HARMLESS, HARMFUL])
    assert time.monotonic() - start < 5
    assert_intact(vec_env, brancher, reference)
    vec_env.close()


@posix
def test_time_limit_leaves_no_alarm_behind():
    vec_env, brancher = make(None, timeout=0.2)
    vec_env.reset()
    step(brancher, [HARMLESS], [HARMLESS])
    assert signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0)
    assert signal.getsignal(signal.SIGALRM) is signal.SIG_DFL


@posix
def test_an_alarm_of_the_users_goes_on():
    rings = []
    signal.signal(signal.SIGALRM, lambda *arguments: rings.append(time.monotonic()))
    try:
        start = time.monotonic()
        signal.setitimer(signal.ITIMER_REAL, 0.5, 1000.0)
        vec_env, brancher = make(None, timeout=5.0)
        vec_env.reset()
        step(brancher, [HARMLESS], [HARMLESS])
        while not rings and time.monotonic() < start + 10:
            time.sleep(0.01)
        assert rings and rings[0] - start >= 0.45
        remaining, interval = signal.getitimer(signal.ITIMER_REAL)
        assert 900 < remaining <= 1000 and interval == 1000.0
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, signal.SIG_DFL)


def test_time_limit_does_nothing_outside_the_main_thread():
    vec_env, brancher = make(None, timeout=0.2)
    vec_env.reset()
    outcomes = []
    thread = threading.Thread(target=lambda: outcomes.append(step(brancher, [HARMLESS], [HARMLESS])))
    thread.start()
    thread.join()
    assert outcomes[0].rewards.shape == (2, 1)


@posix
def test_worker_that_dies():
    vec_env, brancher = make(SubprocVecEnv)
    vec_env.reset()
    vec_env.env_method("break_by", "sigkill")
    with pytest.raises(BranchError, match=r"died in a branch: environment 1 \(process \d+, exit code -9\).*last checkpoint"):
        step(brancher, [HARMLESS], [HARMFUL])
    assert not [process for process in vec_env.processes if process.is_alive()]
    vec_env.close()


@posix
def test_worker_that_died_before():
    vec_env, brancher = make(SubprocVecEnv)
    vec_env.reset()
    os.kill(vec_env.processes[0].pid, signal.SIGKILL)
    vec_env.processes[0].join()
    with pytest.raises(BranchError, match="environment 0"):
        step(brancher, [HARMLESS], [HARMLESS])
    assert not [process for process in vec_env.processes if process.is_alive()]


@posix
def test_worker_that_never_answers():
    """Stopped, it cannot interrupt itself: the main process ends it."""
    vec_env, brancher = make(SubprocVecEnv, timeout=0.1)
    vec_env.reset()
    os.kill(vec_env.processes[1].pid, signal.SIGSTOP)
    with pytest.raises(BranchTimeoutError, match=r"branch_timeout=0\.1"):
        step(brancher, [HARMLESS], [HARMLESS])
    assert not [process for process in vec_env.processes if process.is_alive()]


@pytest.mark.parametrize("vec_env_cls", [None, SubprocVecEnv])
def test_nan_in_a_branch(vec_env_cls):
    vec_env = make_vec_env(fragile, 2, seed=0, vec_env_cls=vec_env_cls)
    model = HybridGRPO("MlpPolicy", vec_env, **SMALL)
    vec_env.env_method("break_by", "nan")
    with pytest.raises(InvalidOutcomeError, match="returned NaN or infinity as observation"):
        model.learn(1_000)
    vec_env.close()


def test_interrupt_in_a_branch_restores():
    vec_env, brancher = make(None)
    reference = make_vec_env(fragile, 2, seed=0)
    vec_env.reset(), reference.reset()
    vec_env.env_method("break_by", "interrupt")
    with pytest.raises(KeyboardInterrupt):
        step(brancher, [HARMFUL], [HARMLESS])
    assert_intact(vec_env, brancher, reference)


def test_interrupt_while_a_state_is_restored(monkeypatch):
    from sb3_hybrid_grpo.branching.snapshots.snapshot import Snapshot

    vec_env, brancher = make(None)
    reference = make_vec_env(fragile, 2, seed=0)
    vec_env.reset(), reference.reset()
    restore, interrupts = Snapshot.restore, [KeyboardInterrupt]

    def interrupted(self):
        if interrupts:
            raise interrupts.pop()
        restore(self)

    monkeypatch.setattr(Snapshot, "restore", interrupted)
    with pytest.raises(KeyboardInterrupt):
        step(brancher, [HARMLESS], [HARMLESS])
    assert_intact(vec_env, brancher, reference)


@posix
def test_interrupt_between_question_and_answer_keeps_workers_in_step(monkeypatch):
    """Ctrl-C in a notebook: the answers that are still due must not be taken for those of the next command."""
    vec_env, brancher = make(SubprocVecEnv)
    reference = make_vec_env(fragile, 2, seed=0)
    vec_env.reset(), reference.reset()
    remote = vec_env.remotes[1]
    interrupts = [KeyboardInterrupt]

    class Interrupted:
        def recv(self):
            if interrupts:
                raise interrupts.pop()
            return remote.recv()

        def __getattr__(self, name):
            return getattr(remote, name)

    monkeypatch.setattr(vec_env, "remotes", (vec_env.remotes[0], Interrupted()))
    with pytest.raises(KeyboardInterrupt):
        step(brancher, [HARMLESS], [HARMLESS])
    interrupts.append(KeyboardInterrupt)
    committed = np.zeros((2, 2), dtype=np.float32)
    with pytest.raises(KeyboardInterrupt):
        paths(brancher, [HARMLESS], [HARMLESS]).step_env(vec_env, committed)
    reference.step(committed)
    assert_intact(vec_env, brancher, reference)
    vec_env.close()


def test_full_disk_while_monitor_writes(tmp_path, monkeypatch):
    """The error of the committed step reaches the user as it is, and a checkpoint taken before loads."""
    env = Monitor(gym.wrappers.TimeLimit(Walk(), 20), str(tmp_path / "monitor"))
    model = HybridGRPO("MlpPolicy", env, **SMALL)
    full = []

    def write_row(self, episode):
        if full:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    class FillDisk(BaseCallback):
        def _on_step(self):
            if self.num_timesteps > 20:
                full.append(True)
            return True

    monkeypatch.setattr(ResultsWriter, "write_row", write_row)
    with pytest.raises(OSError, match=os.strerror(errno.ENOSPC)):
        model.learn(200, callback=[CheckpointCallback(16, str(tmp_path)), FillDisk()])
    env.close()
    assert HybridGRPO.load(tmp_path / "rl_model_16_steps", env=limited()()).learn(16).num_timesteps == 16


@posix
def test_checkpoint_before_a_killed_worker_loads(tmp_path):
    vec_env = make_vec_env(fragile, 2, seed=0, vec_env_cls=SubprocVecEnv)
    model = HybridGRPO("MlpPolicy", vec_env, **SMALL)

    class Break(BaseCallback):
        def _on_step(self):
            if self.num_timesteps == 32:
                self.training_env.env_method("break_by", "sigkill")
            return True

    with pytest.raises((BranchError, EOFError, ConnectionError)):
        model.learn(1_000, callback=[CheckpointCallback(8, str(tmp_path)), Break()])
    loaded = HybridGRPO.load(tmp_path / "rl_model_16_steps", env=limited()())
    assert loaded.learn(16, reset_num_timesteps=False).num_timesteps == 32


@pytest.mark.parametrize("timeout", [0, -1.0, float("nan")])
def test_bad_timeout(timeout):
    with pytest.raises(InvalidArgumentError, match="branch_timeout"):
        HybridGRPO("MlpPolicy", limited()(), branch_timeout=timeout)


def paths(brancher, *env_actions):
    actions = np.array(env_actions, dtype=np.float32)
    return BranchPaths(Actor(None), brancher, actions, np.ones(actions.shape[:2], dtype=bool), np.zeros((2, 2)))


@pytest.mark.parametrize("vec_env_cls", [None, SubprocVecEnv])
@pytest.mark.parametrize("actions", [HARMLESS, HARMFUL], ids=["harmless", "harmful"])
def test_branch_and_committed_step_stay_in_step(vec_env_cls, actions):
    """Workers are asked for the committed step before they have answered about the branches."""
    vec_env, brancher = make(vec_env_cls)
    reference = make_vec_env(fragile, 2, seed=0)
    vec_env.reset(), reference.reset()
    vec_env.env_method("break_by", "raise")
    committed = np.full((2, 2), 0.3, dtype=np.float32)
    if actions is HARMFUL:
        with pytest.raises(BranchError, match="nvironment 1"):
            paths(brancher, [HARMLESS], [actions]).step_env(vec_env, committed)
        if brancher.has_workers:
            reference.step(committed)
    else:
        branches = paths(brancher, [HARMLESS], [actions])
        np.testing.assert_array_equal(branches.step_env(vec_env, committed)[0], reference.step(committed)[0])
        branches.join()
        assert len(branches.steps) == 1
    assert_intact(vec_env, brancher, reference)
    vec_env.close()


@posix
def test_worker_that_dies_in_a_branch():
    vec_env, brancher = make(SubprocVecEnv)
    vec_env.reset()
    os.kill(vec_env.processes[1].pid, signal.SIGSTOP)
    branches = paths(brancher, [HARMLESS], [HARMLESS])
    vec_env.processes[1].kill()
    vec_env.processes[1].join()
    with pytest.raises(BranchError, match="died in a branch"):
        branches.step_env(vec_env, np.zeros((2, 2), dtype=np.float32))
    assert not any(process.is_alive() for process in vec_env.processes)


@posix
def test_worker_that_dies_in_the_committed_step():
    vec_env, brancher = make(SubprocVecEnv)
    vec_env.reset()
    vec_env.env_method("break_by", "sigkill")
    branches = paths(brancher, [HARMLESS], [HARMLESS])
    with pytest.raises(BranchError, match=r"in the committed step after it: environment 1 .*exit code -9"):
        branches.step_env(vec_env, np.array([HARMLESS, HARMFUL], dtype=np.float32))
    assert not any(process.is_alive() for process in vec_env.processes)


class Secretive(Walk):
    """Its sixth step tells what cannot be sent."""

    def step(self, action):
        *returned, info = super().step(action)
        self.n_taken = getattr(self, "n_taken", 0) + 1
        return *returned, {"why": lambda: 1} if self.n_taken == 6 else info


def test_what_a_worker_cannot_send_is_named():
    venv = GroupedSubprocVecEnv([Secretive] * 2, n_workers=1)
    model = HybridGRPO("MlpPolicy", venv, n_samples=2, branch_horizon=1, **SMALL)
    with pytest.raises((AttributeError, pickle.PicklingError), match="pickle"):
        model.learn(32)
    venv.close()


class Masked(Walk):
    """Tells masks that its actions have no use for."""

    def action_masks(self):
        return np.ones(3, dtype=bool)


def test_masks_of_continuous_actions_are_passed_over():
    HybridGRPO("MlpPolicy", Masked(), n_samples=2, branch_horizon=1, **SMALL).learn(16)


class MakesAnother(BaseCallback):
    def _on_step(self):
        if self.n_calls == 5:
            make_brancher("auto", self.training_env)
        return True


@pytest.mark.parametrize("vec_env_cls", [SubprocVecEnv, GroupedSubprocVecEnv])
def test_a_second_brancher_of_the_same_workers(vec_env_cls):
    def rewards_of_turns(cls):
        venv = make_vec_env("Pendulum-v1", 2, seed=0, vec_env_cls=cls)
        one, other = (HybridGRPO("MlpPolicy", venv, n_samples=2, branch_horizon=2, **SMALL) for _ in range(2))
        for model in one, other, one:
            model.learn(32, reset_num_timesteps=False)
        return venv, one, one.rollout_buffer.rewards

    venv, model, rewards = rewards_of_turns(vec_env_cls)
    try:
        np.testing.assert_array_equal(rewards, rewards_of_turns(DummyVecEnv)[2])
        with pytest.raises(BranchError, match=r"Another brancher was made for these environments in the middle of a rollout"):
            model.learn(32, callback=MakesAnother())
        assert model.learn(32).num_timesteps == 32
    finally:
        venv.close()


def test_workers_that_were_started_anew_are_branched():
    venv = GroupedSubprocVecEnv([limited()] * 2, n_workers=1)
    model = HybridGRPO("MlpPolicy", venv, n_samples=2, branch_horizon=1, **SMALL).learn(32)
    venv.restart()
    model._last_obs = None
    assert model.learn(32, reset_num_timesteps=False).num_timesteps == 64
    venv.close()


class Precise(Walk):
    """Returns more digits than its space has."""

    def step(self, action):
        obs, *rest = super().step(action)
        return obs + np.full(1, 1e-9), *rest


def test_frames_are_stacked_in_the_precision_of_the_stack():
    venv = VecFrameStack(SubprocVecEnv([Precise] * 2), 2)
    venv.seed(0)
    venv.reset()
    brancher = make_brancher("auto", venv)
    actions = np.zeros((2, 1, *venv.action_space.shape), dtype=np.float32)
    observed = brancher.observed(brancher.open(actions, np.ones((2, 1), dtype=bool), 1), [])
    committed = venv.step(actions[:, 0])[0]
    assert observed.observations.dtype == committed.dtype
    np.testing.assert_array_equal(observed.observations[:, 0], committed)
    venv.close()
