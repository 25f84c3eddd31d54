"""Branches that wait are the ones that would have been followed at once."""

import contextlib
import copy
import functools
from importlib import import_module
from types import SimpleNamespace

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import wrappers
from gymnasium.envs.mujoco.half_cheetah_v5 import HalfCheetahEnv
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv, VecCheckNan, VecFrameStack, VecNormalize

from sb3_hybrid_grpo import BranchError, FunctionalVecEnv, HybridGRPO
from sb3_hybrid_grpo.branching import VecEnvBrancher, make_brancher
from sb3_hybrid_grpo.branching.batched.task_simulator import TaskSimulator
from sb3_hybrid_grpo.common import join_steps
from sb3_hybrid_grpo.rollout import rollout_branches
from tests.envs import limited
from tests.functional_envs import Drift
from tests.lockstep import describe

TASKS = ["HalfCheetah-v5", "Hopper-v5", "Walker2d-v5", "Swimmer-v5", "Reacher-v5", "Ant-v5", "Humanoid-v5"]
UNUSUAL = {
    "HalfCheetah-v5": {"exclude_current_positions_from_observation": False, "ctrl_cost_weight": 0.7},
    "Hopper-v5": {"terminate_when_unhealthy": False, "forward_reward_weight": 2.5},
    "Swimmer-v5": {"frame_skip": 2},
    "Ant-v5": {"include_cfrc_ext_in_observation": False, "healthy_z_range": (0.3, 0.7)},
    "Humanoid-v5": {"include_cvel_in_observation": False, "contact_cost_range": (0.0, 1e-3)},
}
SETTINGS = [(task, {}) for task in TASKS] + list(UNUSUAL.items())


@pytest.mark.parametrize("n_threads", [1, 2])
@pytest.mark.parametrize("env_id, kwargs", SETTINGS, ids=[f"{task} {list(kwargs)}" for task, kwargs in SETTINGS])
def test_a_task_takes_the_steps_of_its_environment(env_id, kwargs, n_threads):
    env = wrappers.TimeLimit(gym.make(env_id, **kwargs).unwrapped, 30)
    task = TaskSimulator.of(env)
    assert task is not None
    env.reset(seed=0)
    env.action_space.seed(0)
    actions, expected, goes_on = [], [], []
    for _ in range(200):
        task.remember()
        actions.append(env.action_space.sample())
        *outcome, _ = env.step(actions[-1].copy())
        expected.append(outcome)
        goes_on.append(not (outcome[2] or outcome[3]))
        if not goes_on[-1]:
            env.reset()
    states = task.recall()
    next_states, *outcomes = task.step(states, np.array(actions), n_threads)
    for computed, returned in zip(outcomes, zip(*expected, strict=True), strict=True):
        np.testing.assert_array_equal(computed, np.array(returned))
    assert 0 < sum(goes_on) < 200
    # The state after a step is the one before the next step, with all that the task reads of it.
    before_next = np.flatnonzero(goes_on[:-1])
    np.testing.assert_array_equal(next_states.physics[before_next], states.physics[before_next + 1])
    for name, values in states.quantities.items():
        np.testing.assert_array_equal(next_states.quantities[name][before_next], values[before_next + 1])


class KeepRollout(BaseCallback):
    """Keeps the arrays of the last rollout as they were before the update."""

    def _on_step(self):
        return True

    def _on_rollout_end(self):
        self.arrays = {
            name: np.copy(value) for name, value in vars(self.model.rollout_buffer).items() if isinstance(value, np.ndarray)
        }


def prompt(venv):
    brancher = VecEnvBrancher(venv)
    assert brancher.can_remember
    brancher.can_remember = False
    return brancher


SETTINGS = {
    "n_samples": 4,
    "branch_horizon": 1,
    "n_steps": 60,
    "batch_size": 60,
    "n_epochs": 1,
    "seed": 0,
    "device": "cpu",
}


def rollout(brancher, env_id, wrap=lambda venv: venv, vec_env_cls=DummyVecEnv, callback=None, **kwargs):
    venv = wrap(make_vec_env(env_id, 2, seed=0, vec_env_cls=vec_env_cls))
    model = HybridGRPO("MlpPolicy", venv, **{**SETTINGS, "brancher": brancher, **kwargs})
    keep = KeepRollout()
    model.learn(120, callback=[*filter(None, [callback]), keep])
    venv.close()
    return {**keep.arrays, "simulator_steps": np.array(model.num_simulator_steps)}


def noisy_acrobot():
    env = gym.make("Acrobot-v1")
    env.unwrapped.torque_noise_max = 0.5
    return env


@pytest.mark.parametrize("env_id", ["Hopper-v5", "Ant-v5", "Pendulum-v1", noisy_acrobot])
@pytest.mark.parametrize(
    "kwargs",
    [
        {},
        {"branch_fraction": 0.3},
        {"branch_horizon": 4},
        {"branch_horizon": 4, "branch_fraction": 0.3, "branch_lambda": 0.9},
        {"branch_horizon": 3, "use_sde": True, "sde_sample_freq": 7},
    ],
    ids=str,
)
def test_late_branches_are_those_that_are_followed_at_once(monkeypatch, env_id, kwargs):
    if env_id is noisy_acrobot:
        kwargs = {name: value for name, value in kwargs.items() if "sde" not in name}
    # The room's door has a function of the module's name.
    monkeypatch.setattr(import_module("sb3_hybrid_grpo.rollout.rollout_branches"), "_BRANCHES_AT_ONCE", 50)
    at_once, late = rollout(prompt, env_id, **kwargs), rollout("auto", env_id, **kwargs)
    assert at_once.keys() == late.keys()
    for name, expected in at_once.items():
        # Batches of another size are rounded differently by the actor and the critic.
        np.testing.assert_allclose(late[name], expected, rtol=1e-4, atol=1e-4, err_msg=name)
    if "branch_horizon" not in kwargs:
        np.testing.assert_array_equal(late["branch_rewards"], at_once["branch_rewards"])


@pytest.mark.parametrize("env_id", ["Hopper-v5", "MountainCarContinuous-v0"])
@pytest.mark.parametrize("kwargs", [{}, {"branch_horizon": 3, "branch_fraction": 0.5}], ids=str)
def test_workers_remember_and_branch_late(env_id, kwargs):
    local, remote = (rollout("auto", env_id, vec_env_cls=cls, **kwargs) for cls in (DummyVecEnv, SubprocVecEnv))
    for name, expected in local.items():
        np.testing.assert_allclose(remote[name], expected, rtol=1e-5, atol=1e-5, err_msg=name)


@pytest.mark.parametrize("wrap_kwargs", [{}, {"norm_obs": False}, {"norm_reward": False}], ids=str)
def test_late_outcomes_are_normalised_with_the_statistics_of_their_own_step(wrap_kwargs):
    def wrap(venv):
        return VecNormalize(venv, **wrap_kwargs)

    at_once, late = rollout(prompt, "Hopper-v5", wrap), rollout("auto", "Hopper-v5", wrap)
    for name, expected in at_once.items():
        np.testing.assert_allclose(late[name], expected, rtol=1e-4, atol=1e-4, err_msg=name)
    np.testing.assert_array_equal(late["branch_rewards"], at_once["branch_rewards"])


class Change(BaseCallback):
    """Changes the vectorised wrapper in the middle of the rollout."""

    def __init__(self, attributes):
        super().__init__()
        self.attributes = attributes

    def _on_step(self):
        if self.locals["n_steps"] == 25:
            for name, value in self.attributes.items():
                setattr(self.training_env, name, value)
        return True


@pytest.mark.parametrize(
    "change",
    [
        {"norm_reward": False, "epsilon": 0.1},
        {"clip_reward": 0.2},
        {"norm_obs": False},
        {"clip_obs": 0.1},
        {"training": False},
    ],
    ids=str,
)
def test_late_outcomes_are_normalised_as_their_own_step_was(change):
    at_once, late = (rollout(brancher, "Hopper-v5", VecNormalize, callback=Change(change)) for brancher in (prompt, "auto"))
    unchanged = rollout("auto", "Hopper-v5", VecNormalize)
    for name, expected in at_once.items():
        np.testing.assert_allclose(late[name], expected, rtol=1e-4, atol=1e-4, err_msg=name)
    np.testing.assert_array_equal(late["branch_rewards"], at_once["branch_rewards"])
    for name in ("branch_rewards", "branch_next_values"):
        np.testing.assert_allclose(late[name][:25], unchanged[name][:25], rtol=1e-5, atol=1e-5)
    assert any(not np.allclose(late[name][26:], unchanged[name][26:]) for name in ("branch_rewards", "branch_next_values"))


def test_what_an_interrupted_rollout_remembered_is_forgotten():
    class StopAt(BaseCallback):
        def _on_step(self):
            return self.n_calls < 25

    venv = make_vec_env("Hopper-v5", 1, seed=0)
    model = HybridGRPO("MlpPolicy", venv, **SETTINGS)
    model.learn(60, callback=StopAt())
    keep = KeepRollout()
    model.learn(60, callback=keep, reset_num_timesteps=False)
    assert keep.arrays["branch_alive"].all()
    assert model.num_simulator_steps == 25 + 4 * 60


CLASSIC = ["CartPole-v1", "Pendulum-v1", noisy_acrobot, "MountainCar-v0", "MountainCarContinuous-v0"]


@pytest.mark.parametrize("env_id", CLASSIC)
def test_late_branches_of_classic_control_keep_the_laws(env_id):
    """They leave no trace, and repeat the committed step from its own state, in whatever episode it was."""
    make = functools.partial(gym.make, env_id) if isinstance(env_id, str) else env_id
    venv, twin = (make_vec_env(lambda: wrappers.TimeLimit(make(), 12), 2, seed=0) for _ in range(2))
    brancher = make_brancher("auto", venv)
    assert brancher.can_remember
    for each in (venv, twin):
        each.reset()
    action_space = copy.deepcopy(venv.action_space)
    action_space.seed(0)
    for _ in range(3):
        sampled = np.array([[action_space.sample() for _ in range(3 * 10)] for _ in range(2)])
        expected = []
        for committed in sampled[:, ::3].swapaxes(0, 1):
            brancher.remember()
            for each in (twin, venv):
                outcome = each.step(committed)
            expected.append(outcome)
        branches = brancher.recall()
        alive = np.ones(sampled.shape[:2], dtype=bool)
        first = branches.open(sampled, alive, 3)
        outcome = first
        for _ in range(2):
            alive = alive & ~(outcome.terminated | outcome.truncated)
            outcome = branches.advance(sampled, alive)
        branches.close()
        for step, (obs, rewards, dones, infos) in enumerate(expected):
            of_step = (slice(None), 3 * step)
            obs = np.array([info.get("terminal_observation", row) for info, row in zip(infos, obs, strict=True)])
            np.testing.assert_array_equal(first.observations[of_step], obs)
            np.testing.assert_array_equal(first.rewards[of_step], rewards)
            np.testing.assert_array_equal(first.terminated[of_step] | first.truncated[of_step], dones)
        assert [describe(env) for env in venv.envs] == [describe(env) for env in twin.envs]


class Bonus(HalfCheetahEnv):
    def step(self, action):
        obs, reward, terminated, truncated, info = super().step(action)
        return obs, reward + 1, terminated, truncated, info


def test_an_environment_of_ones_own_is_branched_by_its_own_step():
    venv = make_vec_env(lambda: wrappers.TimeLimit(Bonus(), 100), 1)
    assert not make_brancher("auto", venv).can_remember


@pytest.mark.parametrize("name", ["_get_obs", "_get_rew", "control_cost"])
def test_a_patched_task_is_branched_by_its_own_step(monkeypatch, name):
    original = getattr(HalfCheetahEnv, name)

    def doubled(self, *arguments):
        result = original(self, *arguments)
        return (2 * result[0], *result[1:]) if isinstance(result, tuple) else 2 * result

    monkeypatch.setattr(HalfCheetahEnv, name, doubled)
    venv = make_vec_env("HalfCheetah-v5", 1, seed=0)
    brancher = make_brancher("auto", venv)
    assert not brancher.can_remember
    venv.reset()
    action = np.array([venv.action_space.sample()])
    outcome = brancher.open(action[:, None], np.ones((1, 1), dtype=bool), 1)
    obs, rewards, _, _ = venv.step(action)
    np.testing.assert_array_equal(outcome.observations[:, 0], obs)
    np.testing.assert_array_equal(outcome.rewards[:, 0], rewards)


@pytest.mark.parametrize(
    "make", [lambda: VecFrameStack(make_vec_env("Hopper-v5", 1), 2), lambda: make_vec_env("InvertedPendulum-v5", 1)]
)
def test_what_cannot_wait_is_branched_at_once(make):
    assert not make_brancher("auto", make()).can_remember


def test_branches_with_a_time_limit_cannot_wait():
    assert not make_brancher("auto", make_vec_env("Hopper-v5", 1), timeout=1.0).can_remember


def test_a_worker_that_dies_while_branches_wait_ends_the_run_with_one_error():
    class Kill(BaseCallback):
        def _on_step(self):
            if self.n_calls == 5:
                process = self.training_env.processes[1]
                process.kill()
                process.join()
            return True

    venv = make_vec_env("Hopper-v5", 2, vec_env_cls=SubprocVecEnv)
    model = HybridGRPO("MlpPolicy", venv, n_steps=60, batch_size=60, device="cpu")
    with pytest.raises(BranchError, match="environment 1"):
        model.learn(120, callback=Kill())
    assert not any(process.is_alive() for process in venv.processes)


@pytest.mark.parametrize("env_id", ["Pendulum-v1", limited()], ids=["late", "prompt"])
def test_a_step_that_a_wrapper_refuses_is_not_taken(env_id):
    """Neither with these actions nor with those of the step before, and workers go on."""
    venv = VecCheckNan(make_vec_env(env_id, 2, seed=0, vec_env_cls=SubprocVecEnv), raise_exception=True)
    twin = make_vec_env(env_id, 2, seed=0)
    brancher = make_brancher("auto", venv)
    actions = np.full((2, *venv.action_space.shape), 0.5, dtype=np.float32)
    branches = actions[:, None], np.ones((2, 1), dtype=bool), []
    venv.reset(), twin.reset()
    for refused in (False, True, False):
        committed = np.full_like(actions, np.nan) if refused else actions
        with pytest.raises(ValueError, match="nan") if refused else contextlib.nullcontext():
            if brancher.can_remember:
                obs = brancher.remember_and_step(venv, committed)[0]
            else:
                (obs, *_), stacked = brancher.follow_and_step(venv, committed, *branches)
                np.testing.assert_array_equal(join_steps(stacked)[0].outcome.observations[:, 0], obs)
        if not refused:
            np.testing.assert_array_equal(obs, twin.step(actions)[0])
    venv.close()


def test_wrappers_with_a_memory_are_branched_at_once_on_any_device():
    model = HybridGRPO("MlpPolicy", VecFrameStack(FunctionalVecEnv(Drift(), 2, seed=0), 2), n_steps=8, batch_size=16)
    actor = SimpleNamespace(policy=SimpleNamespace(device=SimpleNamespace(type="cuda")), memory=None)
    branches = rollout_branches.make_rollout_branches(actor, model._brancher, model.rollout_buffer, [])
    assert type(branches) is rollout_branches.PromptBranches
