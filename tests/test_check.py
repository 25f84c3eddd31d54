"""The check says the right thing about environments of all kinds, and what to do."""

import random
import re
import threading

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.utils import EzPickle

from sb3_hybrid_grpo import InvalidArgumentError, check_branchable
from sb3_hybrid_grpo.branching import LeafCodec, snapshot
from sb3_hybrid_grpo.branching.child import CAN_FORK
from sb3_hybrid_grpo.check import check
from sb3_hybrid_grpo.check.__main__ import main
from tests.envs import Walk, limited
from tests.lockstep import describe_global_generators

LAST_RESORT = "fork" if CAN_FORK else None
GENERATOR = np.random.default_rng(0)


class Rewarded(Walk):
    """Its rewards come from a place that the tests choose."""

    def step(self, action):
        obs, _, *rest = super().step(action)
        return obs, float(self.surprise()), *rest


def make_closure():
    n_steps = 0

    class InClosure(Rewarded):
        def surprise(self):
            nonlocal n_steps
            n_steps += 1
            return n_steps

    return InClosure()


class WithFunction(Rewarded):
    def __init__(self):
        super().__init__()
        steps = []
        self.surprise = lambda: steps.append(1) or len(steps)


class InModule(Rewarded):
    def surprise(self):
        return GENERATOR.normal()


class InClass(Rewarded):
    n_steps = 0

    def surprise(self):
        type(self).n_steps += 1
        return self.n_steps


class InDefault(Rewarded):
    def surprise(self, steps=[]):  # noqa: B006
        steps.append(1)
        return len(steps)


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


def test_correct_environment():
    generators = describe_global_generators()
    report = check_branchable(limited(10), n_envs=2, n_steps=40)
    assert describe_global_generators() == generators
    assert report.verdict == "exact by snapshots" and report.is_exact and not report.findings
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


@pytest.mark.parametrize(
    "make_env, culprit",
    [
        pytest.param(make_closure, "the closure variable n_steps of InClosure.surprise", id="closure"),
        pytest.param(WithFunction, "the closure variable steps of WithFunction.surprise", id="function"),
        pytest.param(InClass, "the class attribute InClass.n_steps", id="class"),
        pytest.param(InDefault, "a default argument of InDefault.surprise", id="default argument"),
    ],
)
def test_hidden_state(make_env, culprit):
    report = check_branchable(make_env)
    assert report.brancher == LAST_RESORT
    (finding,) = [finding for finding in report.findings if finding.startswith(culprit)]
    assert "keep it in one, as self." in finding
    if CAN_FORK:
        assert report.is_exact and report.verdict.startswith(f"exact by forking ({culprit}")


def test_generator_of_the_module():
    report = check_branchable(InModule)
    assert report.brancher == LAST_RESORT
    (finding,) = [finding for finding in report.findings if "GENERATOR of module tests.test_check" in finding]
    assert "Draw from self.np_random" in finding


class GlobalRandom(Rewarded):
    def surprise(self):
        return np.random.random() + random.random()


def test_generators_of_the_process():
    report = check_branchable(GlobalRandom)
    assert report.verdict == "exact by snapshots"
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


def test_trace_in_the_random_generator(monkeypatch):
    monkeypatch.setattr(snapshot, "_user_registry", {np.random.Generator: Forgetful(), np.random.BitGenerator: Forgetful()})
    monkeypatch.setattr(snapshot, "_resolved", {})
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


def test_replays_without_forks(monkeypatch):
    pytest.importorskip("Box2D")
    monkeypatch.setattr(check, "CAN_FORK", False)
    report = check_branchable("LunarLander-v3", n_steps=30)
    assert report.verdict == "exact by replaying episodes (processes cannot be forked on this system)"
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
    report = check_branchable(Unseeded)
    assert report.brancher == "snapshot"
    assert "differ even without branching" in report.notes[0] and "self.np_random" in report.notes[0]


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
        (["CartPole-v1", "--wrapper", "gymnasium.wrappers:NoSuchWrapper"], "no wrapper 'gymnasium.wrappers:NoSuchWrapper'"),
        (["CartPole-v1", "--wrapper", "NoSuchModule"], "no wrapper 'NoSuchModule'; write module:Class"),
    ],
)
def test_command_line_on_what_does_not_exist(arguments, message, capsys):
    assert main(arguments) == 2
    assert message in capsys.readouterr().err


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
