"""The check says the right thing about environments of all kinds, and what to do."""

import os
import random
import re
import subprocess
import sys
import threading
import time

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.utils import EzPickle

from sb3_hybrid_grpo import InvalidArgumentError, check_branchable
from sb3_hybrid_grpo.branching import LeafCodec
from sb3_hybrid_grpo.branching.copies.child import CAN_FORK
from sb3_hybrid_grpo.branching.simulator.env import LocalBrancher
from sb3_hybrid_grpo.branching.snapshots import registry
from sb3_hybrid_grpo.check import check, isolated
from sb3_hybrid_grpo.check.__main__ import main
from tests.envs import Walk, far_library, limited
from tests.lockstep import describe_global_generators
from tests.modules_with_state import PLACES, REFUSED, make

LAST_RESORT = "fork" if CAN_FORK else None


@pytest.fixture(autouse=True)
def little_time(monkeypatch):
    """Branch few of the steps where branches are slow."""
    monkeypatch.setattr(check, "_SECONDS", 0.5)


class Rewarded(Walk):
    """Its rewards come from a place that the tests choose."""

    def step(self, action):
        obs, _, *rest = super().step(action)
        return obs, float(self.surprise()), *rest


class WithThread(Walk):
    def __init__(self):
        super().__init__()
        self.stopped = threading.Event()
        self.thread = threading.Thread(target=self.stopped.wait, name="telemetry", daemon=True)
        self.thread.start()

    def close(self):
        self.stopped.set()
        self.thread.join()


class WithUnreachableThread(Walk):
    def __init__(self):
        super().__init__()
        stopped = threading.Event()
        threading.Thread(target=stopped.wait, name="telemetry", daemon=True).start()
        type(self).close = lambda self: stopped.set()


class WithFile(Walk):
    def __init__(self, path):
        super().__init__()
        self.log = open(path, "w")

    def step(self, action):
        self.log.write("step\n")
        return super().step(action)

    def close(self):
        self.log.close()


class Pickled(Walk, EzPickle):
    def __init__(self):
        Walk.__init__(self)
        EzPickle.__init__(self)


class Unseeded(Walk):
    def reset(self, *, seed=None, options=None):
        return super().reset(seed=None)


def test_correct_environment(monkeypatch):
    monkeypatch.setattr(check, "_SECONDS", 100.0)
    generators = describe_global_generators()
    report = check_branchable(limited(10), n_envs=2, n_steps=40)
    assert describe_global_generators() == generators
    assert re.fullmatch(r"exact by snapshots, in 40 steps with \d+ ends of episodes", report.verdict)
    assert report.is_exact and not (report.findings or report.side_effects or report.variables)
    assert report.trial.n_steps == report.trial.n_branched == 40 and report.trial.n_ends >= 8
    assert "left no trace" in report.notes[0]
    assert report.codecs["tests.envs.Walk"] == "AttributesCodec"
    assert report.codecs["numpy.random._generator.Generator"] == "LeafCodec"
    assert min(report.costs) > 0
    assert "exact by snapshots" in str(report) and "times as much" in str(report)


def test_instance_and_wrappers():
    report = check_branchable(Walk(), wrappers=[lambda env: gym.wrappers.TimeLimit(env, 10)], n_steps=30)
    assert report.brancher == "snapshot"
    assert "gymnasium.wrappers.common.TimeLimit" in report.codecs
    assert "left no trace" in report.notes[0]


@pytest.mark.parametrize("place", PLACES)
def test_hiding_places_have_lines_of_their_own(place):
    report = check_branchable(lambda: make(PLACES[place]), n_steps=30)
    assert report.verdict.startswith("exact by snapshots") and not report.findings
    assert "saved" in report.variables.values()
    assert any(name in str(report) for name in report.variables)


def test_names_of_hiding_places():
    places = {
        "class attribute": "the class attribute Env.n",
        "global dictionary": "the global variable SCORES of module hiding_place",
        "closure": "the closure variable n of Env.count",
        "default argument": "the default argument actions of Env.count",
    }
    for place, name in places.items():
        assert name in check_branchable(lambda place=place: make(PLACES[place]), n_steps=5).variables


@pytest.mark.parametrize(
    "place, culprit", [("cache", "the cache of Env.draw"), ("function of each episode", "the closure variable actions of")]
)
def test_hiding_places_that_cannot_be_saved(place, culprit):
    report = check_branchable(lambda: make(REFUSED[place]), n_steps=20)
    assert report.brancher == LAST_RESORT
    assert any(culprit in finding for finding in report.findings)
    if CAN_FORK:
        assert report.verdict.startswith("exact by forking, in ")


def test_state_that_changes_outcomes_late():
    """No look at the code finds it, and a few steps show nothing of it: only a long run does."""

    class Late(Walk):
        def __init__(self):
            super().__init__()
            self.handle = far_library().connect()

        def step(self, action):
            obs, _, *rest = super().step(action)
            return obs, float(far_library().step(self.handle) // 150), *rest

    report = check_branchable(Late, n_steps=160)
    assert report.brancher == LAST_RESORT
    assert any("showed another reward" in finding for finding in report.findings)


def test_all_steps_of_a_branch_are_compared(monkeypatch):
    advance = LocalBrancher.advance

    def lie(self, actions, alive):
        outcome = advance(self, actions, alive)
        return outcome._replace(rewards=outcome.rewards + (self._steps_left == 2))

    monkeypatch.setattr(LocalBrancher, "advance", lie)
    report = check_branchable(Walk, n_steps=10)
    assert "showed another reward" in report.findings[0] and "number 3 of the branch" in report.findings[0]


class GlobalRandom(Rewarded):
    def surprise(self):
        return np.random.random() + random.random()


def test_generators_of_the_process():
    report = check_branchable(GlobalRandom)
    assert report.verdict.startswith("exact by snapshots, in ")
    assert report.notes[0].startswith("Steps draw from np.random and random,") and "left no trace" in report.notes[1]


class Forgetful(LeafCodec):
    """Loses what branches drew from the random generator."""

    def __init__(self):
        super().__init__(lambda obj: None, lambda obj, state: None)


class Silent(Walk):
    """Draws random numbers that nobody sees before the next episode."""

    def step(self, action):
        self.np_random.random()
        return np.zeros(2, dtype=np.float32), 0.0, False, False, {}


def test_trace_in_the_random_generator(monkeypatch, request):
    monkeypatch.setattr(registry, "_user_registry", {np.random.Generator: Forgetful(), np.random.BitGenerator: Forgetful()})
    registry._forget_resolved()
    request.addfinalizer(registry._forget_resolved)
    report = check_branchable(Silent)
    assert not report.is_exact or report.brancher == "fork"
    assert any("self.np_random drew something else after branching" in finding for finding in report.findings)


@pytest.mark.skipif(not CAN_FORK, reason="the platform cannot fork")
@pytest.mark.parametrize(
    "env_id, note",
    [
        ("LunarLander-v3", r"brancher='replay' is exact: a branch takes \d+ µs"),
        ("BipedalWalker-v3", r"brancher='replay' does not help: .*outlives a reset"),
    ],
)
def test_replays_beside_forks(env_id, note):
    pytest.importorskip("Box2D")
    report = check_branchable(env_id, n_steps=30)
    assert report.brancher == "fork" and "SwigPyObject" in report.verdict
    assert len([finding for finding in report.findings if "replay" in finding]) == 0
    assert [line for line in report.notes if re.match(note, line)]


@pytest.mark.skipif(not CAN_FORK, reason="the platform cannot fork")
def test_forks_of_short_episodes_whose_end_is_final():
    class Short(Walk):
        def reset(self, **kwargs):
            self.steps_left = (number for number in (2, 1, 0))
            return super().reset(**kwargs)

        def step(self, action):
            steps_left = next(self.steps_left)
            obs, reward, *_ = super().step(action)
            return obs, reward, steps_left == 0, False, {}

    report = check_branchable(Short, n_steps=20)
    assert report.is_exact and report.brancher == "fork"


def test_replays_without_forks(monkeypatch):
    pytest.importorskip("Box2D")
    monkeypatch.setattr(check, "CAN_FORK", False)
    report = check_branchable("LunarLander-v3", n_steps=30)
    assert re.fullmatch(
        r"exact by replaying episodes, in .*30 steps .*\(processes cannot be forked on this system\)", report.verdict
    )
    assert report.is_exact and report.costs.snapshot is None


def test_thread():
    report = check_branchable(WithThread)
    assert not report.is_exact and report.costs is None
    assert report.verdict.startswith("cannot be branched (WithThread.thread is a threading.Thread, ")
    assert any("started the thread 'telemetry'" in finding for finding in report.findings)
    assert any("WithThread.thread is a threading.Thread" in finding for finding in report.findings)
    assert "n_samples=1" in str(report)


def test_thread_that_no_attribute_leads_to():
    report = check_branchable(WithUnreachableThread)
    assert any("started the thread 'telemetry'" in finding for finding in report.findings)


def test_open_file(tmp_path):
    report = check_branchable(lambda: WithFile(tmp_path / "log.txt"))
    assert report.verdict.startswith("cannot be branched (WithFile.log is a _io.TextIOWrapper, ")
    assert any("WithFile.log is a" in finding and "register_codec" in finding for finding in report.findings)


def test_ez_pickle():
    report = check_branchable(Pickled)
    assert report.brancher == "snapshot" and not report.findings
    assert "EzPickle" in report.notes[0]


def test_environment_that_its_seed_does_not_determine():
    """The law is checked with a generator whose state the check has set."""
    report = check_branchable(Unseeded, n_steps=30)
    assert report.brancher == "snapshot"
    assert "super().reset(seed=seed)" in report.notes[0] and "left no trace" in report.notes[1]


def test_environment_that_draws_from_the_system():
    class Entropic(Walk):
        def reset(self, *, seed=None, options=None):
            self.np_random = np.random.default_rng()
            return super().reset()

    report = check_branchable(Entropic, n_steps=30)
    assert report.brancher == "snapshot"
    assert any("differ even without branching" in note and "self.np_random" in note for note in report.notes)


def test_seed_is_not_zero():
    """Which ``if seed:`` ignores."""

    class Careless(Walk):
        def reset(self, *, seed=None, options=None):
            super().reset(seed=seed if seed else None)
            self.np_random = np.random.default_rng(seed) if seed else self.np_random
            return super().reset()

    assert "left no trace" in check_branchable(Careless, n_steps=20).notes[-1]


def test_spaces_of_the_class_are_not_blamed():
    class Sampling(Walk):
        action_space = gym.spaces.Box(-1, 1, (2,))

        def __init__(self):
            self.observation_space, self.render_mode, self.observation = gym.spaces.Box(-10, 10, (2,)), None, "box"

        def step(self, action):
            obs, reward, *rest = super().step(action)
            return obs, reward + self.action_space.sample()[0], *rest

    report = check_branchable(Sampling, n_envs=1, n_steps=20)
    assert report.brancher == "snapshot" and not report.findings


class Appending(Walk):
    def step(self, action):
        with open(self.path, "a") as file:
            file.write("step\n")
        return super().step(action)


@pytest.mark.parametrize("is_hidden", [False, True], ids=["snapshot", "fork"])
def test_side_effects_are_a_verdict_of_their_own(is_hidden, tmp_path):
    class Env(Appending):
        path = str(tmp_path / "steps.csv")

        def __init__(self):
            super().__init__()
            self.handle = far_library().connect()

        def step(self, action):
            obs, reward, *rest = super().step(action)
            return obs, float(far_library().step(self.handle)) if is_hidden else reward, *rest

    report = check_branchable(Env, n_steps=8)
    if is_hidden and not CAN_FORK:
        return
    way = "by forking" if is_hidden else "by snapshots"
    assert report.is_exact and report.verdict.startswith(f"exact, with side effects, {way}, in ")
    assert report.side_effects[0] == f"A step opens {Env.path} for writing."
    assert "on_branch_start()" in report.side_effects[-1] and "side effects:" in str(report)


@pytest.mark.skipif(not CAN_FORK, reason="a process that waits can be given up only if it is a copy")
@pytest.mark.parametrize("waits_always", [True, False], ids=["always", "after a branch"])
def test_step_that_waits_for_something_outside(waits_always, monkeypatch):
    class Waiting(Walk):
        def __init__(self):
            super().__init__()
            self.handle = far_library().connect()

        def reset(self, **kwargs):
            self.expected = far_library().worlds[self.handle] + waits_always
            return super().reset(**kwargs)

        def step(self, action):
            while far_library().worlds[self.handle] != self.expected:
                time.sleep(0.01)
            self.expected = far_library().step(self.handle)
            return super().step(action)

    monkeypatch.setattr(isolated, "PATIENCE", 1.0)
    if waits_always:
        with pytest.raises(InvalidArgumentError, match=r"did not return for 1 s\. Does it wait"):
            check_branchable(Waiting, n_steps=5)
    else:
        report = check_branchable(Waiting, n_steps=5)
        assert "snapshot: a step or a branch did not return for 1 s" in report.findings[0]


def test_only_one_environment_is_alive_at_a_time():
    class Single(Walk):
        def __init__(self):
            super().__init__()
            alive = far_library().worlds
            assert not alive.get("emulator"), "only one emulator may exist in a process"
            alive["emulator"] = True

        def close(self):
            far_library().worlds["emulator"] = False

    assert check_branchable(Single, n_steps=10).brancher == "snapshot"
    far_library().worlds.pop("emulator", None)


@pytest.mark.parametrize("can_fork", [True, False] if CAN_FORK else [False])
def test_variables_are_as_they_were_after_the_check(can_fork, monkeypatch):
    for module in (check, isolated):
        monkeypatch.setattr(module, "CAN_FORK", can_fork)
    envs = []
    report = check_branchable(lambda: envs.append(make(PLACES["class attribute"])) or envs[-1], n_steps=10)
    assert report.brancher == "snapshot" and not report.findings
    assert all(type(env).n == 0 for env in envs)


def test_forks_are_tried_to_the_ends_of_episodes():
    report = check_branchable(lambda: gym.wrappers.TimeLimit(make(REFUSED["cache"]), 4), n_steps=60)
    if CAN_FORK:
        assert report.brancher == "fork" and report.trial.n_ends == 15
        assert "of episodes" in report.verdict


def test_default_length(monkeypatch):
    monkeypatch.setattr(check, "_SECONDS", 30.0)
    trial = check_branchable(limited(10)).trial
    assert trial.n_steps >= 200 and trial.n_ends >= 10
    assert check_branchable(lambda: Endless()).trial.n_steps == 500


class Endless(Walk):
    def step(self, action):
        obs, reward, *_ = super().step(action)
        return obs, reward, False, False, {}


def test_command_line(capsys):
    wrapper = "gymnasium.wrappers:NormalizeReward"
    assert main(["CartPole-v1", "--n-envs", "2", "--steps", "30", "--wrapper", wrapper]) == 0
    output = capsys.readouterr().out
    assert "CartPole-v1: exact by snapshots" in output
    assert "NormalizeReward" in output and "cost: env.step" in output


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["NoSuchGame-v0"], "NoSuchGame-v0 cannot be made"),
        (["NoSuchGame-v0"], "check_branchable takes a class as well"),
        (["CartPole-v1", "--wrapper", "gymnasium.wrappers:NoSuchWrapper"], "no wrapper 'gymnasium.wrappers:NoSuchWrapper'"),
        (["CartPole-v1", "--steps", "0"], "`n_steps` must be an integer of at least 1, not 0"),
        (["CartPole-v1", "--n-envs", "-1"], "`n_envs` must be an integer of at least 1, not -1"),
        (["CartPole-v1", "--wrapper", "NoSuchModule"], "no wrapper 'NoSuchModule'; write module:Class"),
    ],
)
def test_command_line_on_what_does_not_exist(arguments, message, capsys):
    assert main(arguments) == 2
    assert message in capsys.readouterr().err


def test_command_line_with_a_code_page_that_lacks_micro():
    environment = {**os.environ, "PYTHONIOENCODING": "gbk"}
    command = [sys.executable, "-m", "sb3_hybrid_grpo.check", "CartPole-v1", "--steps", "5"]
    done = subprocess.run(command, env=environment, capture_output=True, check=True)
    assert b"step of a branch" in done.stdout and b"?s" in done.stdout


def test_command_line_on_what_cannot_be_branched(capsys):
    gym.register("WithThread-v0", WithThread)
    try:
        assert main(["WithThread-v0"]) == 1
    finally:
        del gym.registry["WithThread-v0"]
    assert "WithThread-v0: cannot be branched" in capsys.readouterr().out


def test_what_cannot_be_made():
    def fail():
        raise RuntimeError("no licence")

    with pytest.raises(InvalidArgumentError, match="cannot be made and reset: RuntimeError: no licence"):
        check_branchable(fail)
