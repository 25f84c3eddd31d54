import copy
import io
import pickle
import zipfile

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from stable_baselines3 import DQN, PPO
from stable_baselines3.common.callbacks import CheckpointCallback, EvalCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.logger import configure
from stable_baselines3.common.vec_env import SubprocVecEnv, VecNormalize

from sb3_hybrid_grpo import GRPO, CheckpointError, HybridGRPO
from tests.envs import limited

SMALL = {"n_steps": 32, "batch_size": 16, "n_epochs": 2, "seed": 0, "device": "cpu"}
OBSERVATIONS = np.random.default_rng(0).normal(size=(8, 2)).astype(np.float32)


def predictions(model):
    return model.predict(OBSERVATIONS, deterministic=True)[0]


@pytest.mark.parametrize("algorithm", [HybridGRPO, GRPO])
def test_save_load(tmp_path, algorithm):
    settings = {"branch_horizon": 1} if algorithm is HybridGRPO else {}
    model = algorithm("MlpPolicy", limited()(), n_samples=3, **settings, **SMALL).learn(64)
    model.save(tmp_path / "model")
    loaded = algorithm.load(tmp_path / "model", env=limited()(), device="cpu")
    np.testing.assert_array_equal(predictions(loaded), predictions(model))
    assert loaded.n_samples == 3 and loaded.rollout_buffer.n_samples == 3
    assert (loaded.num_timesteps, loaded.num_simulator_steps, loaded._n_updates) == (64, 192, 4)
    loaded.learn(32, reset_num_timesteps=False)
    assert (loaded.num_timesteps, loaded.num_simulator_steps) == (96, 288)


def test_load_without_env_then_set_env():
    file = io.BytesIO()
    HybridGRPO("MlpPolicy", limited()(), n_samples=4, branch_horizon=1, **SMALL).save(file)
    file.seek(0)
    loaded = HybridGRPO.load(file)
    loaded.set_env(limited()())
    assert loaded.learn(32).num_simulator_steps == 128


@pytest.mark.parametrize("algorithm, policy, observation", [(PPO, "MlpPolicy", "box"), (PPO, "MultiInputPolicy", "dict")])
def test_warm_start_from_ppo(tmp_path, algorithm, policy, observation):
    ppo = algorithm(policy, limited(observation=observation)(), learning_rate=1e-3, gamma=0.9, **SMALL).learn(64)
    ppo.save(tmp_path / "ppo")
    model = HybridGRPO.load(tmp_path / "ppo", env=limited(observation=observation)(), device="cpu")
    obs = model.observation_space.sample()
    np.testing.assert_array_equal(model.predict(obs, deterministic=True)[0], ppo.predict(obs, deterministic=True)[0])
    assert (model.gamma, model.n_samples, model.num_timesteps) == (0.9, 2, 64)
    before = {name: value.clone() for name, value in model.policy.state_dict().items()}
    model.learn(32, reset_num_timesteps=False)
    assert model.num_timesteps == 96
    assert any(not th.equal(before[name], value) for name, value in model.policy.state_dict().items())


@pytest.mark.parametrize("reward_transform", ["scaled_tanh", np.tanh])
def test_ppo_loads_our_checkpoint_and_trains(tmp_path, reward_transform):
    model = HybridGRPO("MlpPolicy", limited()(), reward_transform=reward_transform, **SMALL).learn(64)
    model.save(tmp_path / "model")
    ppo = PPO.load(tmp_path / "model", env=limited()(), device="cpu")
    np.testing.assert_array_equal(predictions(ppo), predictions(model))
    assert ppo.learn(32, reset_num_timesteps=False).num_timesteps == 96


@pytest.mark.parametrize("kwargs", [{}, {"branch_fraction": 0.5}, {"action_selection": "softmax"}], ids=str)
def test_resumed_run_is_the_uninterrupted_run(tmp_path, kwargs):
    """Steps, schedules, reward-transform statistics and optimizer state go on where they stopped."""

    def make(vec_env):
        return HybridGRPO("MlpPolicy", vec_env, learning_rate=lambda progress: 1e-3 * progress, **kwargs, **SMALL)

    def go_on(model):
        model.env.seed(11)
        model.set_random_seed(11)
        model._last_obs = None
        model.learn(64, reset_num_timesteps=False)
        return model

    first = make(make_vec_env(limited(), 2, seed=0)).learn(128)
    first.save(tmp_path / "model")
    second = HybridGRPO.load(tmp_path / "model", env=make_vec_env(limited(), 2, seed=0), device="cpu")
    assert second.reward_transform.return_rms.count == first.reward_transform.return_rms.count > 0
    go_on(first), go_on(second)
    for name, value in first.policy.state_dict().items():
        th.testing.assert_close(value, second.policy.state_dict()[name], rtol=0, atol=0)
    assert first.reward_transform.return_rms.var == second.reward_transform.return_rms.var
    assert first.policy.optimizer.param_groups[0]["lr"] == second.policy.optimizer.param_groups[0]["lr"]


def test_arguments_can_be_changed_on_load(tmp_path):
    HybridGRPO("MlpPolicy", limited()(), branch_horizon=1, **SMALL).save(tmp_path / "model")
    loaded = HybridGRPO.load(tmp_path / "model", env=limited()(), n_samples=3, reward_transform="tanh")
    assert loaded.learn(32).num_simulator_steps == 96
    assert repr(loaded.reward_transform) == "Tanh"


def test_loading_into_another_number_of_environments(tmp_path):
    HybridGRPO("MlpPolicy", make_vec_env(limited(), 2), n_samples=4, branch_horizon=1, **SMALL).learn(64).save(
        tmp_path / "model"
    )
    vec_env = make_vec_env(limited(), 3, vec_env_cls=SubprocVecEnv)
    loaded = HybridGRPO.load(tmp_path / "model", env=vec_env)
    assert loaded.learn(96).num_simulator_steps == 96 * 4
    vec_env.close()


@pytest.mark.filterwarnings("ignore:rich is experimental")
def test_callbacks_checkpoint_and_synchronise(tmp_path):
    train_env = VecNormalize(make_vec_env(limited(), 2, seed=0))
    eval_env = VecNormalize(make_vec_env(limited(), 1, seed=1), training=False, norm_reward=False)
    model = HybridGRPO("MlpPolicy", train_env, **SMALL)
    evaluation = EvalCallback(
        eval_env, eval_freq=32, n_eval_episodes=2, best_model_save_path=str(tmp_path), log_path=str(tmp_path)
    )
    checkpoints = CheckpointCallback(32, str(tmp_path), save_vecnormalize=True)
    model.learn(128, callback=[evaluation, checkpoints], progress_bar=True)
    # The last evaluation was at the last committed step
    np.testing.assert_array_equal(eval_env.obs_rms.mean, train_env.obs_rms.mean)
    assert evaluation.evaluations_timesteps == [64, 128]
    best = HybridGRPO.load(tmp_path / "best_model")
    assert best.num_timesteps in (64, 128)
    assert HybridGRPO.load(tmp_path / "rl_model_64_steps").num_timesteps == 64
    assert (tmp_path / "rl_model_vecnormalize_128_steps.pkl").exists()


def test_loggers(tmp_path):
    model = HybridGRPO("MlpPolicy", limited()(), **SMALL)
    model.set_logger(configure(str(tmp_path), ["csv", "tensorboard"]))
    model.learn(64)
    model.logger.close()
    header = (tmp_path / "progress.csv").read_text().splitlines()[0].split(",")
    assert {"time/simulator_steps", "rollout/group_std", "train/policy_updates_stopped_at"} <= set(header)
    assert list(tmp_path.glob("events.out.tfevents*"))


def damaged(kind, path):
    HybridGRPO("MlpPolicy", limited()(), **SMALL).save(path)
    content = path.read_bytes()
    if kind == "truncated":
        path.write_bytes(content[: len(content) // 2])
    elif kind == "text":
        path.write_text("no zip")
    elif kind == "empty":
        path.write_bytes(b"")
    elif kind == "foreign zip":
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("readme.txt", "something else")
    elif kind == "flipped bits":
        middle = len(content) // 2
        path.write_bytes(
            content[:middle] + bytes(255 - byte for byte in content[middle : middle + 200]) + content[middle + 200 :]
        )
    elif kind == "other algorithm":
        DQN("MlpPolicy", "CartPole-v1", buffer_size=100, device="cpu").save(path)
    return path


@pytest.mark.parametrize("kind", ["truncated", "text", "empty", "foreign zip", "flipped bits", "other algorithm"])
def test_damaged_or_foreign_checkpoint(tmp_path, kind):
    path = damaged(kind, tmp_path / "model.zip")
    with pytest.raises(CheckpointError, match=r"model\.zip"):
        HybridGRPO.load(path)


@pytest.mark.parametrize("kind", ["truncated", "foreign zip"])
def test_failed_set_parameters_leaves_the_model_as_it_was(tmp_path, kind):
    model = HybridGRPO("MlpPolicy", limited()(), **SMALL).learn(32)
    before = predictions(model)
    with pytest.raises(CheckpointError):
        model.set_parameters(str(damaged(kind, tmp_path / "model.zip")))
    np.testing.assert_array_equal(predictions(model), before)


def test_parameters_that_fit_only_in_part_leave_the_model_as_it_was():
    model = HybridGRPO("MlpPolicy", limited()(), **SMALL).learn(32)
    other = HybridGRPO("MlpPolicy", limited()(), policy_kwargs={"net_arch": {"pi": [64, 64], "vf": [32]}}, **SMALL)
    before = predictions(model)
    with pytest.raises(RuntimeError, match="size mismatch"):
        model.set_parameters(other.get_parameters())
    np.testing.assert_array_equal(predictions(model), before)


@pytest.mark.parametrize("copier", [lambda obj: pickle.loads(pickle.dumps(obj)), copy.deepcopy], ids=["pickle", "deepcopy"])
@pytest.mark.parametrize("brancher", ["snapshot", "replay"])
def test_pickled_models_go_on(copier, brancher):
    """As PPO does; and the environments of the copy are branched, not those of the original."""
    model = HybridGRPO("MlpPolicy", gym.make("Pendulum-v1"), n_steps=32, batch_size=32, n_epochs=1, brancher=brancher, seed=0)
    model.learn(32)
    twin = copier(model)
    for each in (model, twin):
        th.manual_seed(0)
        each.learn(32, reset_num_timesteps=brancher == "replay")
    np.testing.assert_array_equal(model.rollout_buffer.branch_rewards, twin.rollout_buffer.branch_rewards)
    assert twin.rollout_buffer.branch_alive[..., 1, 0].all()
    for name, parameter in model.policy.state_dict().items():
        th.testing.assert_close(twin.policy.state_dict()[name], parameter)


def test_another_reward_transform_does_not_get_the_former_ones_arguments(tmp_path):
    model = HybridGRPO("MlpPolicy", limited()(), reward_transform_kwargs={"scale": 5.0}, **SMALL)
    model.save(tmp_path / "model")
    assert HybridGRPO.load(tmp_path / "model").reward_transform.scale == 5
    assert HybridGRPO.load(tmp_path / "model", reward_transform="normalized").reward_transform.scale == 10
    assert repr(HybridGRPO.load(tmp_path / "model", reward_transform="tanh").reward_transform) == "Tanh"
