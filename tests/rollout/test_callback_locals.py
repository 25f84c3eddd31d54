"""What callbacks read: PPO's names mean what they mean in PPO."""

import copy
import pickle

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3 import PPO
from stable_baselines3.common.callbacks import BaseCallback, CallbackList, ConvertCallback, EveryNTimesteps
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.policies import ActorCriticPolicy

from sb3_hybrid_grpo import GRPO, HybridGRPO, InvalidArgumentError
from sb3_hybrid_grpo.rollout import callback_locals
from sb3_hybrid_grpo.rollout.callback_locals import CallbackLocals, CommittedStep
from tests.envs import limited
from tests.hybrid_grpo.test_ppo_equality import PPO_SETTINGS

OF_A_STEP = ("obs_tensor", "actions", "values", "log_probs", "clipped_actions", "new_obs", "rewards", "dones", "n_steps")
OF_A_ROLLOUT = (*OF_A_STEP[:6], "dones", "n_steps", "n_rollout_steps")
SMALL = {"n_steps": 16, "batch_size": 16, "n_epochs": 1, "seed": 1, "device": "cpu"}


class Record(BaseCallback):
    """Keeps variables of each step and each rollout, and the infos."""

    def __init__(self):
        super().__init__()
        self.steps, self.rollouts = [], []

    def _on_training_start(self):
        self.reference = self.locals

    def _on_step(self):
        assert self.locals["self"] is self.model and self.locals["env"] is self.training_env
        assert self.reference is self.locals
        self.steps.append(copy.deepcopy({name: self.locals[name] for name in OF_A_STEP}))
        return True

    def _on_rollout_end(self):
        assert self.locals["rollout_buffer"] is self.model.rollout_buffer
        self.rollouts.append(copy.deepcopy({name: self.locals.get(name) for name in OF_A_ROLLOUT}))


def same(ours, theirs):
    if isinstance(theirs, dict):
        return ours.keys() == theirs.keys() and all(same(ours[key], theirs[key]) for key in theirs)
    if not isinstance(theirs, np.ndarray | th.Tensor):
        return ours == theirs
    alike = type(ours) is type(theirs) and ours.shape == theirs.shape and ours.dtype == theirs.dtype
    return alike and np.allclose(ours, theirs, atol=1e-4)


class OwnForward(ActorCriticPolicy):
    def forward(self, obs, deterministic=False):
        return super().forward(obs, deterministic)


@pytest.mark.parametrize(
    "policy, env, kwargs",
    [
        ("MlpPolicy", limited(5), {}),
        ("MlpPolicy", limited(5, action_space=spaces.Box(-1, 1, (2, 3))), {}),
        ("MlpPolicy", limited(5, action_space=spaces.Discrete(4)), {}),
        ("MlpPolicy", limited(5, action_space=spaces.MultiDiscrete([2, 3])), {}),
        ("MlpPolicy", limited(5, action_space=spaces.MultiBinary(3)), {}),
        ("MultiInputPolicy", limited(5, observation="dict"), {}),
        ("MlpPolicy", limited(5), {"use_sde": True, "policy_kwargs": {"squash_output": True}}),
        (OwnForward, limited(5), {}),
    ],
    ids=["box", "matrix", "discrete", "multidiscrete", "multibinary", "dict", "gsde", "forward"],
)
def test_variables_are_ppos(policy, env, kwargs):
    records = []
    for algorithm, settings in ((PPO, {}), (HybridGRPO, PPO_SETTINGS)):
        records.append(Record())
        model = algorithm(policy, make_vec_env(env, 2, seed=3), **SMALL, **kwargs, **settings)
        model.learn(64, callback=records[-1])
    theirs, ours = records
    for name in ("steps", "rollouts"):
        for t, (expected, found) in enumerate(zip(getattr(theirs, name), getattr(ours, name), strict=True)):
            for variable, value in expected.items():
                assert same(found[variable], value), (name, t, variable, found[variable], value)


@pytest.mark.parametrize("selection", ["first", "best"])
@pytest.mark.parametrize("space", [spaces.Box(-1, 1, (2,)), spaces.Discrete(3)], ids=["box", "discrete"])
def test_variables_are_of_the_committed_action(space, selection):
    class Check(BaseCallback):
        def _on_step(self):
            variables, policy = self.locals, self.model.policy
            actions = variables["actions"]
            np.testing.assert_array_equal(actions, variables["sampled_actions"][:, 0])
            np.testing.assert_array_equal(variables["clipped_actions"], taken[-1])
            np.testing.assert_array_equal(variables["clipped_sampled_actions"][:, 0], taken[-1])
            with th.no_grad():
                values, log_probs, _ = policy.evaluate_actions(variables["obs_tensor"], th.as_tensor(actions))
            th.testing.assert_close(variables["values"], values)
            th.testing.assert_close(variables["log_probs"], log_probs)
            logged.append(variables["log_probs"].numpy())
            return True

        def _on_rollout_end(self):
            buffer = self.locals["rollout_buffer"]
            np.testing.assert_allclose(buffer.log_probs[..., 0], logged[-len(buffer.log_probs) :], atol=1e-5)
            assert self.locals["values"].shape == (2, 1)

    env = make_vec_env(limited(5, action_space=space), 2, seed=0)
    taken, logged, step_async = [], [], env.step_async
    env.step_async = lambda actions: (taken.append(actions.copy()), step_async(actions))
    HybridGRPO("MlpPolicy", env, n_samples=3, branch_horizon=2, action_selection=selection, **SMALL).learn(
        64, callback=Check()
    )
    assert len(logged) == 32


def test_nothing_is_computed_that_no_callback_reads(monkeypatch):
    def refuse(self):
        raise AssertionError("computed although nobody asked")

    for name in ("obs_tensor", "values", "log_probs"):
        monkeypatch.setattr(CommittedStep, name, property(refuse))
    seen = []
    inner = EveryNTimesteps(8, CallbackList([Rewards(seen)]))
    HybridGRPO("MlpPolicy", limited(5)(), **SMALL).learn(
        32, callback=[inner, ConvertCallback(lambda locals_, globals_: "rewards" in locals_)]
    )
    assert len(seen) == 4


class Rewards(BaseCallback):
    def __init__(self, seen):
        super().__init__()
        self.seen = seen

    def _on_step(self):
        self.seen.append(self.locals["rewards"].copy())
        return True


def test_whoever_takes_all_variables_gets_values(monkeypatch):
    class Step:
        obs_tensor, values, log_probs = "o", "v", "l"

    monkeypatch.setattr(callback_locals, "CommittedStep", Step)

    def renewed():
        variables = CallbackLocals(kept=0)
        variables.renew({"rewards": 1})
        return variables

    expected = {"kept": 0, "rewards": 1, "obs_tensor": "o", "values": "v", "log_probs": "l"}
    readers = (
        dict, lambda v: {**v}, copy.copy, lambda v: v.copy(), lambda v: dict(v.items()),
        lambda v: {k: v[k] for k in v}, lambda v: {} | v, lambda v: v | {}, lambda v: eval(repr(v)),
        lambda v: dict(zip(v.keys(), v.values(), strict=True)), lambda v: {k: v.get(k) for k in v},
        lambda v: {k: v.pop(k) for k in list(v)}, lambda v: {k: v.setdefault(k) for k in v},
        lambda v: (lambda **named: named)(**v), lambda v: (target := {}, target.update(v))[0],
    )  # fmt: skip
    for reader in readers:
        assert dict(reader(renewed())) == expected
    assert renewed() == expected and len(renewed()) == 5 and renewed().get("other", 7) == 7
    with pytest.raises(KeyError):
        renewed()["other"]


def test_callbacks_that_keep_variables_of_their_own():
    class Own(BaseCallback):
        def update_locals(self, locals_):
            self.mine.update(locals_)

        def _on_training_start(self):
            self.mine = {}

        def _on_step(self):
            shapes.append(self.mine["values"].shape)
            return True

    shapes = []
    HybridGRPO("MlpPolicy", limited(5)(), **SMALL).learn(16, callback=Own())
    assert shapes == [(1, 1)] * 16


class AddInSteps(BaseCallback):
    """The idiom of PPO's users."""

    def _on_step(self):
        self.locals["rewards"] += bonus_of(self.locals["new_obs"])
        return True


class AddAtTheEnd(BaseCallback):
    def __init__(self):
        super().__init__()
        self.bonuses = []

    def _on_step(self):
        self.bonuses.append(bonus_of(self.locals["new_obs"]))
        return True

    def _on_rollout_end(self):
        self.locals["rollout_buffer"].add_bonuses(np.array(self.bonuses))
        self.bonuses = []


def bonus_of(obs):
    return np.abs(obs[:, 0]).astype(np.float32)


def test_bonuses_with_one_sample_are_ppos():
    parameters = []
    for algorithm, settings, callback in (
        (PPO, {}, AddInSteps),
        (HybridGRPO, PPO_SETTINGS, AddInSteps),
        (HybridGRPO, PPO_SETTINGS, AddAtTheEnd),
    ):
        model = algorithm("MlpPolicy", make_vec_env(limited(50), 2, seed=3), gamma=0.9, **SMALL, **settings)
        model.learn(64, callback=callback())
        parameters.append(model.policy.state_dict())
    for name, expected in parameters[0].items():
        for other in parameters[1:]:
            th.testing.assert_close(other[name], expected, rtol=1e-3, atol=1e-4, msg=lambda msg, name=name: f"{name}: {msg}")


@pytest.mark.parametrize("callback", [AddInSteps, AddAtTheEnd])
def test_bonuses_are_credited_to_the_committed_action_alone(callback):
    """Of the committed action as of no other: a bonus that all states have alike changes no advantage."""
    buffers = []
    for record in (None, callback()):
        model = HybridGRPO("MlpPolicy", make_vec_env(limited(50), 2, seed=3), n_samples=3, branch_horizon=2, **SMALL)
        model.learn(32, callback=record)
        buffers.append(model.rollout_buffer)
    without, with_bonus = buffers
    shape = without.bonuses.shape
    bonuses = with_bonus.bonuses.copy()
    assert (bonuses > 0).all() and not without.bonuses.any()

    def of(buffer, name):
        """Undo the flattening for minibatches: environments first."""
        array = getattr(buffer, name)
        return array.reshape(shape[1], shape[0], *array.shape[1:]).swapaxes(0, 1)

    ends = np.concatenate((without.episode_starts[1:], np.zeros((1, 2))))
    two_steps = bonuses.copy()
    two_steps[:-1] += model.gamma * (1 - ends[:-1]) * bonuses[1:]
    difference = of(with_bonus, "advantages") - of(without, "advantages")
    np.testing.assert_allclose(difference[..., 0], 3 * (two_steps - two_steps.mean()), atol=1e-4)
    np.testing.assert_allclose(difference[..., 1:], 0, atol=1e-6)
    expected, last = np.zeros(shape), np.zeros(2)
    for t in reversed(range(shape[0])):
        expected[t] = last = bonuses[t] + model.gamma * model.gae_lambda * (1 - ends[t]) * last
    np.testing.assert_allclose((of(with_bonus, "returns") - of(without, "returns"))[..., 0], expected, atol=1e-4)
    np.testing.assert_array_equal(with_bonus.rewards, without.rewards)


def test_the_reward_transform_learns_a_rollout_once():
    model = HybridGRPO("MlpPolicy", limited(5)(), reward_transform="normalized", **SMALL)
    model.learn(16, callback=AddAtTheEnd())
    assert model.reward_transform.return_rms.count == 16


@pytest.mark.parametrize(
    "algorithm, kwargs, message",
    [
        (HybridGRPO, {"action_selection": "best"}, "selected"),
        (HybridGRPO, {"brancher": "learned"}, "model"),
        (GRPO, {}, "critic"),
    ],
)
def test_bonuses_that_have_no_place_are_refused(algorithm, kwargs, message):
    with pytest.raises(InvalidArgumentError, match=message):
        algorithm("MlpPolicy", limited(5)(), **SMALL, **kwargs).learn(16, callback=AddInSteps())


def test_bonuses_at_the_wrong_time_or_of_the_wrong_shape():
    model = HybridGRPO("MlpPolicy", limited(5)(), **SMALL)
    with pytest.raises(InvalidArgumentError, match="on_rollout_end"):
        model.rollout_buffer.add_bonuses(np.zeros((16, 1)))
    model.learn(16)
    with pytest.raises(InvalidArgumentError, match="on_rollout_end"):
        model.rollout_buffer.add_bonuses(np.zeros((16, 1)))
    with pytest.raises(InvalidArgumentError, match=r"shape \(16, 1\), not \(16,\)"):
        model.rollout_buffer.add_bonuses(np.zeros(16))


def test_shapes_at_the_end_of_a_rollout():
    class Shapes(BaseCallback):
        def _on_step(self):
            return True

        def _on_rollout_end(self):
            buffer = self.locals["rollout_buffer"]
            shapes.update({name: getattr(buffer, name).shape for name in vars(buffer) if name in expected})

    per_sample = (16, 2, 3)
    expected = {
        "observations": (16, 2, 2), "actions": (*per_sample, 2), "rewards": per_sample, "next_values": per_sample,
        "terminated": per_sample, "log_probs": per_sample, "advantages": per_sample, "weights": per_sample,
        "estimates": per_sample, "values": (16, 2), "returns": (16, 2), "bonuses": (16, 2), "episode_starts": (16, 2),
    }  # fmt: skip
    shapes = {}
    HybridGRPO("MlpPolicy", make_vec_env(limited(5), 2), n_samples=3, **SMALL).learn(32, callback=Shapes())
    assert shapes == expected


def test_variables_can_be_pickled():
    class Keep(BaseCallback):
        def _on_step(self):
            kept.append(pickle.dumps({**self.locals, "self": 0, "env": 0, "callback": 0}["log_probs"]))
            return True

    kept = []
    HybridGRPO("MlpPolicy", gym.make("CartPole-v1"), **SMALL).learn(16, callback=Keep())
    assert all(pickle.loads(each).shape == (1,) for each in kept)
