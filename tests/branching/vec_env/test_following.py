"""Workers follow branches by themselves: with what they were sent, to the same ends, and leaving no trace."""

import threading
from functools import partial
from types import SimpleNamespace

import gymnasium as gym
import numpy as np
import pytest
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv, VecEnvWrapper, VecNormalize

from sb3_hybrid_grpo import BranchError, HybridGRPO
from sb3_hybrid_grpo.branching import make_brancher, register_vec_wrapper
from sb3_hybrid_grpo.branching.copies.child import CAN_FORK
from sb3_hybrid_grpo.branching.vec_env import views
from sb3_hybrid_grpo.branching.vec_env.workers.dispatcher import Dispatcher, Lesson, Raised, Setup, Task
from sb3_hybrid_grpo.common import identical
from sb3_hybrid_grpo.rollout.branch_paths import follow
from tests.branching.vec_env.test_faults import fragile
from tests.branching.vec_env.test_same_buffers import assert_identical, fill, rounded
from tests.envs import Walk
from tests.lockstep import describe

K = 4
QUICK = {"start_method": "fork"} if CAN_FORK else None
PLAIN = {"n_samples": 2, "branch_horizon": K}


class Scripted:
    """Acts by the noise."""

    def act(self, obs, noise, action_masks=None):
        return noise

    def keep(self, survivors):
        pass


class Dicey(Walk):
    """Begins to draw from a generator of the whole process in its third step."""

    def reset(self, **kwargs):
        self.t = 0
        return super().reset(**kwargs)

    def step(self, action):
        self.t += 1
        obs, reward, *others = super().step(action)
        return obs, reward + (np.random.random() if self.t == 3 else 0.0), *others


def dispatch(env):
    env.reset(seed=0)
    dispatcher = Dispatcher(SimpleNamespace(envs=[env]))
    dispatcher.prepare(Setup.here("snapshot", None, True), [{}])
    env.reset(seed=0)
    vars(dispatcher).update(_follower=partial(follow, Scripted()), _version=1)
    return dispatcher


def task(noise, n_branches=1, version=1):
    noise = np.asarray(noise, dtype=np.float32).reshape(-1, 1, 2)
    return Task(version, np.zeros((1, n_branches, 2), np.float32), np.ones((1, n_branches), dtype=bool), noise, [])


def followed_in_this_process(make, noise, n_branches):
    venv = DummyVecEnv([make])
    brancher = make_brancher("snapshot", venv)
    venv.seed(0)
    venv.reset()
    _, actions, alive, noise, _ = task(noise, n_branches)
    return follow(Scripted(), brancher, actions, alive, [*noise])


@pytest.mark.parametrize("n_branches", [1, 3])
@pytest.mark.parametrize("make", [Walk, Dicey])
@pytest.mark.filterwarnings("ignore:An environment began to draw")
def test_branches_of_a_worker_lead_where_those_of_this_process_do(make, n_branches):
    noise = np.random.default_rng(0).uniform(-1, 1, (K - 1, 2))
    env = make()
    dispatcher = dispatch(env)
    before = describe(env)
    generator = np.random.get_state()[1].copy()
    for _ in range(2):
        (outcome, alive) = dispatcher("follow", task(noise, n_branches))
        assert describe(env) == before
    np.testing.assert_array_equal(np.random.get_state()[1], generator)
    expected = followed_in_this_process(make, noise, n_branches)
    assert len(alive) == len(expected) == K
    for k, step in enumerate(expected):
        assert identical(np.float32(outcome.rewards[k]), step.outcome.rewards)
        assert identical(outcome.observations[k], step.outcome.observations)
    env.step(np.zeros(2))
    assert describe(env) != before


@pytest.mark.parametrize("n_branches", [1, 2])
def test_environment_that_raises_in_a_later_step_is_where_it_was(n_branches):
    env = fragile()
    dispatcher = dispatch(env)
    env.unwrapped.break_by("raise")
    before = describe(env)
    answer = dispatcher("follow", task([[0, 0], [1, 0], [0, 0]], n_branches))
    assert isinstance(answer, Raised) and issubclass(answer.error_class, BranchError) and "exploded" in answer.message
    assert describe(env) == before
    assert len(dispatcher("follow", task([[0, 0]], n_branches)).alive) == 2


def test_another_lesson_than_that_of_the_task_is_an_error():
    dispatcher = dispatch(Walk())
    assert "policy 2" in dispatcher("follow", task([[0, 0]], version=2)).message
    assert dispatcher("learn", Lesson(3, b"no pickle")).startswith("a worker cannot load it: UnpicklingError")
    assert isinstance(dispatcher("follow", task([[0, 0]])), Raised)
    assert len(dispatcher("follow", task([])).alive) == 1


class Locked(HybridGRPO.policy_aliases["MlpPolicy"]):
    """Holds what cannot be sent."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.lock = threading.Lock()

    def extract_features(self, obs, features_extractor=None):
        return super().extract_features(obs, features_extractor)


@pytest.fixture
def unknown_view(monkeypatch):
    monkeypatch.setattr(views, "_views", dict(views._views))

    class Identity(VecEnvWrapper):
        def reset(self):
            return self.venv.reset()

        def step_wait(self):
            return self.venv.step_wait()

    class View:
        has_memory = False

        def __init__(self, wrapper):
            pass

        def before_step(self):
            pass

        def __call__(self, path):
            return [*path]

    register_vec_wrapper(Identity, View)
    return Identity


def subproc(env_fns):
    return SubprocVecEnv(env_fns, **QUICK or {})


def test_policy_that_cannot_be_sent_is_asked_at_each_step(monkeypatch):
    kinds = {"locked": (Locked, rounded(), VecNormalize, {})}
    monkeypatch.setattr("tests.branching.vec_env.test_same_buffers.KINDS", kinds)
    with pytest.warns(UserWarning, match=r"cannot be pickled: .*lock.*up to 4 messages") as announced:
        remote = fill(subproc, "locked", **PLAIN)
    assert announced[0].filename.endswith("test_same_buffers.py")
    assert_identical(remote, fill(DummyVecEnv, "locked", **PLAIN))


def test_wrapper_whose_view_cannot_be_sent(monkeypatch, unknown_view):
    kinds = {"viewed": ("MlpPolicy", rounded(), unknown_view, {})}
    monkeypatch.setattr("tests.branching.vec_env.test_same_buffers.KINDS", kinds)
    with pytest.warns(UserWarning, match="`sent`"):
        remote = fill(subproc, "viewed", **PLAIN)
    assert_identical(remote, fill(DummyVecEnv, "viewed", **PLAIN))


class Exploding(Walk):
    """Once armed, cannot take a third step."""

    is_armed = False

    def arm(self):
        self.is_armed = True

    def reset(self, **kwargs):
        self.t = 0
        return super().reset(**kwargs)

    def step(self, action):
        self.t += 1
        if self.is_armed and self.t == 3:
            raise ArithmeticError("the simulation exploded")
        return super().step(action)


@pytest.mark.parametrize("selection", ["first", "best"])
def test_error_in_a_later_step_names_the_environment(selection):
    """With "best" the branches are waited for before the committed step, which is taken along else."""
    venv = subproc([Exploding, Exploding])
    settings = {"n_steps": 16, "batch_size": 16, "seed": 0, "device": "cpu", "brancher": "snapshot"}
    model = HybridGRPO("MlpPolicy", venv, action_selection=selection, **settings, **PLAIN)
    venv.env_method("arm", indices=1)
    with pytest.raises(BranchError, match=r"(?s)worker of environment 1.*the simulation exploded"):
        model.learn(32)
    assert venv.get_attr("t") == ([1, 1] if selection == "first" else [0, 0])
    venv.close()


@pytest.mark.parametrize("wrap", [lambda venv: venv, partial(VecNormalize, norm_reward=False)], ids=["plain", "normalised"])
def test_late_branches_of_workers(monkeypatch, wrap):
    kinds = {"pendulum": ("MlpPolicy", partial(gym.make, "Pendulum-v1"), wrap, {})}
    monkeypatch.setattr("tests.branching.vec_env.test_same_buffers.KINDS", kinds)
    venv = wrap(subproc([partial(gym.make, "Pendulum-v1")]))
    assert make_brancher("snapshot", venv).can_remember
    venv.close()
    assert_identical(fill(subproc, "pendulum", **PLAIN), fill(DummyVecEnv, "pendulum", **PLAIN))


@pytest.mark.parametrize("make", [rounded(), partial(gym.make, "Pendulum-v1")], ids=["prompt", "late"])
@pytest.mark.parametrize("n_samples", [2, 4])
def test_one_message_for_each_macro_step_and_worker(make, n_samples):
    venv = subproc([make] * 2)
    settings = {"n_steps": 16, "batch_size": 16, "seed": 0, "device": "cpu", "brancher": "snapshot"}
    model = HybridGRPO("MlpPolicy", venv, n_samples=n_samples, branch_horizon=8, **settings)
    model.train = lambda: None
    model.learn(32)
    sent = []
    for remote in venv.remotes:
        send = remote.send
        vars(remote)["send"] = lambda message, send=send: (sent.append(message[0]), send(message))
    model.learn(2 * 32, reset_num_timesteps=False)
    assert model._brancher.can_remember == ("Pendulum" in str(make))
    assert sent.count("step_with_call") == 2 * 16 * 2 and "step" not in sent
    # In each rollout a lesson; and where branches wait until they are many, the word to forget others, and to follow them.
    assert sent.count("env_method") == 2 * 2 * (3 if model._brancher.can_remember else 1)
    assert set(sent) == {"step_with_call", "env_method"}
    venv.close()
