"""Policies from ``torch.compile``."""

import pytest
import torch as th
from stable_baselines3.common.policies import ActorCriticPolicy

from sb3_hybrid_grpo import HybridGRPO
from sb3_hybrid_grpo.policies.actors import MlpActor, make_actor
from sb3_hybrid_grpo.policies.evaluators import MlpEvaluator, make_evaluator
from tests.envs import limited
from tests.policies.test_maskable import Ladder

SETTINGS = {"n_steps": 32, "batch_size": 32, "n_epochs": 2, "device": "cpu", "seed": 0}


class Compiled(th.nn.Module):
    """Behaves like what ``torch.compile`` returns, without its compiler, which takes seconds to import."""

    def __init__(self, module):
        super().__init__()
        self._orig_mod = module
        self.n_calls = 0

    def __getattr__(self, name):
        return self._modules["_orig_mod"] if name == "_orig_mod" else getattr(super().__getattr__("_orig_mod"), name)

    def forward(self, *args, **kwargs):
        self.n_calls += 1
        return self._orig_mod(*args, **kwargs)


class OwnForward(ActorCriticPolicy):
    def forward(self, obs, deterministic=False):
        return super().forward(obs, deterministic)


class OwnFeatures(ActorCriticPolicy):
    def extract_features(self, obs, features_extractor=None):
        return super().extract_features(obs, features_extractor)


@pytest.mark.parametrize(
    "policy, env, kwargs",
    [
        ("MlpPolicy", limited(), {}),
        (OwnFeatures, limited(), {}),
        (OwnForward, limited(), {"branch_horizon": 1}),
        ("MlpPolicy", limited(), {"use_sde": True}),
        ("MultiInputPolicy", limited(observation="dict"), {"ent_coef": 0.1, "soft_values": True}),
        ("MaskableMlpPolicy", Ladder, {}),
    ],
    ids=["mlp", "features", "forward", "gsde", "dict", "maskable"],
)
def test_a_compiled_policy_learns_the_same(policy, env, kwargs):
    parameters = []
    for wrap in (lambda module: module, Compiled):
        model = HybridGRPO(policy, env(), **SETTINGS, **kwargs)
        model.policy = wrap(model.policy)
        model.learn(64)
        parameters.append(dict(getattr(model.policy, "_orig_mod", model.policy).named_parameters()))
    assert (model.policy.n_calls > 0) == (policy is OwnForward)
    for name, expected in parameters[0].items():
        th.testing.assert_close(parameters[1][name], expected)


def test_compiled_policies_of_sb3_are_served_as_fast():
    model = HybridGRPO("MlpPolicy", limited()(), **SETTINGS)
    compiled = Compiled(model.policy)
    assert type(make_actor(compiled)) is MlpActor and type(make_evaluator(compiled)) is MlpEvaluator


def test_compiled_parts():
    model = HybridGRPO("MlpPolicy", limited()(), **{**SETTINGS, "n_steps": 256})
    for name in ("mlp_extractor", "action_net", "value_net"):
        setattr(model.policy, name, Compiled(getattr(model.policy, name)))
    before = model.policy.value_net.weight.clone()
    model.learn(256)
    assert model.policy.value_net.n_calls > 0 and not th.equal(model.policy.value_net.weight, before)


@pytest.mark.slow
def test_the_compiler_itself(tmp_path):
    model = HybridGRPO("MlpPolicy", limited()(), **SETTINGS)
    model.policy = th.compile(model.policy, backend="eager")
    model.learn(64)
    model.save(tmp_path / "model")
    HybridGRPO.load(tmp_path / "model", limited()()).learn(64)
