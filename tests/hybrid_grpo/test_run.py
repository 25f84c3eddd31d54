import copy

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3.common.callbacks import BaseCallback, StopTrainingOnMaxEpisodes
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.utils import set_random_seed
from stable_baselines3.common.vec_env import SubprocVecEnv, VecNormalize

from sb3_hybrid_grpo import GRPO, PAPER_SETTINGS, HybridGRPO, InvalidArgumentError, UnbranchableEnvError
from sb3_hybrid_grpo.policies.evaluators import Evaluator, predict_values_only
from tests.envs import SharedLayerPolicy, Walk, far_library, limited

SMALL = {"n_steps": 32, "batch_size": 16, "n_epochs": 2, "seed": 0, "device": "cpu"}


def changed(before, model):
    return [name for name, value in model.policy.state_dict().items() if not th.equal(before[name], value)]


def copied(model):
    return {name: value.clone() for name, value in model.policy.state_dict().items()}


@pytest.mark.parametrize("algorithm", [HybridGRPO, GRPO])
@pytest.mark.parametrize("n_samples", [1, 2, 5])
@pytest.mark.parametrize(
    "action_space",
    [
        spaces.Box(-1, 1, (2,)),
        spaces.Box(-2, 0.5, (2, 3)),
        spaces.Discrete(3),
        spaces.MultiDiscrete([2, 4]),
        spaces.MultiBinary(3),
    ],
    ids=str,
)
def test_action_spaces(algorithm, n_samples, action_space):
    if algorithm is GRPO and n_samples == 1:
        with pytest.raises(InvalidArgumentError, match="must be at least 2"):
            GRPO("MlpPolicy", limited()(), n_samples=1, **SMALL)
        return
    settings = {"branch_horizon": 1} if algorithm is HybridGRPO else {}
    vec_env = make_vec_env(limited(action_space=action_space), 2)
    model = algorithm("MlpPolicy", vec_env, n_samples=n_samples, **settings, **SMALL)
    before = copied(model)
    model.learn(64)
    assert model.num_timesteps == 64
    if isinstance(action_space, spaces.Box):
        assert model.num_simulator_steps == 64 * n_samples
    else:
        assert 64 <= model.num_simulator_steps <= 64 * n_samples
    if algorithm is HybridGRPO:
        assert changed(before, model)
    action, _ = model.predict(model.observation_space.sample())
    assert action_space.contains(action.astype(action_space.dtype))


@pytest.mark.parametrize(
    "observation, policy", [("dict", "MultiInputPolicy"), ("image", "CnnPolicy"), ("discrete", "MlpPolicy")]
)
@pytest.mark.parametrize("advantage", ["hybrid", "per_action", "averaged"])
def test_observation_spaces(observation, policy, advantage):
    vec_env = make_vec_env(limited(observation=observation), 2)
    model = HybridGRPO(policy, vec_env, advantage=advantage, **SMALL)
    before = copied(model)
    model.learn(64)
    assert changed(before, model)


@pytest.mark.parametrize("share_features_extractor", [True, False])
def test_cnn_features_shared_or_separate(share_features_extractor):
    policy_kwargs = {"share_features_extractor": share_features_extractor, "features_extractor_kwargs": {"features_dim": 8}}
    model = HybridGRPO("CnnPolicy", limited(observation="image")(), policy_kwargs=policy_kwargs, **SMALL)
    before = copied(model)
    model.learn(32)
    assert any(name.startswith("features_extractor") for name in changed(before, model))


def test_policy_that_overrides_evaluate_actions_is_honoured():
    calls = []

    class Recording(HybridGRPO.policy_aliases["MlpPolicy"]):
        def evaluate_actions(self, obs, actions):
            calls.append(len(actions))
            return super().evaluate_actions(obs, actions)

    HybridGRPO(Recording, limited()(), n_samples=3, **SMALL).learn(32)
    assert calls.count(16) == 2 * 2 * 3  # epochs, minibatches, samples


@pytest.mark.parametrize("n_envs", [1, 2])
@pytest.mark.parametrize("squash_output", [False, True])
def test_gsde_samples_are_distinct(n_envs, squash_output):
    buffers = []

    class Keep(BaseCallback):
        def _on_step(self):
            buffers.append(self.locals["sampled_actions"].copy())
            return True

    model = HybridGRPO(
        "MlpPolicy",
        make_vec_env("Pendulum-v1", n_envs),
        use_sde=True,
        sde_sample_freq=8,
        n_samples=4,
        policy_kwargs={"squash_output": squash_output, "log_std_init": -1.0},
        **SMALL,
    )
    model.learn(32 * n_envs, callback=Keep())
    actions = np.array(buffers).reshape(32, -1)
    assert actions.shape[1] == 4 * n_envs
    for first in range(actions.shape[1]):
        for second in range(first):
            assert np.abs(actions[:, first] - actions[:, second]).max() > 1e-3


def test_gsde_noise_is_kept_between_resamplings():
    """The committed action's noise matrix is one for the whole rollout, as in PPO: the same state gives the same action."""

    class Standing(gym.Env):
        observation_space = spaces.Box(-1, 1, (2,))
        action_space = spaces.Box(-5, 5, (1,))

        def reset(self, *, seed=None, options=None):
            super().reset(seed=seed)
            return np.ones(2, dtype=np.float32), {}

        def step(self, action):
            return np.ones(2, dtype=np.float32), 0.0, False, False, {}

    model = HybridGRPO("MlpPolicy", Standing(), use_sde=True, n_samples=4, **SMALL)
    model.learn(32)
    for sample in range(4):
        assert np.ptp(model.rollout_buffer.actions[:, sample]) < 1e-5


@pytest.mark.parametrize("settings", [{}, PAPER_SETTINGS, {"reward_transform": "zscore"}, {"reward_transform": np.sign}])
def test_reward_transforms(settings):
    model = HybridGRPO("MlpPolicy", limited()(), **settings, **SMALL)
    before = copied(model)
    model.learn(64)
    assert changed(before, model)


def test_paper_settings_are_the_seeds_formula():
    """A_T = 1/N Σ [tanh(R) + γ V(s') - V(s)], on the committed action alone, recomputed from the buffer."""
    model = HybridGRPO("MlpPolicy", limited()(), gamma=0.9, n_samples=4, **PAPER_SETTINGS, **SMALL)
    buffers = {}

    class Keep(BaseCallback):
        def _on_step(self):
            return True

        def _on_rollout_end(self):
            buffers.update(
                {
                    name: np.copy(getattr(self.model.rollout_buffer, name))
                    for name in (
                        "rewards",
                        "next_values",
                        "terminated",
                        "values",
                        "advantages",
                        "weights",
                        "averaged_advantages",
                    )
                }
            )

    model.learn(32, callback=Keep())
    boosted = (
        np.tanh(buffers["rewards"]) + 0.9 * buffers["next_values"] * ~buffers["terminated"] - buffers["values"][..., None]
    )
    np.testing.assert_allclose(buffers["averaged_advantages"], boosted.mean(axis=-1), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(buffers["advantages"][..., 0], boosted.mean(axis=-1), rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(buffers["weights"][0, 0], [1, 0, 0, 0])


def test_branches_carry_the_right_values():
    """Next values of branches are the critic's, whatever chunks they were computed in, in the order of the samples."""

    class Deterministic(Walk):
        def step(self, action):
            self.position += float(np.mean(action))
            self.velocity = 0.0
            return self._observe(), float(self.position), False, False, {}

    model = HybridGRPO("MlpPolicy", make_vec_env(lambda: gym.wrappers.TimeLimit(Deterministic(), 10), 3), **SMALL)
    kept = {}

    class Check(BaseCallback):
        def _on_step(self):
            return True

        def _on_rollout_end(self):
            buffer = self.model.rollout_buffer
            actions = np.clip(buffer.actions, -1, 1).mean(axis=-1)
            next_positions = buffer.observations[..., None, 0] + actions
            next_obs = np.stack([next_positions, np.zeros_like(next_positions)], axis=-1).astype(np.float32)
            with th.no_grad():
                values = self.model.policy.predict_values(th.as_tensor(next_obs.reshape(-1, 2))).numpy().reshape(actions.shape)
            kept["difference"] = np.abs(values - buffer.next_values).max()
            kept["rewards"] = np.abs(next_positions - buffer.rewards).max()

    model.learn(96, callback=Check())
    assert kept["difference"] < 1e-5 and kept["rewards"] < 1e-5


def test_branching_does_not_change_the_committed_trajectory():
    """The same policy meets the same observations with one and with four samples, as the samples come last."""

    class Record(BaseCallback):
        def __init__(self):
            super().__init__()
            self.trajectory = []

        def _on_step(self):
            self.trajectory.append((self.locals["new_obs"].copy(), self.locals["rewards"].copy()))
            return True

    def trajectory(n_samples):
        actions = np.random.default_rng(0).normal(size=(64, 2, 1, 2)).astype(np.float32)
        vec_env = make_vec_env(limited(), 2, seed=1)
        model = HybridGRPO("MlpPolicy", vec_env, n_samples=n_samples, branch_horizon=1, n_steps=64, batch_size=16, seed=0)
        steps = iter(actions)
        # The committed action is fixed, the others are the policy's
        model.policy.get_distribution = lambda obs: _Fixed(next(steps), n_samples)
        record = Record()
        model.learn(128, callback=record)
        return record.trajectory

    for (obs, reward), (expected_obs, expected_reward) in zip(trajectory(4), trajectory(1), strict=True):
        np.testing.assert_array_equal(obs, expected_obs)
        np.testing.assert_array_equal(reward, expected_reward)


class _Fixed:
    def __init__(self, committed, n_samples):
        self.samples = [th.as_tensor(committed[:, 0])] + [th.randn(2, 2) for _ in range(n_samples - 1)]

    def sample(self):
        return self.samples.pop(0)


def test_subproc_vec_env_equals_dummy_vec_env():
    parameters = []
    for vec_env_cls in (None, SubprocVecEnv):
        vec_env = make_vec_env("Pendulum-v1", 2, seed=0, vec_env_cls=vec_env_cls)
        model = HybridGRPO("MlpPolicy", vec_env, reward_transform="identity", **SMALL).learn(128)
        parameters.append(copied(model))
        vec_env.close()
    for name, value in parameters[0].items():
        th.testing.assert_close(value, parameters[1][name], rtol=1e-4, atol=1e-5)


def test_target_kl_stops_the_policy_and_not_the_critic():
    """From the stop on the actor stands still, so that it is the same after 10 and 20 epochs, while the critic moves on."""
    models = []
    for n_epochs in (10, 20):
        settings = {**SMALL, "n_epochs": n_epochs, "learning_rate": 1e-2, "target_kl": 1e-4}
        models.append(HybridGRPO("MlpPolicy", make_vec_env(limited(), 1, seed=0), **settings).learn(32))
    short, long = (model.policy.state_dict() for model in models)
    assert 1 <= models[0].logger.name_to_value["train/policy_updates_stopped_at"] < 20
    assert models[1]._n_updates == 20
    for name in short:
        assert th.equal(short[name], long[name]) == ("value" not in name), name


class Trunk(th.nn.Module):
    """An actor and a critic that share all but their last layers."""

    def __init__(self, n_features):
        super().__init__()
        self.latent_dim_pi = self.latent_dim_vf = 16
        self.layers = th.nn.Sequential(th.nn.Linear(n_features, 16), th.nn.Tanh())

    def forward(self, features):
        return self.layers(features), self.layers(features)

    def forward_actor(self, features):
        return self.layers(features)

    forward_critic = forward_actor


class TrunkPolicy(ActorCriticPolicy):
    def _build_mlp_extractor(self):
        self.mlp_extractor = Trunk(self.features_dim)


def test_after_the_stop_a_shared_trunk_stands_still(monkeypatch):
    at_stop, predict_values = [], Evaluator.predict_values

    def watched(evaluator, *arguments):
        at_stop.append(copy.deepcopy(evaluator.policy.state_dict()))
        return predict_values(evaluator, *arguments)

    monkeypatch.setattr(Evaluator, "predict_values", watched)
    settings = {**SMALL, "learning_rate": 1e-2, "target_kl": 1e-9, "refit_critic": False, "n_epochs": 9}
    model = HybridGRPO(TrunkPolicy, make_vec_env(limited(), 1, seed=0), **settings).learn(32)
    assert len(at_stop) > 9
    for name, value in model.policy.state_dict().items():
        assert th.equal(value, at_stop[0][name]) == ("value" not in name), name


def test_what_decides_about_branches_follows_the_seed():
    def weights(**kwargs):
        set_random_seed(3)
        env = make_vec_env(limited(), 1, seed=0)
        model = HybridGRPO("MlpPolicy", env, **{**SMALL, "seed": None, "branch_horizon": 1, **kwargs})
        model.set_random_seed(5)
        return th.cat([parameter.flatten() for parameter in model.learn(64).policy.parameters()])

    for kwargs in {"branch_fraction": 0.5}, {"action_selection": "softmax"}:
        assert th.equal(weights(**kwargs), weights(**kwargs)), kwargs


def test_after_the_stop_shared_features_and_actor_stand_still():
    model = HybridGRPO("CnnPolicy", limited(observation="image")(), **SMALL)
    obs = th.as_tensor(model.env.reset())
    model.policy.optimizer.zero_grad()
    predict_values_only(model.policy, obs).sum().backward()
    with_gradient = {name for name, parameter in model.policy.named_parameters() if parameter.grad is not None}
    assert with_gradient == {"value_net.weight", "value_net.bias"}


def test_logged_metrics():
    model = HybridGRPO("MlpPolicy", make_vec_env("CartPole-v1", 2), **SMALL)
    logged = {}

    class Keep(BaseCallback):
        def _on_step(self):
            return True

        def _on_rollout_start(self):
            logged.update(self.logger.name_to_value)

    model.learn(192, callback=Keep(), log_interval=100)
    logged.update(model.logger.name_to_value)
    assert 192 < logged["time/simulator_steps"] <= 192 * (1 + 8)
    assert logged["rollout/group_std"] > 0
    assert np.isfinite(logged["rollout/averaged_advantage_mean"])
    assert logged["train/policy_updates_stopped_at"] == 2 * 4
    for name in (
        "approx_kl",
        "clip_fraction",
        "clip_range",
        "entropy_loss",
        "explained_variance",
        "learning_rate",
        "loss",
        "n_updates",
        "policy_gradient_loss",
        "value_loss",
    ):
        assert f"train/{name}" in logged, name


@pytest.mark.parametrize("horizon", [1, 3])
def test_no_action_is_branched_twice_at_a_state(horizon):
    """With two actions there is at most one to branch, and what is shared is what branching would have given."""
    counter = far_library().connect()

    class Counting(Walk):
        def step(self, action):
            far_library().step(counter)
            return super().step(action)

    def learn():
        vec_env = make_vec_env(lambda: gym.wrappers.TimeLimit(Counting(action_space=spaces.Discrete(2)), 20), 2, seed=0)
        model = HybridGRPO("MlpPolicy", vec_env, n_samples=8, branch_horizon=horizon, action_sampling="iid", **SMALL)
        far_library().worlds[counter] = 0
        return model.learn(64)

    model = learn()
    assert far_library().worlds[counter] == model.num_simulator_steps <= 64 * (1 + horizon)
    with pytest.MonkeyPatch.context() as patch:
        everything = np.arange(8)
        patch.setattr("sb3_hybrid_grpo.rollout.action_sampling.first_occurrences", lambda a: np.tile(everything, (len(a), 1)))
        straightforward = learn()
    assert straightforward.num_simulator_steps > 64 * 8 - 40 * horizon
    if horizon == 1:  # else the committed path, which may be shared, ends with the rollout
        for name, value in model.policy.state_dict().items():
            th.testing.assert_close(value, straightforward.policy.state_dict()[name], rtol=1e-3, atol=1e-5)


def test_callback_that_stops_training():
    model = HybridGRPO("MlpPolicy", limited(max_episode_steps=5)(), **SMALL)
    model.learn(10_000, callback=StopTrainingOnMaxEpisodes(max_episodes=2))
    assert model.num_timesteps <= 10


def test_same_seed_same_result_other_seed_other_result():
    def actions(seed):
        model = HybridGRPO("MlpPolicy", make_vec_env(limited(), 2, seed=seed), **{**SMALL, "seed": seed}).learn(128)
        return np.array([model.predict(np.array([x, 0.1], dtype=np.float32), deterministic=True)[0] for x in range(4)])

    np.testing.assert_array_equal(actions(1), actions(1))
    assert np.abs(actions(1) - actions(2)).max() > 1e-6


def test_set_env_branches_the_new_environment():
    model = HybridGRPO("MlpPolicy", limited()(), n_samples=4, branch_horizon=1, **SMALL).learn(32)
    counter = far_library().connect()

    class Counting(Walk):
        def step(self, action):
            far_library().step(counter)
            return super().step(action)

    model.set_env(gym.wrappers.TimeLimit(Counting(), 20))
    far_library().worlds[counter] = 0
    model.learn(32)
    assert far_library().worlds[counter] == 32 * 4


def test_refused_environment_leaves_the_model_with_its_own():
    class Generating(Walk):
        def __init__(self):
            super().__init__()
            self.numbers = (number for number in ())

    model = HybridGRPO("MlpPolicy", limited()(), n_samples=4, branch_horizon=1, brancher="snapshot", **SMALL)
    env, brancher = model.env, model._brancher
    with pytest.raises(UnbranchableEnvError, match="generator"):
        model.set_env(Generating())
    assert model.env is env and model._brancher is brancher
    assert model.learn(32).num_simulator_steps == 128


def test_vec_normalize_rewards_reach_the_samples_normalised():
    vec_env = VecNormalize(make_vec_env("Pendulum-v1", 1, seed=0), clip_reward=1e-3)
    model = HybridGRPO("MlpPolicy", vec_env, **SMALL)
    model.learn(32)
    assert np.abs(model.rollout_buffer.rewards).max() <= 1e-3 + 1e-9


def test_grpo_never_trains_its_critic():
    model = GRPO("MlpPolicy", limited()(), **SMALL)
    before = copied(model)
    model.learn(64)
    moved = changed(before, model)
    assert moved and not any("value" in name for name in moved)
    assert "train/value_loss" not in model.logger.name_to_value


@pytest.mark.parametrize("policy", ["MlpPolicy", SharedLayerPolicy])
def test_large_returns_leave_the_actor_its_gradient(policy):
    moved = {}
    for limit in (None, 0.5):
        env = gym.wrappers.TransformReward(gym.make("Pendulum-v1"), lambda reward: 1e4 * reward)
        model = HybridGRPO(
            policy, env, n_steps=256, n_epochs=2, reward_transform="identity", max_actor_grad_norm=limit, seed=0
        )
        model.learn(256, log_interval=None)
        moved[limit] = model.logger.name_to_value["train/approx_kl"]
    assert moved[0.5] > 20 * moved[None]


def test_limit_of_the_actors_gradient():
    """With plain gradient descent a step is as long as the gradient."""
    lengths = {}
    for limit in (1e-2, 1e-3):
        settings = {"optimizer_class": th.optim.SGD}
        model = HybridGRPO(
            "MlpPolicy",
            Walk(),
            n_steps=64,
            n_epochs=1,
            learning_rate=1.0,
            max_actor_grad_norm=limit,
            seed=0,
            policy_kwargs=settings,
        )
        before = copied(model)
        model.learn(64)
        steps = [value - before[name] for name, value in model.policy.state_dict().items() if "value_net" not in name]
        lengths[limit] = float(th.cat([step.flatten() for step in steps]).norm())
    assert lengths[1e-2] == pytest.approx(1e-2, rel=1e-3) and lengths[1e-3] == pytest.approx(1e-3, rel=1e-3)
