"""The fast actor against the straightforward one."""

import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.torch_layers import FlattenExtractor

from sb3_hybrid_grpo.policies.actors import Actor, MlpActor, make_actor
from sb3_hybrid_grpo.policies.sampling import draw_noise

OBS = spaces.Box(-1, 1, (3,))
PLAIN = [
    (OBS, spaces.Box(-1, 1, (2,)), {}),
    (OBS, spaces.Box(-1, 0.5, (2, 4)), {"activation_fn": th.nn.ReLU}),
    (spaces.Box(-1, 1, (2, 3), np.float64), spaces.Discrete(3), {}),
    (OBS, spaces.Box(-1, 1, (2,)), {"net_arch": []}),
    (OBS, spaces.Discrete(2), {"net_arch": {"pi": [8], "vf": [4]}, "share_features_extractor": False}),
]


def make_policy(obs_space, action_space, **kwargs):
    th.manual_seed(0)
    return ActorCriticPolicy(obs_space, action_space, lambda _: 1e-3, ortho_init=False, **kwargs)


def observations(space, n_states):
    return np.random.default_rng(0).normal(size=(n_states, *space.shape)).astype(space.dtype)


@pytest.mark.parametrize("obs_space, action_space, kwargs", PLAIN, ids=str)
@pytest.mark.parametrize("n_states", [1, 5])
def test_equal_to_the_straightforward_path(obs_space, action_space, kwargs, n_states):
    policy = make_policy(obs_space, action_space, **kwargs)
    fast, straightforward = make_actor(policy), Actor(policy)
    assert type(fast) is MlpActor
    obs = observations(obs_space, n_states)
    th.manual_seed(1)
    expected = straightforward.sample(obs, 1).actions
    th.manual_seed(1)
    actions = fast.sample(obs, 1).actions
    assert actions.shape == expected.shape and actions.dtype == expected.dtype
    np.testing.assert_allclose(actions, expected, rtol=1e-5, atol=1e-6)

    noise = draw_noise(policy.action_dist, n_states)
    np.testing.assert_allclose(fast.act(obs, noise), straightforward.act(obs, noise), rtol=1e-5, atol=1e-6)
    committed = [actor.sample(obs, 3, noise).actions[:, 0] for actor in (fast, straightforward)]
    np.testing.assert_allclose(*committed, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("obs_space, action_space, kwargs", PLAIN[:3], ids=str)
def test_samples_follow_the_policy(obs_space, action_space, kwargs):
    policy = make_policy(obs_space, action_space, **kwargs)
    obs = observations(obs_space, 1)
    fast, reference = (actor.sample(obs, 20_000).actions[0] for actor in (make_actor(policy), Actor(policy)))
    np.testing.assert_allclose(fast.mean(axis=0), reference.mean(axis=0), atol=0.05)
    np.testing.assert_allclose(fast.std(axis=0), reference.std(axis=0), atol=0.05)


class OwnDistribution(ActorCriticPolicy):
    def get_distribution(self, obs):
        return super().get_distribution(obs)


class WithoutBias(ActorCriticPolicy):
    def _build(self, lr_schedule):
        super()._build(lr_schedule)
        self.action_net = th.nn.Linear(self.mlp_extractor.latent_dim_pi, 2, bias=False)


class OwnExtractor(FlattenExtractor):
    def forward(self, observations):
        return 2 * super().forward(observations)


@pytest.mark.parametrize(
    "policy",
    [
        OwnDistribution(OBS, spaces.Discrete(2), lambda _: 1e-3),
        WithoutBias(OBS, spaces.Discrete(2), lambda _: 1e-3),
        make_policy(OBS, spaces.Discrete(2), features_extractor_class=OwnExtractor),
        make_policy(OBS, spaces.Discrete(2), activation_fn=th.nn.ELU),
        make_policy(OBS, spaces.Box(-1, 1, (2,)), use_sde=True),
        make_policy(OBS, spaces.MultiBinary(2)),
        make_policy(spaces.Discrete(3), spaces.Discrete(2)),
    ],
    ids=["method", "no bias", "extractor", "activation", "gsde", "multibinary", "discrete"],
)
def test_what_is_not_plain_takes_the_straightforward_path(policy):
    assert type(make_actor(policy)) is Actor


def test_method_replaced_on_the_instance_is_not_plain():
    policy = make_policy(OBS, spaces.Discrete(2))
    policy.get_distribution = lambda obs: None
    assert type(make_actor(policy)) is Actor


def test_hooks_of_the_user_are_called():
    policy = make_policy(*PLAIN[0][:2])
    hook = policy.mlp_extractor.policy_net[0].register_forward_hook(lambda module, inputs, output: 2 * output)
    assert type(make_actor(policy)) is Actor
    hook.remove()
    assert type(make_actor(policy)) is MlpActor
