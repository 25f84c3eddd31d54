"""The entropy bonus inside the value-boosted estimates."""

import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.policies import ActorCriticPolicy

from sb3_hybrid_grpo import HybridGRPO, InvalidArgumentError
from sb3_hybrid_grpo.estimation.estimates import soft_rewards, without_rounding
from sb3_hybrid_grpo.rollout.values import DeferredEntropies
from tests.envs import Walk
from tests.policies.test_maskable import Ladder


def test_soft_rewards():
    rewards = np.array([[[[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]]]])
    next_entropies = np.array([[[[0.1, 0.2, 9.0], [0.3, 0.4, 9.0]]]])
    soft = soft_rewards(rewards, np.array([[0.5]]), next_entropies, ent_coef=10.0)
    np.testing.assert_allclose(soft, [[[[6.0, 3.0, 5.0], [9.0, 8.0, 10.0]]]])


class Heedless(Walk):
    """Does the same whatever it is told."""

    def step(self, action):
        return super().step(0)


def test_rounding_of_entropies_tells_no_actions_apart():
    model = HybridGRPO(
        "MlpPolicy", make_vec_env(lambda: Heedless(action_space=spaces.Discrete(4)), 2), n_steps=64, n_samples=3,
        branch_horizon=4, ent_coef=0.1, n_epochs=1, reward_transform="identity", soft_values=True, action_sampling="iid",
        learning_rate=0.0, seed=0, device="cpu", policy_kwargs={"ortho_init": False},
    )  # fmt: skip
    model.learn(128)
    assert model.rollout_buffer.branched.all() and model.rollout_buffer.entropies.std() > 0
    assert not model.rollout_buffer.advantages.any()


def test_estimates_that_differ_by_rounding():
    estimates = np.array([[1.0, 1.0000001, 1.0], [1.0, 1.001, 1.0]])
    assert without_rounding(estimates, 1e-6).tolist() == [[1.0, 1.0, 1.0], [1.0, 1.001, 1.0]]
    assert without_rounding(estimates, 0.0).tolist() == estimates.tolist()


@pytest.mark.parametrize("space", [spaces.Discrete(4), spaces.Box(-1, 1, (2,))], ids=["discrete", "box"])
def test_entropies_are_those_of_the_policy(space, monkeypatch):
    written = []
    write = DeferredEntropies.write

    def record(self, observations, destination, mask):
        write(self, observations, destination, mask)
        written.append((observations.copy(), destination, mask))

    monkeypatch.setattr(DeferredEntropies, "write", record)
    model = HybridGRPO(
        "MlpPolicy", Walk(action_space=space), n_steps=64, n_samples=3, branch_horizon=3, gamma=0.0, ent_coef=0.5, n_epochs=1,
        learning_rate=0.0, reward_transform="identity", refit_critic=False, soft_values=True, action_sampling="iid", seed=0,
        policy_kwargs={"ortho_init": False}, device="cpu",
    )  # fmt: skip
    model.learn(64)
    buffer = model.rollout_buffer

    def entropies(observations):
        with th.no_grad():
            return model.policy.get_distribution(th.as_tensor(observations)).entropy().numpy()

    np.testing.assert_allclose(buffer.entropies[:, 0], entropies(buffer.observations.reshape(64, 2)), rtol=1e-4)
    assert len(written) >= 3
    for observations, destination, mask in written:
        np.testing.assert_allclose(destination[mask], entropies(observations), rtol=1e-4)
    # Without a future the return is the reward and the bonus of the state itself.
    expected = buffer.rewards[:, 0, 0] + 0.5 * buffer.entropies[:, 0]
    np.testing.assert_allclose(buffer.returns.reshape(64), expected, rtol=1e-4)


def test_where_all_states_are_alike_actions_are_not_worth_more():
    """The entropy of a Gaussian policy does not depend on the state, and a critic of zero sees K steps only."""
    advantages = []
    for soft_values in (False, True):
        model = HybridGRPO(
            "MlpPolicy", Walk(), n_steps=64, n_samples=3, branch_horizon=1, ent_coef=0.5, n_epochs=1, learning_rate=0.0,
            advantage="per_action", soft_values=soft_values, seed=0,
        )  # fmt: skip
        advantages.append(model.learn(64).rollout_buffer.advantages)
    np.testing.assert_allclose(*advantages, atol=1e-5)


class OwnForward(ActorCriticPolicy):
    def forward(self, obs, deterministic=False):
        return super().forward(obs, deterministic)


@pytest.mark.parametrize(
    "policy, env, kwargs, message",
    [
        ("MlpPolicy", Walk, {"ent_coef": 0.0}, "needs an `ent_coef` above 0"),
        (OwnForward, Walk, {"branch_horizon": 1}, "OwnForward samples in a `forward`"),
        ("MlpPolicy", Walk, {"use_sde": True, "policy_kwargs": {"squash_output": True}}, "squashed"),
        ("MaskableMlpPolicy", Ladder, {}, "branch_horizon=1"),
    ],
)
def test_refusals(policy, env, kwargs, message):
    with pytest.raises(InvalidArgumentError, match=message):
        HybridGRPO(policy, env(), soft_values=True, **{"ent_coef": 0.01, **kwargs})


def test_masked_entropies():
    model = HybridGRPO(
        "MaskableMlpPolicy", Ladder(), n_steps=64, branch_horizon=1, ent_coef=0.1, soft_values=True, seed=0, n_epochs=1
    )
    model.learn(64)
    n_valid = model.rollout_buffer.action_masks.sum(axis=-1)
    entropies = model.rollout_buffer.entropies.ravel()
    assert (entropies <= np.log(n_valid) + 1e-5).all()
    assert (entropies[n_valid > 1] > 0.1).all()


@pytest.mark.parametrize("name, value", [("ent_coef", 0.02), ("ent_coef", 0.0), ("branch_lambda", 0.5), ("tail_coef", 0.3)])
def test_what_a_callback_changes_holds_from_then_on(name, value):
    """Two models: one made with the value, one that is given it after its first rollout."""
    settings = {"ent_coef": 0.5, "branch_lambda": 1.0, "tail_coef": 0.0}
    advantages = []
    for is_late in (True, False):
        model = HybridGRPO(
            "MlpPolicy", Walk(action_space=spaces.Discrete(4)), n_steps=32, batch_size=32, n_samples=3, branch_horizon=3,
            n_epochs=1, learning_rate=0.0, refit_critic=False, soft_values=True, seed=0,
            **{**settings, name: settings[name] if is_late else value or 1e-30},
        )  # fmt: skip
        changed = []

        def change(locals_, globals_, model=model, is_late=is_late, changed=changed):
            if is_late and model.num_timesteps > 32 and not changed:
                changed.append(setattr(model, name, value))
            return True

        model.learn(64, callback=change)
        advantages.append(model.rollout_buffer.advantages)
    np.testing.assert_allclose(*advantages, atol=1e-5)


def test_a_setting_that_the_user_chose_for_the_buffer_stays():
    kwargs = {"branch_lambda": 0.25, "tail_coef": 0.5}
    model = HybridGRPO("MlpPolicy", Walk(), n_steps=32, batch_size=32, n_epochs=1, tail_coef=1.0, rollout_buffer_kwargs=kwargs)
    buffer = model.learn(32).rollout_buffer
    assert (buffer.branch_lambda, buffer.tail_coef) == (0.25, 0.5)
