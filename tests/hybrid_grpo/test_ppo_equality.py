"""With one sample per state Hybrid GRPO is PPO: same actions, same parameters."""

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from stable_baselines3 import PPO
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.vec_env import VecNormalize

from sb3_hybrid_grpo import HybridGRPO
from tests.envs import limited

PPO_SETTINGS = {"n_samples": 1, "reward_transform": "identity", "refit_critic": False, "max_actor_grad_norm": None}
N_ITERATIONS = 3


class RecordActions(BaseCallback):
    def __init__(self):
        super().__init__()
        self.actions = []

    def _on_step(self):
        self.actions.append(self.locals["clipped_actions"].reshape(self.training_env.num_envs, -1).copy())
        return True


@pytest.mark.parametrize(
    "policy, env, n_envs, wrapper, n_steps, kwargs",
    [
        ("MlpPolicy", "CartPole-v1", 1, None, 256, {}),
        ("MlpPolicy", "Pendulum-v1", 4, VecNormalize, 128, {}),
        ("MultiInputPolicy", limited(observation="dict"), 2, None, 128, {}),
        (
            "CnnPolicy",
            limited(observation="image"),
            1,
            None,
            64,
            {"policy_kwargs": {"features_extractor_kwargs": {"features_dim": 16}}},
        ),
        ("MlpPolicy", limited(action_space=gym.spaces.MultiDiscrete([2, 3])), 2, None, 64, {}),
        ("MlpPolicy", limited(action_space=gym.spaces.MultiBinary(3)), 2, None, 64, {}),
        ("MlpPolicy", "Pendulum-v1", 1, None, 128, {"use_sde": True, "sde_sample_freq": 4}),
        ("MlpPolicy", "Pendulum-v1", 2, None, 128, {"use_sde": True}),
        ("MlpPolicy", "Pendulum-v1", 2, None, 64, {"use_sde": True, "policy_kwargs": {"squash_output": True}}),
        (
            "MlpPolicy",
            limited(),
            2,
            None,
            128,
            {
                "normalize_advantage": False,
                "clip_range_vf": 0.2,
                "ent_coef": 0.01,
                "policy_kwargs": {"share_features_extractor": False},
            },
        ),
    ],
    ids=[
        "cartpole",
        "pendulum-vecnormalize",
        "dict",
        "image",
        "multidiscrete",
        "multibinary",
        "gsde-1",
        "gsde-2",
        "squashed",
        "options",
    ],
)
def test_one_sample_is_ppo(policy, env, n_envs, wrapper, n_steps, kwargs):
    models, actions = [], []
    for algorithm, settings in ((PPO, {}), (HybridGRPO, PPO_SETTINGS)):
        vec_env = make_vec_env(env, n_envs, seed=3)
        vec_env = wrapper(vec_env) if wrapper else vec_env
        model = algorithm(policy, vec_env, n_steps=n_steps, batch_size=64, seed=5, device="cpu", **kwargs, **settings)
        recorder = RecordActions()
        model.learn(N_ITERATIONS * n_steps * n_envs, callback=recorder)
        models.append(model)
        actions.append(np.array(recorder.actions))

    np.testing.assert_allclose(actions[0], actions[1], rtol=1e-3, atol=1e-3)
    assert models[0]._n_updates == models[1]._n_updates == N_ITERATIONS * 10
    expected = models[0].policy.state_dict()
    for name, parameter in models[1].policy.state_dict().items():
        th.testing.assert_close(parameter, expected[name], rtol=1e-3, atol=1e-4, msg=lambda msg, name=name: f"{name}: {msg}")


class OneTrunk(ActorCriticPolicy):
    def _build_mlp_extractor(self):
        super()._build_mlp_extractor()
        self.mlp_extractor.value_net = self.mlp_extractor.policy_net


class Masked(th.nn.Module):
    """Has logits of which the last is minus infinity."""

    def __init__(self, layer):
        super().__init__()
        self.layer = layer
        self.register_buffer("mask", th.tensor([0.0] * (layer.out_features - 1) + [-th.inf]))

    def forward(self, latent):
        return self.layer(latent) + self.mask


class Rebinding(th.optim.SGD):
    """Gives parameters other memory in each step, and remembers the gradients of the one before."""

    def step(self, closure=None):
        for group in self.param_groups:
            for parameter in group["params"]:
                former = self.state[parameter].get("last", 0.0)
                parameter.data = parameter.data - group["lr"] * (parameter.grad + 0.5 * former)
                self.state[parameter]["last"] = parameter.grad


def mask_last_action(policy):
    policy.action_net = Masked(policy.action_net)


def hold_an_action(policy):
    policy.action_net.weight.register_hook(lambda gradient: gradient * th.tensor([[1.0], [0.0]]))


@pytest.mark.parametrize(
    ("policy", "kwargs", "change"),
    [
        (OneTrunk, {}, None),
        ("MlpPolicy", {}, hold_an_action),
        ("MlpPolicy", {"policy_kwargs": {"optimizer_class": Rebinding}, "learning_rate": 0.01}, None),
        ("MlpPolicy", {"ent_coef": 0.01}, mask_last_action),
    ],
    ids=["one trunk", "hook of a parameter", "optimizer of one's own", "logits of minus infinity"],
)
def test_one_sample_is_ppo_with_what_users_change_in_a_policy(policy, kwargs, change):
    policies = []
    for algorithm, settings in ((PPO, {}), (HybridGRPO, PPO_SETTINGS)):
        n_actions = 3 if change is mask_last_action else 2
        env = make_vec_env(limited(action_space=gym.spaces.Discrete(n_actions)), 1, seed=3)
        model = algorithm(policy, env, n_steps=64, batch_size=32, n_epochs=4, seed=5, device="cpu", **kwargs, **settings)
        if change is not None:
            change(model.policy)
        policies.append(model.learn(128).policy.state_dict())
    for name, parameter in policies[1].items():
        th.testing.assert_close(
            parameter, policies[0][name], rtol=1e-4, atol=1e-5, msg=lambda msg, name=name: f"{name}: {msg}"
        )


def test_more_samples_are_not_ppo():
    """The comparison above can fail: with two samples the parameters differ."""
    models = [
        HybridGRPO(
            "MlpPolicy", "CartPole-v1", n_steps=128, seed=0, **{**PPO_SETTINGS, "n_samples": n}, action_sampling="iid"
        ).learn(256)
        for n in (1, 2)
    ]
    first, second = (model.policy.state_dict()["action_net.weight"] for model in models)
    assert (first - second).abs().max() > 1e-3
