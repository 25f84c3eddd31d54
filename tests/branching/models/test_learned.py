"""Branches in a learned model: of use only as far as the model is right."""

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3 import PPO
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.vec_env import VecNormalize

from sb3_hybrid_grpo import HybridGRPO, InvalidArgumentError, UnbranchableEnvError
from sb3_hybrid_grpo.branching import LearnedBrancher
from sb3_hybrid_grpo.branching.models import learned
from sb3_hybrid_grpo.branching.models.learned import Ensemble
from sb3_hybrid_grpo.common.type_aliases import Transitions
from sb3_hybrid_grpo.estimation.advantages import Advantages, mixed_advantages, model_share, modelled_advantages
from sb3_hybrid_grpo.rollout.rollout_transitions import committed_transitions
from tests.envs import Walk, limited


@pytest.fixture(autouse=True)
def small_minibatches(monkeypatch):
    monkeypatch.setattr(learned, "_BATCH_SIZE", 64)


def test_modelled_advantages():
    advantages, weights = modelled_advantages(np.array([[[100.0, 1.0, 2.0, 6.0]]]))
    # Each minus the mean of the other two; what really happened is no part of it
    np.testing.assert_allclose(advantages, [[[0.0, 1 - 4.0, 2 - 3.5, 6 - 1.5]]])
    np.testing.assert_allclose(weights, [[[0, 1 / 3, 1 / 3, 1 / 3]]])


def test_model_share_is_the_slope_without_the_noise_of_the_baseline():
    modelled = np.array([1.0, -1.0, 3.0, -3.0])
    # cov = (1·2 + 1·0 + 3·1 + 3·1)/4 = 2, var = 5, slope 0.4, N/(N-1) = 2
    assert model_share(modelled, np.array([2.0, 0.0, 1.0, -1.0]), n_samples=2) == pytest.approx(0.8)
    assert model_share(modelled, 10 * modelled, n_samples=2) == 1
    assert model_share(modelled, -modelled, n_samples=2) == 0
    assert model_share(np.zeros(4), modelled, n_samples=2) == 0


@pytest.mark.parametrize("n_samples", [2, 8])
def test_share_of_a_true_and_of_a_useless_model(n_samples):
    rng = np.random.default_rng(0)
    truth = rng.normal(size=(100_000, n_samples))
    gae = truth[:, 0] + 2 * rng.normal(size=100_000)
    for model, share in ((truth, 1.0), (rng.normal(size=truth.shape), 0.0), (2 * truth, 0.5)):
        estimates = np.column_stack((np.zeros(100_000), model[:, 1:], model[:, :1]))
        modelled = modelled_advantages(estimates).advantages[:, -1]
        assert model_share(modelled, gae, n_samples) == pytest.approx(share, abs=0.03)


def test_mixture():
    modelled = Advantages(np.array([[0.0, 2.0, -2.0]]), np.array([[0.0, 0.5, 0.5]]))
    for share, expected_weights in ((0.0, [1, 0, 0]), (0.25, [0.75, 0.125, 0.125]), (1.0, [0, 0.5, 0.5])):
        advantages, weights = mixed_advantages(modelled, np.array([3.0]), share)
        np.testing.assert_allclose(advantages, [[3.0, 2.0, -2.0]])
        np.testing.assert_allclose(weights, [expected_weights])


def linear_transitions(n, rng, noise=0.0):
    observations, actions = rng.normal(size=(n, 3)), rng.uniform(-1, 1, size=(n, 2))

    def follow(actions):
        return observations + 0.3 * np.roll(observations, 1, axis=1) + np.pad(actions, ((0, 0), (0, 1)))

    following = follow(actions) + noise * rng.normal(size=(n, 3))
    terminated = observations[:, 0] > 1
    rewards = observations[:, 1] - actions[:, 0]
    following[terminated] = observations[terminated]
    return Transitions(observations, actions, following, rewards, terminated, rng.uniform(-1, 1, size=(n, 3, 2)))


class Vectors(gym.Env):
    observation_space, action_space = spaces.Box(-np.inf, np.inf, (3,)), spaces.Box(-1, 1, (2,))


def make_brancher():
    return LearnedBrancher(make_vec_env(Vectors))


def test_the_model_learns_and_is_used_when_it_is_right():
    th.manual_seed(0)
    rng = np.random.default_rng(0)
    brancher = make_brancher()
    for n_rollouts in range(1, 6):
        assert not brancher.is_ready or n_rollouts > 2
        brancher.learn_from(linear_transitions(1000, rng))
    assert brancher.is_ready and brancher.error < 0.1 * brancher.spread
    test = linear_transitions(500, rng)
    inputs = brancher.inputs(test.observations, test.actions)
    prediction = brancher.model.predict(inputs, th.arange(500) % 5)
    goes_on = ~test.terminated
    assert abs(prediction.observations - test.next_observations)[goes_on].mean() < 0.1
    assert abs(prediction.rewards - test.rewards)[goes_on].mean() < 0.1
    assert (prediction.terminated == test.terminated).mean() > 0.95
    # Far from all data the networks disagree.
    far = brancher.model.predict(10 * inputs, th.arange(500) % 5)
    assert far.variance.mean() > 20 * prediction.variance.mean()


def test_noise_that_hides_what_actions_do_keeps_it_off():
    th.manual_seed(0)
    rng = np.random.default_rng(0)
    brancher = make_brancher()
    for _ in range(4):
        brancher.learn_from(linear_transitions(1000, rng, noise=30.0))
    assert brancher.error > brancher.spread and not brancher.is_ready


def test_a_rollout_of_ends_alone_teaches_nothing_and_spoils_nothing():
    th.manual_seed(0)
    rng = np.random.default_rng(0)
    brancher = make_brancher()
    ends = linear_transitions(50, rng)._replace(terminated=np.ones(50, dtype=bool))
    nothing = Transitions(*(part[:0] for part in ends))
    brancher.learn_from(nothing)
    brancher.learn_from(ends)
    assert not brancher.is_ready
    for _ in range(4):
        brancher.learn_from(linear_transitions(1000, rng))
    assert brancher.is_ready


def test_members_learn_for_themselves():
    th.manual_seed(0)
    ensemble = Ensemble(3, 2, n_members=4)
    inputs, targets = th.randn(300, 3), th.randn(300, 3)
    ensemble.fit(inputs, targets, th.zeros(300), n_steps=20)
    (weight, *_) = ensemble.weights
    assert all((weight[0] - weight[i]).abs().max() > 0.01 for i in (1, 2, 3))


def test_branches_of_a_state_share_a_network_and_start_there():
    th.manual_seed(0)
    rng = np.random.default_rng(0)
    brancher = make_brancher()
    for _ in range(3):
        brancher.learn_from(linear_transitions(1000, rng))
    states = rng.normal(size=(4, 2, 3)).astype(np.float32)  # 4 steps of 2 environments
    for obs in states:
        brancher.remember(obs)
    branches = brancher.recall()
    actions = rng.uniform(-1, 1, size=(2, 12, 2)).astype(np.float32)  # 3 branches each
    alive = np.ones((2, 12), dtype=bool)
    alive[1, 5] = False
    first = branches.open(actions, alive, horizon=2)
    second = branches.advance(actions, alive)
    for e, b in np.ndindex(2, 12):
        member = th.tensor([(4 * e + b // 3) % 5])
        obs = states[b // 3, e][None]
        for outcome in (first, second):
            if not alive[e, b]:
                assert not outcome.observations[e, b].any() and outcome.rewards[e, b] == 0
                continue
            expected = brancher.model.predict(brancher.inputs(obs, actions[e, b][None]), member)
            np.testing.assert_allclose(outcome.observations[e, b], expected.observations[0], rtol=1e-4, atol=1e-5)
            np.testing.assert_allclose(outcome.rewards[e, b], expected.rewards[0], rtol=1e-4, atol=1e-5)
            assert outcome.truncated[e, b] == (expected.variance[0] > brancher.spread)
            obs = expected.observations


def test_transitions_of_a_rollout():
    env = make_vec_env(limited(max_episode_steps=7), 2, seed=0)
    model = HybridGRPO("MlpPolicy", env, n_steps=64, n_samples=3, branch_horizon=1, n_epochs=1, seed=0)
    taken = []
    step = env.step

    def recording(actions):
        obs = model._last_obs.copy()
        result = step(actions)
        taken.append((obs, actions, result))
        return result

    env.step = recording
    model.learn(128)
    buffer = model.rollout_buffer
    # `get` has flattened some arrays of the buffer.
    for name in ("observations", "actions"):
        stored = getattr(buffer, name)
        setattr(buffer, name, stored.reshape(2, 64, *stored.shape[1:]).swapaxes(0, 1))
    transitions = committed_transitions(model.policy, buffer, taken[-1][2][0], taken[-1][2][2])
    rows = []
    for obs, actions, (new_obs, rewards, dones, infos) in taken:
        for e in range(2):
            if not infos[e]["TimeLimit.truncated"]:
                rows.append((obs[e], actions[e], obs[e] if dones[e] else new_obs[e], rewards[e], dones[e]))
    assert 0 < sum(row[-1] for row in rows) and len(rows) < 128
    for found, expected in zip(transitions[:5], zip(*rows, strict=True), strict=True):
        np.testing.assert_allclose(found, np.array(expected), rtol=1e-6)
    # The last of the three samples stands for the committed action once more.
    assert transitions.other_actions.shape == (len(rows), 1, 2)


@pytest.mark.parametrize("wrapper", [None, VecNormalize])
@pytest.mark.parametrize("env", ["Pendulum-v1", "CartPole-v1"])
def test_training(env, wrapper):
    vec_env = make_vec_env(env, 2, seed=0)
    vec_env = vec_env if wrapper is None else wrapper(vec_env)
    settings = {"n_steps": 256, "n_samples": 4, "branch_horizon": 3, "n_epochs": 2, "seed": 0}
    model = HybridGRPO("MlpPolicy", vec_env, brancher="learned", **settings)
    model.learn(5 * 512, log_interval=None)
    was_ready = model._brancher.is_ready
    # CartPole's model errs far less than it may; Pendulum's is close to what is asked of it.
    assert was_ready or env == "Pendulum-v1" or wrapper is VecNormalize
    model.learn(512, log_interval=None, reset_num_timesteps=False)
    logged = model.logger.name_to_value
    assert model.num_simulator_steps == model.num_timesteps
    # Whoever predicts the mean has an error of one.
    assert 0 < logged["rollout/model_error"] < 0.5
    assert (logged["rollout/model_error"] < logged["rollout/model_spread"]) == model._brancher.is_ready
    assert 0 <= logged["rollout/model_share"] <= 1
    buffer = model.rollout_buffer
    assert buffer.branch_alive[:, :, 1:].any() == was_ready
    np.testing.assert_allclose(buffer.weights.sum(axis=-1), 1, rtol=1e-5)
    actions = buffer.actions.reshape(512, 5, -1)
    np.testing.assert_array_equal(actions[:, 0], actions[:, -1])


def test_before_it_is_ready_it_is_ppo():
    model = HybridGRPO("MlpPolicy", limited()(), n_steps=128, n_samples=4, brancher="learned", n_epochs=1, seed=0)
    model.learn(128)
    buffer = model.rollout_buffer
    np.testing.assert_array_equal(buffer.weights[:, 0], 1)
    np.testing.assert_allclose(
        buffer.advantages[:, 0], (buffer.returns - buffer.values).ravel() - (buffer.returns - buffer.values).mean(), atol=1e-4
    )


@pytest.mark.parametrize("change", ["load", "set_env"])
def test_the_networks_stay(tmp_path, change):
    model = HybridGRPO(
        "MlpPolicy", make_vec_env("CartPole-v1", 1, seed=0), n_steps=256, n_samples=4, n_epochs=1, brancher="learned", seed=0
    )
    model.learn(4 * 256)
    before = model._brancher
    assert before.is_ready
    env = make_vec_env("CartPole-v1", 1, seed=1)
    if change == "load":
        model.save(tmp_path / "model")
        assert PPO.load(tmp_path / "model").predict(np.zeros(4), deterministic=True)[0] in (0, 1)
        model = HybridGRPO.load(tmp_path / "model", env)
    else:
        model.set_env(env)
    brancher = model._brancher
    assert brancher is not before
    assert (brancher.is_ready, brancher.error, brancher.spread) == (True, before.error, before.spread)
    inputs, members = th.randn(20, 6), th.arange(20) % 5
    for found, expected in zip(brancher.model.predict(inputs, members), before.model.predict(inputs, members), strict=True):
        np.testing.assert_array_equal(found, expected)
    model.learn(256, reset_num_timesteps=False)
    assert model.rollout_buffer.branch_alive[:, :, 1:].any()


class OwnForward(ActorCriticPolicy):
    def forward(self, obs, deterministic=False):
        return super().forward(obs, deterministic)


@pytest.mark.parametrize(
    "kwargs, error, message",
    [
        ({"env": Walk("dict"), "policy": "MultiInputPolicy"}, UnbranchableEnvError, "model of vectors"),
        ({"env": Walk("image"), "policy": "CnnPolicy"}, UnbranchableEnvError, "model of vectors"),
        ({"advantage": "averaged"}, InvalidArgumentError, "independent samples"),
        ({"advantage": "per_action"}, InvalidArgumentError, "no place for what really followed"),
        ({"action_sampling": "antithetic"}, InvalidArgumentError, "chooses the actions otherwise"),
        ({"sampling_temperature": 2.0}, InvalidArgumentError, "chooses the actions otherwise"),
        ({"tail_coef": 0.5}, InvalidArgumentError, "tail_coef=0.5 has no place"),
        ({"action_selection": "best"}, InvalidArgumentError, "after it"),
        ({"policy": OwnForward}, InvalidArgumentError, "OwnForward samples"),
    ],
)
def test_refusals(kwargs, error, message):
    with pytest.raises(error, match=message):
        HybridGRPO(**{"policy": "MlpPolicy", "env": Walk(), "brancher": "learned", "branch_horizon": 1, **kwargs})


def test_checkpoints_keep_transitions_on_request(tmp_path):
    env = make_vec_env(limited(5), 1, seed=0)
    model = HybridGRPO("MlpPolicy", env, brancher="learned", n_steps=32, batch_size=32, n_epochs=1, seed=0).learn(64)
    model.save(tmp_path / "without")
    model.save(tmp_path / "with", include=["model_transitions"])
    assert PPO.load(tmp_path / "with").predict(np.zeros(2, dtype=np.float32))
    resumed = {name: HybridGRPO.load(tmp_path / name, env) for name in ("without", "with")}
    for ours, saved in zip(resumed["with"]._brancher.transitions, model._brancher.transitions, strict=True):
        assert th.equal(ours, saved)
    lengths = {name: len(other.learn(32).model_transitions[0]) for name, other in resumed.items()}
    assert lengths["with"] == lengths["without"] + len(model.model_transitions[0])


def test_networks_one_after_the_other_predict_what_they_do_together():
    model = Ensemble(3, 2)
    inputs, members = th.randn(7, 3), th.arange(7) % 5
    outputs, logits = model.predict_all(inputs)
    together = model(inputs.expand(5, -1, -1))
    th.testing.assert_close((outputs, logits), together)
    variance = outputs.var(dim=0).mean(dim=-1).numpy()
    np.testing.assert_allclose(model.predict(inputs, members).variance, variance, rtol=1e-5)
