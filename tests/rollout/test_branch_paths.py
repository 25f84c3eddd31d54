"""Branches of several steps share the environment's and the policy's random numbers."""

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import SubprocVecEnv, VecFrameStack, VecNormalize, VecTransposeImage

from sb3_hybrid_grpo import HybridGRPO, InvalidArgumentError
from sb3_hybrid_grpo.policies.actors import Actor, MlpActor
from tests.envs import Walk, limited

K, N, T = 4, 3, 24
SMALL = {
    **{"n_steps": T, "batch_size": 24, "n_epochs": 1, "seed": 0, "device": "cpu"},
    **{"n_samples": N, "branch_horizon": K, "action_sampling": "iid"},
}
ACTION_SPACES = [spaces.Box(-1, 1, (2,)), spaces.Discrete(3), spaces.MultiDiscrete([2, 3]), spaces.MultiBinary(2)]


class KeepRollout(BaseCallback):
    """Keeps the arrays of the last rollout as they were before the update."""

    def _on_step(self):
        return True

    def _on_rollout_end(self):
        buffer = self.model.rollout_buffer
        self.arrays = {name: np.copy(value) for name, value in vars(buffer).items() if isinstance(value, np.ndarray)}
        self.arrays["branched"] = buffer.branched


def rollout(model, n_envs=2):
    keep = KeepRollout()
    model.learn(T * n_envs, callback=keep)
    return keep.arrays


@pytest.fixture
def equal_first_actions(monkeypatch):
    """Let every sample of a state be its committed action, and branch it all the same."""
    everything = np.arange(N)
    monkeypatch.setattr(
        "sb3_hybrid_grpo.rollout.action_sampling.first_occurrences", lambda actions: np.tile(everything, (len(actions), 1))
    )
    for actor_class in (Actor, MlpActor):

        def equal(self, *arguments, sample=actor_class.sample):
            samples = sample(self, *arguments)
            return samples._replace(actions=np.repeat(samples.actions[:, :1], N, axis=1))

        monkeypatch.setattr(actor_class, "sample", equal)


def assert_branches_are_the_committed_path(arrays, rtol=1e-5):
    rewards, alive, starts = arrays["branch_rewards"], arrays["branch_alive"], arrays["episode_starts"]
    compared = 0
    for t in range(T):
        for e in range(rewards.shape[1]):
            for k in range(K):
                if t + k >= T or (k and starts[t + 1 : t + k + 1, e].any()):
                    break
                for i in range(1, N):
                    assert alive[t, e, i, k]
                    np.testing.assert_allclose(rewards[t, e, i, k], rewards[t + k, e, 0, 0], rtol=rtol, atol=1e-6)
                    if t + k + 1 < T and not starts[t + k + 1, e]:
                        expected = arrays["values"][t + k + 1, e]
                        np.testing.assert_allclose(arrays["branch_next_values"][t, e, i, k], expected, rtol=rtol, atol=1e-5)
                        compared += 1
    assert compared > T


@pytest.mark.usefixtures("equal_first_actions")
@pytest.mark.parametrize("vec_env_cls", [None, SubprocVecEnv])
@pytest.mark.parametrize("action_space", ACTION_SPACES, ids=str)
def test_equal_first_actions_lead_along_the_committed_path(action_space, vec_env_cls):
    vec_env = make_vec_env(limited(action_space=action_space), 2, seed=0, vec_env_cls=vec_env_cls)
    arrays = rollout(HybridGRPO("MlpPolicy", vec_env, **SMALL))
    assert_branches_are_the_committed_path(arrays)
    vec_env.close()


@pytest.mark.usefixtures("equal_first_actions")
@pytest.mark.parametrize(
    "policy, make_env, wrap, kwargs",
    [
        ("MlpPolicy", limited(), lambda v: v, {"use_sde": True}),
        ("MlpPolicy", limited(), lambda v: v, {"use_sde": True, "sde_sample_freq": 1}),
        ("MlpPolicy", limited(), lambda v: v, {"use_sde": True, "sde_sample_freq": 3}),
        ("MlpPolicy", limited(), lambda v: v, {"use_sde": True, "policy_kwargs": {"squash_output": True}}),
        ("MultiInputPolicy", limited(observation="dict"), lambda v: v, {}),
        ("MlpPolicy", limited(), lambda v: VecFrameStack(v, 3), {}),
        (
            "MultiInputPolicy",
            limited(observation="dict"),
            lambda v: VecNormalize(v, norm_obs_keys=["position"], training=False),
            {},
        ),
        ("MlpPolicy", limited(), lambda v: VecFrameStack(VecNormalize(v, training=False), 2), {}),
        ("MlpPolicy", limited(), lambda v: VecNormalize(VecFrameStack(v, 2), training=False), {}),
        ("CnnPolicy", limited(observation="image"), lambda v: VecTransposeImage(VecFrameStack(v, 2)), {}),
        ("MlpPolicy", "Pendulum-v1", lambda v: v, {}),
        ("MlpPolicy", "CartPole-v1", lambda v: v, {}),
        ("MlpPolicy", "Hopper-v5", lambda v: v, {}),
    ],
    ids=[
        "gsde",
        "gsde-every-step",
        "gsde-every-third-step",
        "gsde-squashed",
        "dict",
        "stack",
        "dict-norm",
        "stack-of-norm",
        "norm-of-stack",
        "image",
        "pendulum",
        "cartpole",
        "hopper",
    ],
)
def test_through_policies_and_wrappers(policy, make_env, wrap, kwargs):
    if make_env == "Hopper-v5":
        pytest.importorskip("mujoco")
    model = HybridGRPO(policy, wrap(make_vec_env(make_env, 2, seed=0)), **{**SMALL, **kwargs})
    assert_branches_are_the_committed_path(rollout(model), rtol=1e-4)


def test_other_first_actions_lead_elsewhere():
    """The comparison above can fail."""
    arrays = rollout(HybridGRPO("MlpPolicy", make_vec_env(limited(), 2, seed=0), **SMALL))
    with pytest.raises(AssertionError):
        assert_branches_are_the_committed_path(arrays)


class Countdown(gym.Env):
    """Terminates after three steps; the reward is the number of the step."""

    observation_space = spaces.Box(0, 10, (1,))
    action_space = spaces.Box(-1, 1, (1,))

    def __init__(self, truncate=False):
        self.truncate = truncate

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.t = 0
        return np.zeros(1, dtype=np.float32), {}

    def step(self, action):
        self.t += 1
        over = self.t == 3
        return np.full(1, self.t, dtype=np.float32), float(self.t), over and not self.truncate, over and self.truncate, {}


@pytest.mark.parametrize("truncate", [False, True])
def test_branches_end_with_the_episode(truncate):
    model = HybridGRPO("MlpPolicy", Countdown(truncate), gamma=0.5, reward_transform="identity", **SMALL)
    arrays = rollout(model, n_envs=1)
    for t in range(T):
        left = 3 - t % 3
        np.testing.assert_array_equal(arrays["branch_alive"][t, 0, 1], np.arange(K) < left)
        terminated = arrays["branch_terminated"][t, 0, 1, :left]
        np.testing.assert_array_equal(terminated, [False] * (left - 1) + [not truncate])
        values = [arrays["values"][s, 0] for s in range(t % 3, 3)]
        expected = sum(0.5**k * (t % 3 + k + 1) for k in range(left)) - values[0]
        if truncate:
            expected += 0.5**left * arrays["branch_next_values"][t, 0, 1, left - 1]
        np.testing.assert_allclose(arrays["estimates"][t, 0, 1:], expected, rtol=1e-4, atol=1e-5)
        if t < T - 3:
            np.testing.assert_allclose(arrays["estimates"][t, 0, 0], expected, rtol=1e-4, atol=1e-5)
    assert model.num_simulator_steps == T + (N - 1) * int(arrays["branch_alive"][:, 0, 1].sum())


def test_branch_fraction():
    n_states = 2 * T * 20
    model = HybridGRPO("MlpPolicy", make_vec_env(limited(), 2, seed=0), **{**SMALL, "n_steps": 20 * T}, branch_fraction=0.25)
    keep = KeepRollout()
    model.learn(n_states, callback=keep)
    branched = keep.arrays["branched"]
    assert branched.mean() == pytest.approx(0.25, abs=5 * (0.25 * 0.75 / n_states) ** 0.5)
    assert branched.any(axis=1).any() and (branched[:, 0] != branched[:, 1]).any()
    assert not keep.arrays["branch_alive"][~branched][:, 1:].any()
    again = HybridGRPO("MlpPolicy", make_vec_env(limited(), 2, seed=0), **{**SMALL, "n_steps": 20 * T}, branch_fraction=0.25)
    again.learn(n_states, callback=keep)
    np.testing.assert_array_equal(branched, keep.arrays["branched"])


def test_one_step_is_as_before():
    """K = 1 draws and computes what it did without the option."""
    parameters = []
    for kwargs in ({}, {"branch_horizon": 1, "branch_lambda": 0.5, "branch_fraction": 1.0}):
        model = HybridGRPO("MlpPolicy", make_vec_env(limited(), 2, seed=0), **{**SMALL, "branch_horizon": 1, **kwargs})
        parameters.append(model.learn(96).policy.state_dict())
    for name, value in parameters[0].items():
        assert th.equal(value, parameters[1][name])


def test_distribution_without_common_noise_is_refused():
    class OwnForward(HybridGRPO.policy_aliases["MlpPolicy"]):
        def forward(self, obs, deterministic=False):
            return super().forward(obs, deterministic)

    with pytest.raises(InvalidArgumentError, match=r"OwnForward samples in a `forward`.*branch_horizon=1"):
        HybridGRPO(OwnForward, limited()(), **SMALL)
    HybridGRPO(OwnForward, limited()(), **{**SMALL, "branch_horizon": 1}).learn(T)


def test_environments_are_untouched_within_a_session():
    """Between opening and closing, too, the environment is where it was."""
    from sb3_hybrid_grpo.branching import make_brancher

    vec_env = make_vec_env(Walk, 1, seed=0)
    vec_env.reset()
    brancher = make_brancher("auto", vec_env)
    env = vec_env.envs[0].unwrapped
    before = env.position, env.velocity, env.np_random.bit_generator.state
    alive = np.ones((1, 2), dtype=bool)
    brancher.open(np.ones((1, 2, 2)), alive, horizon=3)
    for _ in range(2):
        assert (env.position, env.velocity, env.np_random.bit_generator.state) == before
        brancher.advance(np.ones((1, 2, 2)), alive)
    brancher.close()
    assert (env.position, env.velocity, env.np_random.bit_generator.state) == before


def test_rollout_that_branches_nothing():
    """A small fraction of a short rollout may be no state at all."""
    arrays = rollout(HybridGRPO("MlpPolicy", limited()(), branch_fraction=1e-9, **SMALL))
    assert not arrays["branch_alive"][..., 1:, :].any()
