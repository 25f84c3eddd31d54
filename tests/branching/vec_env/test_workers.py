"""Vectorised environments of our own: those of SB3 in all they return, with several environments in each worker."""

import functools
import os
import signal
import sys
import threading
import time
from multiprocessing.shared_memory import SharedMemory

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv

from sb3_hybrid_grpo import (
    FunctionalVecEnv,
    GroupedSubprocVecEnv,
    HybridGRPO,
    InvalidArgumentError,
    UnbranchableEnvError,
    WorkerLostError,
    make_parallel_env,
)
from sb3_hybrid_grpo.branching.copies.child import CAN_FORK
from sb3_hybrid_grpo.branching.vec_env.workers import processes
from tests.envs import limited
from tests.lockstep import assert_laws, describe, reporting, sample_actions

QUICK = "fork" if CAN_FORK else None
posix = pytest.mark.skipif(sys.platform == "win32", reason="signals of POSIX")


def grouped(env_fns, n_workers=2, **kwargs):
    return GroupedSubprocVecEnv(env_fns, n_workers, **{"start_method": QUICK, **kwargs})


class Talkative(gym.Wrapper):
    """Returns infos, keeps options, has methods, and goes wrong on request."""

    fault = None

    def reset(self, *, seed=None, options=None):
        obs, _ = super().reset(seed=seed, options=options)
        self.options = options
        return obs, {"seed": seed, "options": options}

    def step(self, action):
        if self.fault == "raise":
            raise ArithmeticError("the simulation exploded")
        if self.fault == "hang":
            time.sleep(60)
        if self.fault == "die":
            os._exit(3)
        obs, reward, terminated, truncated, info = super().step(action)
        return obs, reward, terminated, truncated, {**info, "reward": reward}

    def break_by(self, fault):
        self.fault = fault

    def add(self, first, second=0):
        return first + second

    def refuse(self):
        raise KeyError("no such thing")

    def not_to_be_pickled(self):
        return threading.Lock()

    def render(self):
        return np.full((2, 2, 3), int(self.np_random.integers(256)), dtype=np.uint8)


def talkative(max_episode_steps=7, **kwargs):
    return lambda: Talkative(limited(max_episode_steps, **kwargs)())


class Pair(gym.ObservationWrapper):
    """Observations as a tuple."""

    def __init__(self, env):
        super().__init__(env)
        self.observation_space = spaces.Tuple((env.observation_space, spaces.Discrete(3)))

    def observation(self, observation):
        return observation, 2


@pytest.fixture
def venv():
    venv = grouped([talkative(render_mode="rgb_array")] * 5)
    yield venv
    venv.close()


def assert_ended(venv):
    assert not any(process.is_alive() for process in venv.transport.processes)
    if venv._shared is not None and not venv._release.alive:
        with pytest.raises(FileNotFoundError):
            SharedMemory(venv._shared.name)


@pytest.mark.parametrize(
    "env_fn",
    [
        talkative(),
        talkative(observation="dict"),
        talkative(observation="image"),
        talkative(observation="discrete", action_space=spaces.Discrete(3)),
        lambda: Pair(talkative()()),
        lambda: Monitor(talkative(action_space=spaces.MultiDiscrete([2, 3]))()),
    ],
    ids=["box", "dict", "image", "discrete", "tuple", "monitor"],
)
def test_everything_is_as_in_a_dummy_vec_env(env_fn):
    def run(venv):
        venv.seed(3)
        venv.set_options([{"number": idx} for idx in range(5)])
        seen = [venv.reset(), venv.reset_infos, venv.observation_space, venv.action_space, venv.metadata, venv.num_envs]
        for actions in sample_actions(venv.action_space, np.random.default_rng(0), (20, 5)):
            obs, rewards, dones, infos = venv.step(actions)
            for info in infos:
                info.get("episode", {}).pop("t", None)
            seen.append((obs, rewards, dones, infos, list(venv.reset_infos)))
        assert any(info.get("TimeLimit.truncated") for *_, infos, _ in seen[6:] for info in infos)
        assert any("terminal_observation" in info for *_, infos, _ in seen[6:] for info in infos)
        venv.close()
        return seen

    assert describe(run(grouped([env_fn] * 5))) == describe(run(DummyVecEnv([env_fn] * 5)))


def test_what_was_returned_does_not_change_with_the_next_step(venv):
    first = venv.reset()
    kept = first.copy()
    venv.step(np.ones((5, 2)))
    np.testing.assert_array_equal(first, kept)


def test_environments_are_spread_evenly(venv):
    assert venv.transport.groups == [range(3), range(3, 5)]
    assert len(venv.transport.processes) == 2
    assert venv._shared is not None


def test_more_workers_than_environments():
    venv = grouped([talkative()] * 2, n_workers=8)
    assert venv.transport.groups == [range(1), range(1, 2)]
    venv.close()


def test_a_worker_for_each_core_by_default(monkeypatch):
    monkeypatch.setattr(processes, "n_physical_cores", lambda: 3)
    venv = grouped([talkative()] * 4, n_workers=None)
    assert len(venv.transport.groups) == 3
    venv.close()


def test_number_of_cores():
    assert 1 <= processes.n_physical_cores() <= os.cpu_count()


def test_indices(venv):
    venv.set_attr("mark", 1)
    venv.set_attr("mark", 2, indices=[4, 1])
    venv.set_attr("mark", 3, indices=-1)
    assert venv.get_attr("mark") == [1, 2, 1, 1, 3]
    assert venv.get_attr("mark", [4, 0, 1]) == [3, 1, 2]
    assert venv.env_method("add", 1, second=2, indices=[0, 0, 3]) == [3, 3, 3]
    assert venv.env_is_wrapped(Talkative, indices=[2]) == [True] and venv.env_is_wrapped(Monitor) == [False] * 5
    assert venv.has_attr("mark") and not venv.has_attr("mark2")
    venv.set_attr("mark2", 1, indices=0)
    assert not venv.has_attr("mark2")
    with pytest.raises(IndexError):
        venv.get_attr("mark", indices=5)


def test_images(venv):
    dummy = DummyVecEnv([talkative(render_mode="rgb_array")] * 5)
    for each in (venv, dummy):
        each.seed(0)
        each.reset()
    np.testing.assert_array_equal(venv.get_images(), dummy.get_images())
    assert venv.render_mode == "rgb_array" and venv.render().shape == (6, 4, 3)


def test_no_images_without_a_render_mode():
    venv = grouped([talkative()] * 2)
    with pytest.warns(UserWarning, match="render mode is None"):
        assert venv.get_images() == [None, None]
    venv.close()


def test_exceptions_of_environments_arrive_as_they_are(venv):
    with pytest.raises(AttributeError, match="nothing"):
        venv.get_attr("nothing")
    with pytest.raises(KeyError, match="no such thing") as raised:
        venv.env_method("refuse", indices=4)
    assert "environments 3 to 4 (process" in str(raised.value.__cause__) and "in refuse" in str(raised.value.__cause__)
    with pytest.raises(TypeError, match="pickle"):
        venv.env_method("not_to_be_pickled")
    venv.env_method("break_by", "raise", indices=1)
    venv.reset()
    with pytest.raises(ArithmeticError, match="the simulation exploded"):
        venv.step(np.zeros((5, 2)))
    venv.env_method("break_by", None)
    assert len(venv.step(np.zeros((5, 2)))[3]) == 5


def test_environment_that_cannot_be_made():
    def broken():
        raise FileNotFoundError("no model.xml here")

    with pytest.raises(FileNotFoundError, match=r"model\.xml") as raised:
        grouped([talkative(), talkative(), broken])
    assert "environment 2 (process" in str(raised.value.__cause__)


def test_one_environment_twice():
    env = limited()()
    with pytest.raises(ValueError, match="returned the same instance"):
        grouped([lambda: env] * 4)


@pytest.mark.parametrize("method", ["step", "reset", "get_attr"])
def test_worker_that_dies(venv, method):
    venv.reset()
    process = venv.transport.processes[1]
    if method == "step":
        venv.env_method("break_by", "die", indices=4)
        code = 3
    else:
        process.kill()
        process.join()
        code = -signal.SIGKILL if sys.platform != "win32" else process.exitcode
    message = rf"died in a step.*: environments 3 to 4 \(process {process.pid}, exit code {code}\).*last checkpoint"
    with pytest.raises(WorkerLostError, match=message):
        {"step": lambda: venv.step(np.zeros((5, 2))), "reset": venv.reset, "get_attr": lambda: venv.get_attr("fault")}[
            method
        ]()
    venv.close()
    assert_ended(venv)


def test_the_worker_that_died_in_a_branch_is_named_and_not_one_after_it():
    venv = grouped([talkative()] * 3, 3)
    model = HybridGRPO("MlpPolicy", venv, n_steps=4, batch_size=4, branch_horizon=2, seed=0, device="cpu")
    process = venv.transport.processes[1]
    venv.env_method("break_by", "die", indices=1)
    with pytest.raises(
        WorkerLostError, match=rf"died in a branch.*: environment 1 \(process {process.pid}, exit code 3\)\. All"
    ):
        model.learn(12)
    assert_ended(venv)


def test_worker_that_hangs():
    venv = grouped([talkative()] * 3, timeout=0.5)
    venv.reset()
    venv.env_method("break_by", "hang", indices=2)
    with pytest.raises(WorkerLostError, match=r"did not answer within timeout=0\.5 s: environment 2 \(process"):
        venv.step(np.zeros((3, 2)))
    venv.close()
    assert_ended(venv)


def test_closing():
    venv = grouped([talkative()] * 3)
    venv.reset()
    venv.step_async(np.zeros((3, 2)))
    venv.close()
    venv.close()
    assert_ended(venv)


def test_nothing_is_left_without_closing():
    venv = grouped([talkative()] * 3)
    started, name = venv.transport.processes, venv._shared.name
    del venv
    assert not any(process.is_alive() for process in started)
    with pytest.raises(FileNotFoundError):
        SharedMemory(name)


@posix
def test_ctrl_c_is_for_the_main_process(venv):
    venv.reset()
    for process in venv.transport.processes:
        os.kill(process.pid, signal.SIGINT)
    assert len(venv.step(np.zeros((5, 2)))[1]) == 5


def test_interrupt_between_question_and_answer_keeps_workers_in_step(venv, monkeypatch):
    venv.reset()
    receive, interrupts = venv.transport.receive, [KeyboardInterrupt]

    def interrupted(worker, timeout=None):
        if worker == 1 and interrupts:
            raise interrupts.pop()
        return receive(worker, timeout)

    monkeypatch.setattr(venv.transport, "receive", interrupted)
    with pytest.raises(KeyboardInterrupt):
        venv.step(np.zeros((5, 2)))
    assert venv.env_method("add", 1) == [1] * 5


@pytest.mark.parametrize(
    "arguments, message",
    [
        (([],), "env_fns is empty"),
        (([limited()], 0), "n_workers"),
        (([limited()], 1.5), "n_workers"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(InvalidArgumentError, match=message):
        GroupedSubprocVecEnv(*arguments)


@pytest.mark.parametrize("timeout", [0, -1.0, float("nan")])
def test_bad_timeout(timeout):
    with pytest.raises(InvalidArgumentError, match="timeout"):
        GroupedSubprocVecEnv([limited()], 1, timeout=timeout)


@pytest.mark.slow
@pytest.mark.parametrize("start_method", ["spawn", "forkserver"])
def test_start_methods(start_method):
    venv = GroupedSubprocVecEnv([functools.partial(gym.make, "CartPole-v1")] * 3, 2, start_method)
    assert venv.reset().shape == (3, 4)
    venv.close()


def test_unknown_start_method():
    with pytest.raises(ValueError, match="illegal"):
        GroupedSubprocVecEnv([limited()], start_method="illegal")


def test_laws_of_branching():
    assert_laws(lambda: grouped([reporting(limited(9))] * 3), 15)


def test_subclass_that_changes_steps_is_refused():
    class OtherRewards(GroupedSubprocVecEnv):
        def step_wait(self):
            obs, rewards, dones, infos = super().step_wait()
            return obs, 2 * rewards, dones, infos

    venv = OtherRewards([limited(5)] * 2, 2, QUICK)
    with pytest.raises(UnbranchableEnvError, match=r"OtherRewards\.step_wait returns other observations, rewards"):
        HybridGRPO("MlpPolicy", venv, n_steps=16, batch_size=16, n_epochs=1, brancher="snapshot").learn(16)
    venv.close()


@pytest.mark.slow
def test_ids_that_only_this_process_knows():
    class Local(gym.Env):
        observation_space, action_space = spaces.Box(0, 1, (2,)), spaces.Discrete(2)

        def reset(self, *, seed=None, options=None):
            return np.ones(2, dtype=np.float32), {}

    gym.register("Local-v0", Local)
    try:
        venv = GroupedSubprocVecEnv([functools.partial(gym.make, "Local-v0", disable_env_checker=True)] * 2, 2, "spawn")
        assert (venv.reset() == 1).all()
        venv.close()
    finally:
        del gym.registry["Local-v0"]


def test_make_parallel_env():
    settings = {"seed": 3, "wrapper_class": Talkative, "env_kwargs": {"max_episode_steps": 5}}
    venv = make_parallel_env("CartPole-v1", 3, 2, start_method=QUICK, timeout=60, **settings)
    expected = make_vec_env("CartPole-v1", 3, **settings)
    assert type(venv) is GroupedSubprocVecEnv and venv.transport.groups == [range(2), range(2, 3)]
    np.testing.assert_array_equal(venv.reset(), expected.reset())
    for _ in range(7):
        step, expected_step = venv.step(np.zeros(3, dtype=int)), expected.step(np.zeros(3, dtype=int))
        np.testing.assert_array_equal(step[0], expected_step[0])
    assert venv.env_is_wrapped(Monitor) == [True] * 3
    venv.close()


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"env_id": "CartPole-v1", "engine": "threads"}, "'threads': choose one of 'process', 'ray'"),
        ({"env_id": "gymnax:CartPole-v1", "wrapper_class": Talkative}, "takes no wrapper_class"),
        ({"env_id": "CartPole-v1", "n_workers": 0}, "n_workers"),
    ],
)
def test_bad_arguments_of_make_parallel_env(arguments, message):
    with pytest.raises(InvalidArgumentError, match=message):
        make_parallel_env(**arguments)


def test_functional_environments_need_no_workers():
    pytest.importorskip("gymnax")
    venv = make_parallel_env("gymnax:CartPole-v1", 3, seed=0)
    assert isinstance(venv, FunctionalVecEnv) and venv.num_envs == 3


@pytest.mark.parametrize("horizon", [1, 8])
def test_one_message_for_each_macro_step_and_worker(monkeypatch, horizon):
    venv = grouped([limited(6)] * 4)
    settings = {"n_steps": 16, "batch_size": 16, "n_epochs": 1, "device": "cpu", "seed": 0, "brancher": "snapshot"}
    model = HybridGRPO("MlpPolicy", venv, branch_horizon=horizon, **settings)
    posted = []
    post = venv.transport._post
    monkeypatch.setattr(venv.transport, "_post", lambda worker, *call: (posted.append(call[0]), post(worker, *call)))
    model.learn(2 * 16 * 4)
    venv.close()
    assert posted.count("both") == 2 * 16 * 2
    others = [name for name in posted if name != "both"]
    # A reset, a lesson for each rollout, and the end.
    assert len(others) <= 2 * (1 + 2 + 1), others


@pytest.mark.parametrize("way", ["_post", "share"])
def test_no_room_on_the_way_to_workers(venv, monkeypatch, way):
    settings = {"n_steps": 4, "batch_size": 20, "n_epochs": 1, "device": "cpu", "brancher": "snapshot"}
    model = HybridGRPO("MlpPolicy", venv, branch_horizon=2, **settings)

    def full(*arguments):
        raise MemoryError("The object store is full.")

    monkeypatch.setattr(venv.transport, way, full)
    with pytest.raises(WorkerLostError, match=r"The object store is full\. All workers were ended.*last checkpoint"):
        model.learn(20)
    assert venv.is_lost
    assert_ended(venv)
