"""Recurrent policies: branches remember what the committed trajectory has seen, and with one sample this is RecurrentPPO."""

import copy
import pickle

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from sb3_contrib import RecurrentPPO
from sb3_contrib.common.recurrent.buffers import RecurrentRolloutBuffer
from sb3_contrib.common.recurrent.policies import RecurrentActorCriticPolicy
from stable_baselines3.common.buffers import RolloutBuffer
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv, VecNormalize

from sb3_hybrid_grpo import GRPO, FunctionalVecEnv, HybridGRPO, InvalidArgumentError
from sb3_hybrid_grpo.branching import VecEnvBrancher
from sb3_hybrid_grpo.estimation.losses import Loss
from sb3_hybrid_grpo.policies import make_evaluator, refit_value_head
from sb3_hybrid_grpo.rollout import ActionSampling, action_sampling, values
from sb3_hybrid_grpo.rollout.buffers import MultiSampleRolloutBuffer, RecurrentMultiSampleRolloutBuffer
from tests.envs import limited
from tests.functional_envs import Drift

PPO_SETTINGS = {"n_samples": 1, "reward_transform": "identity", "refit_critic": False, "max_actor_grad_norm": None}
LSTM = {"lstm_hidden_size": 8, "net_arch": {"pi": [], "vf": [8]}}
SHARED = {"shared_lstm": True, "enable_critic_lstm": False}
TWO_LAYERS = {"n_lstm_layers": 2, "enable_critic_lstm": False}
SMALL = {"n_steps": 24, "batch_size": 48, "n_epochs": 1, "seed": 0, "device": "cpu", "policy_kwargs": LSTM}


class Recorder(BaseCallback):
    """Keeps what callbacks see of each step, and the last rollout as it was before the update."""

    def __init__(self):
        super().__init__()
        self.steps = []

    def _on_step(self):
        seen = [*(self.locals[name] for name in ("actions", "values", "log_probs")), *self.locals["lstm_states"].vf]
        self.steps.append([th.as_tensor(part).numpy().ravel() for part in seen])
        return True

    def _on_rollout_end(self):
        self.arrays = {
            name: np.copy(value) for name, value in vars(self.model.rollout_buffer).items() if isinstance(value, np.ndarray)
        }


@pytest.mark.parametrize(
    "policy, env, wrapper, kwargs",
    [
        ("MlpLstmPolicy", "CartPole-v1", None, {}),
        ("MlpLstmPolicy", limited(), VecNormalize, {"policy_kwargs": {**LSTM, **SHARED}}),
        ("MultiInputLstmPolicy", limited(observation="dict"), None, {"policy_kwargs": {**LSTM, **TWO_LAYERS}}),
        ("CnnLstmPolicy", limited(observation="image"), None, {"batch_size": 16}),
        ("MlpLstmPolicy", limited(observation="discrete", action_space=spaces.MultiDiscrete([2, 3])), None, {}),
        ("MlpLstmPolicy", "Pendulum-v1", None, {"use_sde": True, "sde_sample_freq": 4}),
        (
            "MlpLstmPolicy",
            limited(),
            None,
            {
                "normalize_advantage": False,
                "clip_range_vf": 0.2,
                "ent_coef": 0.01,
                "policy_kwargs": {**LSTM, "share_features_extractor": False},
            },
        ),
    ],
    ids=["cartpole", "shared-vecnormalize", "dict", "image", "multidiscrete", "gsde", "options"],
)
def test_one_sample_is_recurrent_ppo(policy, env, wrapper, kwargs):
    models, recorders = [], []
    if policy == "CnnLstmPolicy":
        kwargs["policy_kwargs"] = {**LSTM, "features_extractor_kwargs": {"features_dim": 8}}
    settings = {"n_steps": 24, "batch_size": 24, "n_epochs": 2, "seed": 5, "device": "cpu", "policy_kwargs": LSTM, **kwargs}
    for algorithm, own in ((RecurrentPPO, {}), (HybridGRPO, PPO_SETTINGS)):
        vec_env = make_vec_env(env, 2, seed=3)
        model = algorithm(policy, wrapper(vec_env) if wrapper else vec_env, **settings, **own)
        recorders.append(Recorder())
        models.append(model.learn(3 * 48, callback=recorders[-1]))
    for expected, step in zip(*(recorder.steps for recorder in recorders), strict=True):
        np.testing.assert_allclose(np.concatenate(step), np.concatenate(expected), rtol=1e-3, atol=1e-4)
    expected = models[0].policy.state_dict()
    for name, parameter in models[1].policy.state_dict().items():
        th.testing.assert_close(parameter, expected[name], rtol=1e-3, atol=1e-4, msg=lambda msg, name=name: f"{name}: {msg}")


class Repeated(ActionSampling):
    """The committed action, again and again: its branches are what the committed trajectory will be."""

    def sample(self, *args):
        samples = super().sample(*args)
        return samples._replace(actions=samples.actions[:, [0, 0, 0]])


def prompt(venv):
    brancher = VecEnvBrancher(venv)
    brancher.can_remember = False
    return brancher


def normalized(vec_env):
    return VecNormalize(vec_env, training=False)


@pytest.mark.parametrize(
    "env, vec_env_cls, wrapper, kwargs",
    [
        (limited(), DummyVecEnv, None, {}),
        (limited(), SubprocVecEnv, normalized, {"policy_kwargs": {**LSTM, **TWO_LAYERS}}),
        (limited(observation="dict"), DummyVecEnv, None, {"policy": "MultiInputLstmPolicy"}),
        (limited(), DummyVecEnv, None, {"policy_kwargs": {**LSTM, **SHARED}}),
        (limited(action_space=spaces.Discrete(3)), DummyVecEnv, None, {"soft_values": True, "ent_coef": 0.1}),
        (limited(), DummyVecEnv, None, {"use_sde": True, "sde_sample_freq": 4}),
        ("Hopper-v5", DummyVecEnv, normalized, {}),
        ("Hopper-v5", DummyVecEnv, None, {"brancher": prompt}),
    ],
    ids=["prompt", "workers", "dict", "shared", "soft", "gsde", "late", "not-late"],
)
@pytest.mark.filterwarnings("ignore:Workers cannot follow branches with a copy of the policy. a recurrent policy:UserWarning")
def test_a_branch_of_the_committed_action_is_the_committed_trajectory(monkeypatch, env, vec_env_cls, wrapper, kwargs):
    """Its rewards depend on what the actor remembers, its values on what the critic does."""
    monkeypatch.setattr(action_sampling, "first_occurrences", lambda actions: np.tile([0, 1, 2], (len(actions), 1)))
    vec_env_kwargs = {"start_method": "fork"} if vec_env_cls is SubprocVecEnv else {}
    vec_env = make_vec_env(env, 2, seed=0, vec_env_cls=vec_env_cls, vec_env_kwargs=vec_env_kwargs)
    try:
        settings = {"policy": "MlpLstmPolicy", **SMALL, "n_samples": 3, "branch_horizon": 4, "reward_transform": "identity"}
        model = HybridGRPO(env=wrapper(vec_env) if wrapper else vec_env, **{**settings, **kwargs})
        with th.no_grad():
            for parameter in model.policy.parameters():
                parameter.mul_(3)
        model._action_sampling = Repeated(3)
        recorder = Recorder()
        model.learn(48, callback=recorder)
    finally:
        vec_env.close()
    of = recorder.arrays
    n_compared = 0
    for name in ("branch_alive", "branch_rewards", "branch_next_values"):
        np.testing.assert_allclose(of[name][:, :, 2], of[name][:, :, 1], rtol=1e-4, atol=1e-5)
    for t, e, k in np.ndindex(24, 2, 4):
        if of["episode_starts"][t + 1 : t + k + 1, e].any():
            assert not of["branch_alive"][t, e, 1, k]
        elif t + k < 24:
            assert of["branch_alive"][t, e, 1, k]
            assert of["branch_rewards"][t, e, 1, k] == pytest.approx(of["branch_rewards"][t + k, e, 0, 0], rel=1e-4, abs=1e-5)
            if t + k + 1 < 24 and not of["episode_starts"][t + k + 1, e]:
                assert of["branch_next_values"][t, e, 1, k] == pytest.approx(of["values"][t + k + 1, e], rel=1e-4, abs=1e-5)
                if model.soft_values:
                    entropy = of["branch_next_entropies"][t, e, 1, k]
                    assert entropy == pytest.approx(of["entropies"][t + k + 1, e], rel=1e-4, abs=1e-5)
                n_compared += 1
    assert n_compared > 60


def test_values_do_not_depend_on_how_many_are_computed_at_once(monkeypatch):
    arrays = []
    for at_once in (1, 40, 1000):
        monkeypatch.setattr(values, "chunk_size", lambda space, n=at_once: n)
        env = make_vec_env(limited(), 2, seed=0)
        recorder = Recorder()
        HybridGRPO("MlpLstmPolicy", env, **SMALL, n_samples=3, branch_horizon=3).learn(48, callback=recorder)
        arrays.append(recorder.arrays["branch_next_values"])
    assert arrays[0][:, :, 1:].any(axis=-1).all()
    np.testing.assert_allclose(arrays[1], arrays[0], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(arrays[2], arrays[0], rtol=1e-4, atol=1e-5)


def collected(policy="MlpLstmPolicy", observation="box", **kwargs):
    """Return a model with a rollout that it has not learned from."""
    model = HybridGRPO(policy, make_vec_env(limited(7, observation=observation), 2, seed=0), **{**SMALL, **kwargs})
    _, callback = model._setup_learn(48)
    model.collect_rollouts(model.env, callback, model.rollout_buffer, 24)
    return model


def test_minibatches_are_sequences_of_what_the_rollout_has_seen():
    """From them all samples have the log-probabilities that they had one by one."""
    model = collected(n_samples=3)
    evaluator = make_evaluator(model.policy)
    for batch in model.rollout_buffer.get(20):
        evaluated, log_prob, _ = evaluator.evaluate_actions(batch.observations, batch.actions, None, batch.sequences)
        assert len(batch.observations) == len(batch.sequences.is_state) > len(evaluated) == len(batch.returns)
        np.testing.assert_allclose(evaluated, batch.old_values, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(log_prob, batch.old_log_prob, rtol=1e-4, atol=1e-4)
        predicted = evaluator.predict_values(batch.observations, batch.sequences)
        np.testing.assert_allclose(predicted, evaluated, rtol=1e-5, atol=1e-6)


def test_the_critic_is_refitted_to_states_and_not_to_what_fills_sequences_up():
    model = collected()
    buffer, before = model.rollout_buffer, copy.deepcopy(model.policy.state_dict())
    buffer.returns = 30 * buffer.values + 7
    refit_value_head(model.policy, buffer)
    (batch,) = buffer.get()
    errors = make_evaluator(model.policy).predict_values(batch.observations, batch.sequences) - batch.returns
    assert not batch.sequences.is_state.all()
    assert errors.var() < 0.01 * buffer.returns.var() and abs(errors.mean()) < 1e-3
    changed = {name for name, tensor in model.policy.state_dict().items() if not th.equal(tensor, before[name])}
    assert changed == {"value_net.weight", "value_net.bias"}


def test_the_value_loss_alone_takes_shared_features_for_constants():
    policy_kwargs = {**LSTM, "features_extractor_kwargs": {"features_dim": 8}}
    model = collected("CnnLstmPolicy", observation="image", policy_kwargs=policy_kwargs, n_samples=1)
    evaluator = make_evaluator(model.policy)
    (batch,) = model.rollout_buffer.get()
    for with_actions in (True, False):
        model.policy.zero_grad()
        if with_actions:
            evaluator.evaluate_actions(batch.observations, batch.actions, None, batch.sequences)
        else:
            evaluator.predict_values(batch.observations, batch.sequences)
        evaluator.backward([Loss(0.0, "values", np.ones(48, dtype=np.float32))])
        trained = {name for name, parameter in model.policy.named_parameters() if parameter.grad is not None}
        assert {"lstm_critic.weight_hh_l0", "value_net.bias"} <= trained
        assert any("features" in name for name in trained) == with_actions


def remembered(model):
    """Return what a model does in an episode of one observation, which it has in mind more and more."""
    obs = np.full((2, 2), 0.5, dtype=np.float32)
    actions, state, episode_start = [], None, np.ones(2, dtype=bool)
    for _ in range(3):
        action, state = model.predict(obs, state=state, episode_start=episode_start, deterministic=True)
        episode_start[:] = False
        actions.append(action)
    return np.array(actions)


@pytest.mark.parametrize("first, second", [(HybridGRPO, RecurrentPPO), (RecurrentPPO, HybridGRPO), (HybridGRPO, HybridGRPO)])
def test_checkpoints_go_both_ways(tmp_path, first, second):
    model = first("MlpLstmPolicy", make_vec_env(limited(), 2, seed=0), **SMALL).learn(48)
    model.save(tmp_path / "model")
    loaded = second.load(tmp_path / "model", env=make_vec_env(limited(), 2, seed=0), device="cpu")
    actions = remembered(model)
    assert (actions[0] != actions[1]).all() and (actions[1] != actions[2]).all()
    np.testing.assert_array_equal(remembered(loaded), actions)
    assert loaded.learn(48, reset_num_timesteps=False).num_timesteps == 96


def test_pickled_models_go_on_in_the_middle_of_episodes():
    model = HybridGRPO("MlpLstmPolicy", make_vec_env(limited(), 2, seed=0), **SMALL).learn(48)
    twin = pickle.loads(pickle.dumps(model))
    for each in (model, twin):
        th.manual_seed(0)
        np.random.seed(0)
        each.learn(48, reset_num_timesteps=False)
    assert twin.rollout_buffer.hidden_states_pi[0].any()
    for name, parameter in model.policy.state_dict().items():
        th.testing.assert_close(twin.policy.state_dict()[name], parameter)


def test_another_number_of_environments(tmp_path):
    HybridGRPO("MlpLstmPolicy", make_vec_env(limited(), 2), **SMALL).save(tmp_path / "model")
    loaded = HybridGRPO.load(tmp_path / "model", env=make_vec_env(limited(), 3), device="cpu")
    assert loaded.learn(72).num_timesteps == 72


@pytest.mark.parametrize(
    "kwargs",
    [
        {"advantage": "averaged", "branch_horizon": 1},
        {"n_samples": 4, "action_sampling": "antithetic", "branch_horizon": 2},
        {"n_samples": 3, "sampling_temperature": 2.0, "branch_horizon": 2},
        {"branch_fraction": 0.3},
        {"brancher": prompt, "branch_horizon": 1},
    ],
    ids=["averaged", "antithetic", "tempered", "fraction", "prompt"],
)
def test_other_arguments(kwargs):
    model = HybridGRPO("MlpLstmPolicy", "Pendulum-v1", **{**SMALL, "n_steps": 48, **kwargs}).learn(48)
    assert model.num_simulator_steps > 48
    evaluate_policy(model, model.get_env(), n_eval_episodes=1, warn=False)


def test_multibinary_actions():
    """RecurrentPPO itself fails with them."""
    env = make_vec_env(limited(action_space=spaces.MultiBinary(3)), 2)
    assert HybridGRPO("MlpLstmPolicy", env, **SMALL).learn(48).num_simulator_steps > 48


def test_functional_environments():
    model = HybridGRPO("MlpLstmPolicy", FunctionalVecEnv(Drift(), 2, seed=0), **SMALL).learn(48)
    assert model.rollout_buffer.branch_next_values[:, :, 1, 1].any()


def test_all_actions_are_enumerated():
    model = HybridGRPO("MlpLstmPolicy", make_vec_env("CartPole-v1", 2), **SMALL).learn(48)
    assert model.rollout_buffer.action_sampling == "enumerate"


@pytest.mark.filterwarnings("ignore:.* updates in a row:UserWarning")
def test_grpo_is_recurrent_too():
    model = GRPO("MlpLstmPolicy", make_vec_env(limited(), 2, seed=0), **SMALL)
    before = model.policy.lstm_actor.weight_hh_l0.detach().clone()
    model.learn(48)
    assert not th.equal(model.policy.lstm_actor.weight_hh_l0, before)


class Recall(gym.Env):
    """Say at the second step what was shown at the first."""

    observation_space = spaces.Box(-1, 1, (1,))
    action_space = spaces.Discrete(2)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.shown = int(self.np_random.integers(2))
        self.n_steps = 0
        return np.array([2 * self.shown - 1], dtype=np.float32), {}

    def step(self, action):
        self.n_steps += 1
        is_right = self.n_steps == 2 and action == self.shown
        return np.zeros(1, dtype=np.float32), float(is_right), self.n_steps == 2, False, {}


@pytest.mark.filterwarnings("ignore:.* updates in a row:UserWarning")
@pytest.mark.parametrize("policy, solves", [("MlpLstmPolicy", True), ("MlpPolicy", False)])
def test_what_was_seen_before_is_remembered(policy, solves):
    env = make_vec_env(Recall, 8, seed=0)
    kwargs = {"learning_rate": 1e-2, "n_steps": 16, "batch_size": 128, "branch_horizon": 2, "seed": 0, "device": "cpu"}
    model = HybridGRPO(policy, env, **kwargs, policy_kwargs={"lstm_hidden_size": 16} if solves else None).learn(1024)
    mean_reward, _ = evaluate_policy(model, env, n_eval_episodes=40, warn=False)
    assert (mean_reward == 1) == solves


class OwnForward(RecurrentActorCriticPolicy):
    def forward(self, obs, lstm_states, episode_starts, deterministic=False):
        return super().forward(obs, lstm_states, episode_starts, deterministic)


class Foreign(ActorCriticPolicy):
    def forward(self, obs, lstm_states, deterministic=False):
        raise NotImplementedError


@pytest.mark.parametrize(
    "policy, kwargs, message",
    [
        (OwnForward, {}, "OwnForward is recurrent, with its own forward"),
        (Foreign, {}, "Foreign is recurrent, with its own forward, get_distribution"),
        ("MlpLstmPolicy", {"action_selection": "best"}, "action_selection='best' is not possible: what .* remembers"),
        (
            "MlpLstmPolicy",
            {"brancher": "learned"},
            "brancher='learned' is not possible: a model predicts from one observation",
        ),
        ("MlpLstmPolicy", {"rollout_buffer_class": MultiSampleRolloutBuffer}, "and what the policy remembers"),
    ],
)
def test_refusals(policy, kwargs, message):
    with pytest.raises(InvalidArgumentError, match=message):
        HybridGRPO(policy, "CartPole-v1", **kwargs)


@pytest.mark.parametrize("stock", [None, RolloutBuffer, RecurrentRolloutBuffer])
def test_stock_buffers_count_as_no_choice(stock):
    model = HybridGRPO("MlpLstmPolicy", "CartPole-v1", **{**SMALL, "n_steps": 48}, rollout_buffer_class=stock)
    assert type(model.rollout_buffer) is RecurrentMultiSampleRolloutBuffer
