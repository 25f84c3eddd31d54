"""Every mistake a user can make has its own exception, and nothing is lost."""

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3.common.buffers import RolloutBuffer
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.vec_env import SubprocVecEnv

from sb3_hybrid_grpo import (
    GRPO,
    BranchError,
    DivergedPolicyError,
    HybridGRPO,
    InvalidArgumentError,
    InvalidOutcomeError,
    RewardTransformError,
    UnbranchableEnvError,
)
from sb3_hybrid_grpo.branching import make_brancher
from tests.envs import Walk, limited

SMALL = {"n_steps": 32, "batch_size": 16, "n_epochs": 2, "seed": 0, "device": "cpu"}


@pytest.mark.parametrize(
    "arguments, error, message",
    [
        ({"advantage": "gae"}, InvalidArgumentError, "'gae': choose one of 'hybrid', 'per_action', 'averaged'"),
        ({"advantage": "group_normalized"}, InvalidArgumentError, "choose one of 'hybrid', 'per_action', 'averaged'\\.$"),
        ({"reward_transform": "log"}, InvalidArgumentError, "'identity', 'tanh', 'scaled_tanh', 'normalized', 'zscore'"),
        ({"reward_transform": "tanh", "reward_transform_kwargs": {"x": 1}}, InvalidArgumentError, "reward_transform_kwargs"),
        ({"reward_transform": np.mean}, RewardTransformError, "shape"),
        ({"n_samples": 0}, InvalidArgumentError, "n_samples.*at least 1.*0"),
        ({"n_samples": 2.5}, InvalidArgumentError, "n_samples.*integer.*2.5"),
        ({"n_samples": "4"}, InvalidArgumentError, "n_samples.*'4'"),
        ({"tail_coef": float("nan")}, InvalidArgumentError, "tail_coef"),
        ({"tail_coef": True}, InvalidArgumentError, "tail_coef.*not True"),
        ({"trust_region": True}, InvalidArgumentError, "trust_region.*above 0, not True"),
        ({"trust_region": lambda progress: 1 - progress}, InvalidArgumentError, r"trust_region\(1.0\)`.*above 0, not 0.0"),
        ({"branch_horizon": 0}, InvalidArgumentError, "branch_horizon.*at least 1"),
        ({"branch_lambda": 1.1}, InvalidArgumentError, "branch_lambda.*at least 0 and at most 1, not 1.1"),
        ({"branch_lambda": "0.9"}, InvalidArgumentError, "branch_lambda.*not '0.9'"),
        ({"branch_fraction": None}, InvalidArgumentError, "branch_fraction.*not None"),
        ({"desired_kl": 0.1, "learning_rate_bounds": 1e-3}, InvalidArgumentError, "two numbers.*not 0.001"),
        ({"n_epochs": 0}, InvalidArgumentError, "n_epochs.*at least 1"),
        ({"reward_transform": np.tanh, "reward_transform_kwargs": {"scale": 3}}, InvalidArgumentError, "named"),
        ({"branch_fraction": 0.0}, InvalidArgumentError, "branch_fraction.*above 0 and at most 1"),
        ({"clip_range_vf": -0.1}, AssertionError, "clip_range_vf"),
        ({"brancher": "magic"}, InvalidArgumentError, "'magic': choose one of 'auto'"),
        ({"policy_kwargs": {"squash_output": True}}, InvalidArgumentError, "squash_output.*set use_sde=True"),
        ({"rollout_buffer_class": type("Mine", (RolloutBuffer,), {})}, InvalidArgumentError, "MultiSampleRolloutBuffer"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_arguments(arguments, error, message):
    with pytest.raises(error, match=message):
        HybridGRPO("MlpPolicy", limited()(), **{**SMALL, **arguments})


def test_unsupported_action_space():
    class TupleActions(Walk):
        def __init__(self):
            super().__init__(action_space=spaces.Tuple((spaces.Discrete(2), spaces.Discrete(2))))

    with pytest.raises(AssertionError, match="only supports"):
        HybridGRPO("MlpPolicy", TupleActions(), **SMALL)


def test_unbranchable_environment_is_named_with_the_ways_out(tmp_path):
    class OpensAFile(Walk):
        def __init__(self):
            super().__init__()
            self.log = open(tmp_path / "log.txt", "w")

    env = OpensAFile()
    with pytest.raises(UnbranchableEnvError, match=r"(?s)OpensAFile.*log.*register_codec.*fork.*n_samples=1"):
        HybridGRPO("MlpPolicy", env, **SMALL)
    assert not issubclass(UnbranchableEnvError, ValueError | AssertionError)
    HybridGRPO("MlpPolicy", env, n_samples=1, **SMALL).learn(32)
    env.log.close()


class Faulty(Walk):
    """Once armed, returns something bad when the first component of an action says so."""

    def __init__(self, fault, threshold=0.9):
        super().__init__()
        self.fault, self.threshold, self.armed = fault, threshold, False

    def arm(self):
        self.armed = True

    def step(self, action):
        obs, reward, *rest = super().step(action)
        if self.armed and action[0] > self.threshold:
            if self.fault == "reward":
                reward = float("nan")
            elif self.fault == "observation":
                obs = np.full_like(obs, np.nan)
            elif self.fault == "raise":
                raise ArithmeticError("the simulation exploded")
        return obs, reward, *rest


def as_they_come(venv):
    """Follow branches before the committed step, and not late."""
    brancher = make_brancher("auto", venv)
    brancher.can_remember = False
    return brancher


@pytest.mark.parametrize("fault", ["reward", "observation"])
@pytest.mark.parametrize(
    "threshold, horizon, brancher, where",
    [
        (-2, 8, "auto", "committed step"),
        (-2, 1, as_they_come, "committed step"),
        (-2, 8, as_they_come, "branch"),
        (0.9, 1, "auto", "committed step|branch"),
    ],
)
def test_environment_that_returns_nan(fault, threshold, horizon, brancher, where):
    vec_env = make_vec_env(lambda: gym.wrappers.TimeLimit(Faulty(fault, threshold), 20), 2)
    model = HybridGRPO("MlpPolicy", vec_env, branch_horizon=horizon, brancher=brancher, **SMALL)
    model.env.env_method("arm")
    before = {name: value.clone() for name, value in model.policy.state_dict().items()}
    with pytest.raises(InvalidOutcomeError, match=f"Environment [01] returned NaN or infinity as {fault} in a ({where})"):
        model.learn(1000)
    assert all(th.equal(before[name], value) for name, value in model.policy.state_dict().items())


@pytest.mark.parametrize("vec_env_cls", [None, SubprocVecEnv])
def test_environment_that_raises_in_a_branch(vec_env_cls):
    """The error says which environment raised what for which action; the run goes on if the user catches it."""
    vec_env = make_vec_env(lambda: gym.wrappers.TimeLimit(Faulty("raise", 0.5), 20), 2, vec_env_cls=vec_env_cls)
    model = HybridGRPO("MlpPolicy", vec_env, **SMALL)
    model.env.reset()
    model.env.env_method("arm")
    actions = np.full((2, 3, 2), -1.0)
    actions[1, 1] = 1.0

    def branch(actions):
        return model._brancher.open(actions, np.ones(actions.shape[:2], dtype=bool), horizon=1)

    expected = branch(np.full((2, 1, 2), -1.0))
    with pytest.raises(BranchError, match=r"(?s)[Ee]nvironment .*ArithmeticError.*the simulation exploded"):
        branch(actions)
    again = branch(np.full((2, 1, 2), -1.0))
    np.testing.assert_array_equal(again.observations, expected.observations)
    vec_env.close()


def test_environment_that_raises_at_once():
    env = Faulty("raise", threshold=-2)
    env.arm()
    with pytest.raises(BranchError, match=r"(?s)Faulty.*ArithmeticError.*the simulation exploded"):
        HybridGRPO("MlpPolicy", env, **SMALL)


def test_transform_that_fails_during_training_leaves_the_policy_as_it_was():
    def fails_later(rewards):
        return np.where(rewards < 0, np.nan, rewards)

    model = HybridGRPO("MlpPolicy", limited()(), reward_transform=fails_later, **SMALL)
    before = {name: value.clone() for name, value in model.policy.state_dict().items()}
    with pytest.raises(RewardTransformError, match="fails_later returned NaN"):
        model.learn(32)
    assert all(th.equal(before[name], value) for name, value in model.policy.state_dict().items())


def test_policy_of_another_kind():
    from stable_baselines3.dqn.policies import DQNPolicy

    with pytest.raises(InvalidArgumentError, match="DQNPolicy is no ActorCriticPolicy"):
        HybridGRPO(DQNPolicy, "CartPole-v1")


def test_truncated_minibatch_is_announced():
    with pytest.warns(UserWarning, match="truncated mini-batch of size 2"):
        HybridGRPO("MlpPolicy", limited()(), n_steps=32, batch_size=10)


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"branch_lambda": 7}, "branch_lambda"),
        ({"branch_fraction": -1}, "branch_fraction"),
        ({"advantage": "group_normalized"}, "choose one of 'hybrid'"),
        ({"action_selection": "nonsense"}, "choose one of 'first'"),
        ({"soft_values": True, "ent_coef": 0.0}, "`ent_coef` above 0"),
        ({"reward_transform_kwargs": {"scale": 3}}, "the name of a reward_transform"),
    ],
    ids=str,
)
def test_arguments_that_are_changed_on_loading(arguments, message, tmp_path):
    HybridGRPO("MlpPolicy", limited()(), **SMALL).save(tmp_path / "model")
    with pytest.raises(InvalidArgumentError, match=message):
        HybridGRPO.load(tmp_path / "model", env=limited()(), **arguments)


class Meddling(BaseCallback):
    """Makes the policy almost deterministic, in a method of the callback."""

    def __init__(self, method):
        super().__init__()
        setattr(self, method, self._meddle)

    def _meddle(self):
        with th.no_grad():
            self.model.policy.log_std.fill_(-5.0)
        return True

    def _on_step(self):
        return True


@pytest.mark.parametrize("n_samples", [1, 2])
def test_the_policy_that_a_callback_has_changed_acts(n_samples):
    model = HybridGRPO("MlpPolicy", limited()(), n_samples=n_samples, branch_horizon=2, **SMALL)
    model.train = lambda: None
    model.learn(32, Meddling("_on_rollout_start"))
    buffer = model.rollout_buffer
    mean, _, _ = model.policy(th.as_tensor(buffer.observations[:, 0]), deterministic=True)
    noise = buffer.actions[:, 0] - mean.detach().numpy()[:, None]
    assert 0.004 < noise.std() < 0.009
    # The density of a Gaussian with standard deviation e^-5 in two dimensions, at its own samples
    assert buffer.log_probs.mean() == pytest.approx(2 * (5 - 0.5 * np.log(2 * np.pi) - 0.5), abs=0.6)


def test_a_policy_that_changes_while_it_acts():
    model = HybridGRPO("MlpPolicy", limited()(), **SMALL)
    with pytest.raises(InvalidArgumentError, match="changed the policy in `_on_step`"):
        model.learn(32, Meddling("_on_step"))


@pytest.mark.parametrize("n_samples", [1, 2])
def test_a_policy_that_diverges(n_samples):
    model = HybridGRPO("MlpPolicy", limited()(), n_samples=n_samples, **{**SMALL, "learning_rate": 1e38})
    with pytest.raises(DivergedPolicyError, match=r"NaN or infinite after 32 steps.*learning_rate"):
        model.learn(320)


@pytest.mark.parametrize("observation", ["box", "dict"])
def test_the_last_observation_of_an_episode_that_was_cut_off(observation):
    class Broken(Walk):
        steps = 0

        def step(self, action):
            observation, *outcome = super().step(action)
            self.steps += 1
            if self.steps == 5:
                (observation["position"] if isinstance(observation, dict) else observation)[:] = np.nan
            return observation, *outcome

    policy = "MultiInputPolicy" if observation == "dict" else "MlpPolicy"
    model = HybridGRPO(policy, gym.wrappers.TimeLimit(Broken(observation=observation), 5), n_samples=1, **SMALL)
    with pytest.raises(InvalidOutcomeError, match=r"Environment 0 .* at the end of an episode that was cut off"):
        model.learn(32)


def test_an_update_that_stops_at_once():
    model = GRPO("MlpPolicy", limited()(), **{**SMALL, "target_kl": -1.0})
    model.learn(32)
    assert model.logger.name_to_value["train/policy_updates_stopped_at"] == 0


class Watching(ActorCriticPolicy):
    def get_distribution(self, obs):
        return super().get_distribution(obs)


class Shifted(ActorCriticPolicy):
    def get_distribution(self, obs):
        shifted = super().get_distribution(obs)
        return shifted.proba_distribution(shifted.distribution.mean + 3, self.log_std)


class Consistent(Shifted):
    def evaluate_actions(self, obs, actions):
        values, _, entropy = super().evaluate_actions(obs, actions)
        return values, self.get_distribution(obs).log_prob(actions), entropy


@pytest.mark.parametrize("policy_class", [Watching, Consistent])
def test_policies_that_sample_in_their_own_way(policy_class):
    HybridGRPO(policy_class, "Pendulum-v1", device="cpu")


def test_policies_that_sample_otherwise_than_they_judge():
    with pytest.raises(InvalidArgumentError, match=r"Shifted samples .* Override `_get_action_dist_from_latent` instead"):
        HybridGRPO(Shifted, "Pendulum-v1", device="cpu")
