"""Functional environments in NumPy and PyTorch: no JAX is needed."""

import importlib.util
import math
import subprocess
import sys

import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from hypothesis import given, settings
from hypothesis import strategies as st
from stable_baselines3 import PPO
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.vec_env import VecFrameStack, VecNormalize, VecTransposeImage

from sb3_hybrid_grpo import (
    BranchError,
    FunctionalEnvError,
    FunctionalVecEnv,
    HybridGRPO,
    InvalidArgumentError,
    InvalidOutcomeError,
    MissingExtraError,
    check_branchable,
)
from sb3_hybrid_grpo.branching import make_brancher
from sb3_hybrid_grpo.branching.functional import branches as branches_module
from sb3_hybrid_grpo.branching.functional import random
from sb3_hybrid_grpo.hybrid_grpo import macro_steps
from sb3_hybrid_grpo.rollout.device_branches import DeviceBranches
from sb3_hybrid_grpo.rollout.rollout_branches import LateBranches
from tests.functional_envs import Drift, Joint, Torch, example
from tests.functional_laws import check_laws, same

ENVS = {
    "numpy": Drift,
    "dict": lambda: Drift("dict"),
    "image": lambda: Drift("image"),
    "box": lambda: Drift(action_space=spaces.Box(-1, 1, (2,))),
    "multi_discrete": lambda: Drift(action_space=spaces.MultiDiscrete([3, 2])),
    "masks": lambda: Drift(masks=True),
    "joint": Joint,
    "torch": Torch,
    "cartpole_numpy": lambda: example("functional_cartpole_numpy"),
    "cartpole_torch": lambda: example("functional_cartpole_torch"),
}
BUFFER = ("observations", "actions", "branch_rewards", "branch_next_values", "branch_terminated", "branch_alive", "advantages")


@pytest.mark.parametrize("late", [False, True], ids=["at_once", "late"])
@pytest.mark.parametrize("name", ENVS)
def test_laws(name, late):
    n_ended = check_laws(FunctionalVecEnv(ENVS[name](), 3, seed=0), late=late)
    assert n_ended > 0 or name.startswith("cartpole")


@settings(max_examples=15, deadline=None)
@given(st.integers(1, 9), st.integers(1, 4), st.booleans(), st.sampled_from([1, 5, 64]))
def test_laws_of_all_sizes(n_envs, n_branches, late, rows_at_once):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(branches_module, "_MOST_ROWS", rows_at_once)
        check_laws(FunctionalVecEnv(Drift(), n_envs, seed=0), n_steps=6, horizon=3, n_branches=n_branches, late=late)


class Contracted(Drift):
    """Its last bits depend on how many rows there are."""

    def transition(self, state, action, rng):
        state = super().transition(state, action, rng)
        return state._replace(position=state.position * np.float32(1 + 1e-6 * len(action)))


def test_blocks_alone_where_their_number_makes_a_difference():
    venv = FunctionalVecEnv(Contracted(), 3, seed=0)
    check_laws(venv, late=True)
    check_laws(FunctionalVecEnv(Drift(), 3, seed=0), late=True)


def train(env, n_envs=4, cls=HybridGRPO, policy="MlpPolicy", wrap=lambda venv: venv, **kwargs):
    venv = wrap(FunctionalVecEnv(env, n_envs, seed=0))
    return cls(policy, venv, n_steps=16, batch_size=32, n_epochs=1, seed=0, **kwargs).learn(n_envs * 32)


@pytest.mark.parametrize(
    ("name", "policy", "wrap"),
    [
        ("numpy", "MlpPolicy", VecNormalize),
        ("numpy", "MlpPolicy", lambda venv: VecFrameStack(venv, 2)),
        ("dict", "MultiInputPolicy", lambda venv: VecNormalize(venv, norm_obs_keys=["position"])),
        ("image", "CnnPolicy", VecTransposeImage),
        ("box", "MlpPolicy", VecNormalize),
        ("multi_discrete", "MlpPolicy", lambda venv: venv),
        ("masks", "MaskableMlpPolicy", lambda venv: venv),
        ("torch", "MlpPolicy", lambda venv: venv),
    ],
)
def test_training(name, policy, wrap):
    model = train(ENVS[name](), policy=policy, wrap=wrap, n_samples=2, branch_horizon=3)
    assert model.num_simulator_steps > 2 * model.num_timesteps
    if name == "masks":
        assert model.rollout_buffer.action_masks.sum() < model.rollout_buffer.action_masks.size


def test_ppo_is_the_algorithm_with_one_sample():
    settings = {"n_samples": 1, "reward_transform": "identity", "refit_critic": False, "max_actor_grad_norm": None}
    ppo, ours = train(Drift(), cls=PPO), train(Drift(), **settings)
    for first, second in zip(ppo.policy.parameters(), ours.policy.parameters(), strict=True):
        np.testing.assert_allclose(first.detach(), second.detach(), atol=1e-5)


def test_branches_leave_the_trajectory_alone():
    observations = []
    for n_samples in (2, 3):
        venv = FunctionalVecEnv(Drift(), 4, seed=0)
        HybridGRPO("MlpPolicy", venv, n_steps=32, batch_size=32, n_epochs=1, n_samples=n_samples, seed=0).learn(128)
        observations.append(venv.time)
    assert observations == [33, 33]


@pytest.mark.parametrize("selection", ["softmax", "best"])
def test_selected_actions(selection):
    assert train(Drift(), n_samples=3, branch_horizon=2, action_selection=selection).num_simulator_steps > 128


def rollout(env, **kwargs):
    buffer = train(env, n_samples=2, **kwargs).rollout_buffer
    return {name: getattr(buffer, name) for name in BUFFER}


@pytest.mark.parametrize("names", [("functional_cartpole_numpy", "functional_cartpole_torch")])
def test_forms_of_one_environment_agree(names):
    first, second = (rollout(example(name)) for name in names)
    for name in BUFFER:
        np.testing.assert_allclose(first[name], second[name], atol=1e-4, err_msg=name)
    again = rollout(example(names[0]))
    assert all(same(first[name], again[name]) for name in BUFFER)


@pytest.mark.parametrize(
    ("env", "policy", "wrap"),
    [
        (Torch, "MlpPolicy", lambda venv: venv),
        (Torch, "MlpPolicy", VecNormalize),
        (lambda: Drift("dict"), "MultiInputPolicy", lambda venv: venv),
        (lambda: Drift(action_space=spaces.Box(-1, 1, (2,))), "MlpPolicy", lambda venv: venv),
        (lambda: Drift(masks=True), "MaskableMlpPolicy", lambda venv: venv),
    ],
    ids=["torch", "normalized", "dict", "box", "masks"],
)
def test_branches_of_tensors_are_those_of_arrays(env, policy, wrap, monkeypatch):
    expected = rollout(env(), policy=policy, wrap=wrap, branch_horizon=4)
    used = []

    def on_device(*arguments, **keywords):
        used.append(DeviceBranches(*arguments, **keywords))
        return used[-1]

    monkeypatch.setattr(macro_steps, "make_rollout_branches", on_device)
    found = rollout(env(), policy=policy, wrap=wrap, branch_horizon=4)
    assert used and not isinstance(LateBranches, DeviceBranches)
    assert isinstance(found["observations"], dict) == (policy == "MultiInputPolicy")
    for name in BUFFER[1:]:
        np.testing.assert_allclose(found[name], expected[name], atol=1e-4, err_msg=name)


def test_checkpoints(tmp_path):
    model = train(Drift(), n_samples=2)
    model.save(tmp_path / "model")
    loaded = HybridGRPO.load(tmp_path / "model", FunctionalVecEnv(Drift(), 4, seed=1))
    observations = np.random.default_rng(0).normal(size=(20, 2))
    assert same(model.predict(observations, deterministic=True)[0], loaded.predict(observations, deterministic=True)[0])
    loaded.learn(64)
    returns, lengths = evaluate_policy(loaded, loaded.get_env(), 4, return_episode_rewards=True)
    assert len(returns) == len(lengths) == 4


def test_episodes():
    venv = FunctionalVecEnv(Drift(), 2, seed=0)
    returns, lengths = np.zeros(2), np.zeros(2, dtype=int)
    n_truncated = n_terminated = 0
    for _ in range(60):
        _, rewards, dones, infos = venv.step(np.array([0, 1]))
        returns += rewards
        lengths += 1
        for env in np.flatnonzero(dones):
            assert infos[env]["episode"]["r"] == pytest.approx(returns[env], abs=1e-5)
            assert infos[env]["episode"]["l"] == lengths[env] <= 9
            assert infos[env]["terminal_observation"].shape == (2,)
            n_truncated += infos[env]["TimeLimit.truncated"]
            n_terminated += not infos[env]["TimeLimit.truncated"]
        assert all(info == {} for info, done in zip(infos, dones, strict=True) if not done)
        returns[dones], lengths[dones] = 0, 0
    assert n_truncated > 0 and n_terminated > 0


def test_random_numbers():
    numbers = random.uniform(random.split(random.key(3), 10_000), low=-2, high=4)
    assert numbers.min() >= -2 and numbers.max() < 4 and numbers.mean() == pytest.approx(1, abs=0.05)
    assert len(np.unique(numbers)) > 9_900
    normal = random.normal(random.key(3), (10_000,))
    assert normal.mean() == pytest.approx(0, abs=0.05) and normal.std() == pytest.approx(1, abs=0.05)
    keys = random.fold_in(random.key(3), np.arange(5))
    tensors = random.fold_in(th.from_numpy(random.key(3)), th.arange(5))
    assert same(keys, tensors.numpy())
    assert same(random.uniform(keys, (3,)), random.uniform(tensors, (3,)).numpy())


def test_random_numbers_are_threefrys():
    """Literal values of ``jax.random`` 0.10: ``split(key(7), 2)``, ``fold_in(key(7), 11)`` and ``uniform(key(7), (2,))``."""
    assert random.split(random.key(7), 2).tolist() == [[3625411723, 1954958720], [195045567, 4062205631]]
    assert random.fold_in(random.key(7), 11).tolist() == [2796958904, 1911163382]
    assert random.uniform(random.key(7), (2,)).tolist() == [0.6740899085998535, 0.9746168851852417]


class Broken(Drift):
    def __init__(self, fault=None):
        super().__init__()
        self.fault = fault
        self.n_calls = 0

    def transition(self, state, action, rng):
        after = super().transition(state, action, rng)
        if self.fault == "global":
            return after._replace(position=after.position + np.random.normal(size=len(action)).astype(np.float32))
        if self.fault == "attribute":
            self.n_calls += 1
        if self.fault == "mutation":
            state.position[:] = 0
        if self.fault == "clock":
            return after._replace(position=after.position + np.float32(len(GROWING)))
        if self.fault == "dtype":
            return after._replace(position=after.position.astype(np.float64))
        if self.fault == "shape":
            return after._replace(position=after.position[:, None])
        if self.fault == "structure":
            return (after.position, after.velocity, after.velocity)
        if self.fault == "crash":
            raise ZeroDivisionError("boom")
        return after

    def observation(self, state, rng):
        if self.fault == "clock":
            GROWING.append(0)
        obs = super().observation(state, rng)
        if self.fault == "nan":
            return obs * np.float32(math.nan)
        if self.fault == "observation_dtype":
            return obs.astype(np.float64)
        return obs[:, :1] if self.fault == "observation_shape" else obs

    def reward(self, state, action, next_state, rng):
        return 1.0 if self.fault == "reward" else super().reward(state, action, next_state, rng)

    def terminal(self, state, rng):
        ends = super().terminal(state, rng)
        return ends.astype(np.float32) if self.fault == "terminal" else ends


GROWING: list[int] = []
FAULTS = {
    "global": (FunctionalEnvError, r"draws from np\.random.*random"),
    "attribute": (FunctionalEnvError, r"changes its attributes n_calls"),
    "mutation": (FunctionalEnvError, r"writes into the state"),
    "clock": (FunctionalEnvError, r"two different things for the same state"),
    "dtype": (FunctionalEnvError, r"state\.position has the data type float64.*float32"),
    "shape": (FunctionalEnvError, r"state\.position has shape \(2, 1\)"),
    "structure": (FunctionalEnvError, r"All states must be alike"),
    "crash": (FunctionalEnvError, r"raised ZeroDivisionError in its first step.*boom"),
    "nan": (InvalidOutcomeError, r"NaN or infinity at once: its first observations"),
    "observation_dtype": (FunctionalEnvError, r"the observation has the data type float64.*float32"),
    "observation_shape": (FunctionalEnvError, r"the observation has shape \(2, 1\), and not \(2, 2\)"),
    "reward": (FunctionalEnvError, r"the reward has no shape, it is a float"),
    "terminal": (FunctionalEnvError, r"`terminal` returns has the data type float32"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_faults_are_named(fault):
    error_class, message = FAULTS[fault]
    with pytest.raises(error_class, match=message):
        FunctionalVecEnv(Broken(fault), 2, seed=0)


def test_a_sound_environment_has_no_fault():
    FunctionalVecEnv(Broken(), 2, seed=0)


class Endless(Drift):
    max_episode_steps = None


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: FunctionalVecEnv(Endless(), 2), "has no `max_episode_steps`"),
        (lambda: FunctionalVecEnv(Drift(), 2, max_episode_steps=0), "must be at least 1"),
        (lambda: FunctionalVecEnv(Drift(), 0), "n_envs=0 must be a positive integer"),
        (lambda: FunctionalVecEnv(Drift(), 2, arrays="cupy"), "arrays='cupy': choose one of"),
        (lambda: FunctionalVecEnv(Drift(), 2, device="tpu"), "device='tpu': choose one of"),
        (lambda: FunctionalVecEnv(Drift(), 2, device="cuda"), "device='cuda' is not possible: arrays of NumPy"),
        (lambda: FunctionalVecEnv("CartPole-v1", 2), "is no id of a functional environment"),
    ],
)
def test_bad_arguments(make, message):
    with pytest.raises(InvalidArgumentError, match=message):
        make()


@pytest.mark.skipif(th.cuda.is_available(), reason="there is a GPU")
def test_pytorch_without_a_gpu():
    with pytest.raises(InvalidArgumentError, match="PyTorch finds no GPU"):
        FunctionalVecEnv(Torch(), 2, device="cuda")


def test_endless_environments_may_be_endless():
    venv = FunctionalVecEnv(Endless(), 2, seed=0, max_episode_steps=math.inf)
    assert not any(info.get("TimeLimit.truncated") for _ in range(20) for info in venv.step(np.array([1, 1]))[3])


def test_no_functional_environment():
    with pytest.raises(FunctionalEnvError, match=r"object is no functional environment: it lacks initial, transition"):
        FunctionalVecEnv(object(), 2)


def test_jax_is_missing(monkeypatch):
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "jax" else find_spec(name))
    with pytest.raises(MissingExtraError, match=r"gymnax:CartPole-v1 needs jax.*sb3-hybrid-grpo\[jax\]"):
        FunctionalVecEnv("gymnax:CartPole-v1", 2)
    with pytest.raises(MissingExtraError, match=r"Drift needs JAX.*sb3-hybrid-grpo\[jax\]"):
        FunctionalVecEnv(Drift(), 2, arrays="jax")


def test_jax_is_not_imported():
    code = "import sys, sb3_hybrid_grpo, sb3_hybrid_grpo.branching.functional; sys.exit('jax' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


class Mine(Drift):
    def transition(self, state, action, rng):
        if self.armed and (action == 2).any():
            raise ZeroDivisionError("boom")
        return super().transition(state, action, rng)

    armed = False


def test_a_branch_that_raises(monkeypatch):
    venv = FunctionalVecEnv(Mine(), 2, seed=0)
    before = venv.rows
    monkeypatch.setattr(Mine, "armed", True)
    with pytest.raises(BranchError, match=r"Mine raised in a branch(.|\n)*boom"):
        make_brancher("auto", venv).open(np.array([[1, 2], [1, 1]]), np.ones((2, 2), dtype=bool), 1)
    assert venv.rows is before


class Path(Drift):
    """Nothing can be done at its end, where there is no cost."""

    costs = np.linspace(0, 1, 8)
    dtype: type = np.float32

    def __init__(self):
        self.action_space, self.observation_space = spaces.Discrete(2), spaces.Box(0, 10, (1,))

    def initial(self, rng):
        return np.arange(len(rng)) % 2 + 4

    def transition(self, state, action, rng):
        return state + action

    def observation(self, state, rng):
        return state[:, None].astype(np.float32)

    def reward(self, state, action, next_state, rng):
        return (self.costs[state] > 0.7).astype(self.dtype)

    def terminal(self, state, rng):
        return state >= 8


def test_nothing_is_done_after_an_end():
    venv = FunctionalVecEnv(Path(), 2, seed=0)
    brancher = make_brancher("auto", venv)
    actions, alive = np.ones((2, 3), dtype=int), np.ones((2, 3), dtype=bool)
    outcomes = [brancher.open(actions, alive, 6)]
    for _ in range(5):
        alive = alive & ~outcomes[-1].terminated
        outcomes.append(brancher.advance(actions, alive))
    assert [outcome.rewards[:, 0].tolist() for outcome in outcomes] == [[0, 1], [1, 1], [1, 1], [1, 0], [0, 0], [0, 0]]
    assert [outcome.terminated.any(axis=1).tolist() for outcome in outcomes[2:4]] == [[False, True], [True, False]]
    assert not outcomes[-1].observations.any()


@pytest.mark.parametrize("dtype", [np.int64, np.bool_])
def test_rewards_of_any_kind_are_bootstrapped(dtype, monkeypatch):
    def rewards():
        env = FunctionalVecEnv(Path(), 2, max_episode_steps=3, seed=0)
        model = PPO("MlpPolicy", env, n_steps=8, batch_size=16, seed=0).learn(16)
        return model.rollout_buffer.rewards

    expected = rewards()
    assert (expected % 1 != 0).any()
    monkeypatch.setattr(Path, "dtype", dtype)
    np.testing.assert_array_equal(rewards(), expected)


def test_states_from_before_a_seed_have_its_random_numbers():
    venv = FunctionalVecEnv(Drift(), 2, seed=0)
    brancher = make_brancher("auto", venv)
    committed = []
    for seed in 5, None:
        brancher.remember()
        committed.append(venv.step(np.array([1, 1])))
        if seed is not None:
            venv.seed(seed)
            venv.reset()
    ones = np.ones((2, 4), dtype=int)
    recalled = brancher.recall()
    branches = recalled.open(ones, ones.astype(bool), 2)
    later = recalled.advance(ones, ones.astype(bool))
    assert later.rewards.shape == (2, 4)
    for place in range(4):
        obs, rewards, _, _ = committed[place // 2]
        np.testing.assert_array_equal(branches.observations[:, place], obs)
        np.testing.assert_array_equal(branches.rewards[:, place], rewards)


def test_a_joint_environment_is_what_its_parts_are():
    by_parts, joint = (FunctionalVecEnv(env, 3, seed=0) for env in (Drift(), Joint()))
    for actions in np.random.default_rng(0).integers(3, size=(20, 3)):
        before = by_parts.rows.state
        assert same(tuple(before), tuple(joint.rows.state))
        by_parts.step(actions)
        *_, dones, infos = joint.step(actions)
        if dones.any():
            break
    # What only the joint form tells: an episode is cut off beyond 1.
    assert [info["TimeLimit.truncated"] for info in infos if info] == [True] * int(dones.sum()) and dones.any()


def test_half_a_joint_environment(monkeypatch):
    monkeypatch.delattr(Joint, "joint_start")
    with pytest.raises(FunctionalEnvError, match="Joint is no functional environment: it lacks joint_start"):
        FunctionalVecEnv(Joint(), 2)


def test_attributes_cannot_be_set():
    with pytest.raises(NotImplementedError, match="must not change"):
        FunctionalVecEnv(Drift(), 2).set_attr("gravity", 1)


def test_check():
    report = check_branchable(FunctionalVecEnv(Drift(masks=True), 3, seed=0), n_steps=10)
    assert report.verdict == "exact, functional" and report.is_exact
    assert "branches of 5 steps told what the steps returned" in str(report)


class Forgetful(Drift):
    """Its branches are not what its steps are: it depends on when it is asked."""

    def reward(self, state, action, next_state, rng):
        GROWING.append(0)
        return super().reward(state, action, next_state, rng) + np.float32(len(GROWING) > self.n_pure)

    n_pure = 10**9


def test_check_tells_what_differs(monkeypatch):
    venv = FunctionalVecEnv(Forgetful(), 3, seed=0)
    monkeypatch.setattr(Forgetful, "n_pure", len(GROWING) + 35)
    report = check_branchable(venv, n_steps=10)
    assert not report.is_exact and "showed something else" in report.findings[0]
