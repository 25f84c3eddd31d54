"""Networks in environments come back, gradients and all; those that do not change are not copied; learners are left alone."""

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3 import PPO
from stable_baselines3.common.buffers import RolloutBuffer
from stable_baselines3.common.vec_env import DummyVecEnv

from sb3_hybrid_grpo import HybridGRPO
from sb3_hybrid_grpo.branching import Snapshot, make_brancher
from sb3_hybrid_grpo.branching.snapshots.registry import codec_of
from sb3_hybrid_grpo.branching.snapshots.snapshot import UnrestorableStateError
from tests.lockstep import branch, describe


class Holder:
    def __init__(self, **attributes):
        vars(self).update(attributes)


def gather(network):
    network(th.ones(3, 2)).sum().backward()


def test_gradients():
    network = th.nn.Linear(2, 2)
    for n_before in range(2):
        before = [n_before and parameter.grad.clone() for parameter in network.parameters()]
        gradients = [parameter.grad for parameter in network.parameters()]
        snapshot = Snapshot(Holder(network=network))
        for _ in range(2):
            gather(network)
            snapshot.restore()
            for parameter, grad, value in zip(network.parameters(), gradients, before, strict=True):
                assert parameter.grad is grad
                assert grad is None or th.equal(grad, value)
        gather(network)


CHANGES = {
    "in place": lambda tensor: tensor.add_(1),
    "through data": lambda tensor: tensor.data.mul_(2),
    "through numpy": lambda tensor: tensor.numpy().fill(3),
    "other memory": lambda tensor: setattr(tensor, "data", th.ones(2)),
    "other shape": lambda tensor: tensor.resize_(5).fill_(1),
    "requires a gradient": lambda tensor: tensor.requires_grad_().data.fill_(5),
    "nan": lambda tensor: tensor.fill_(th.nan),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_tensors(change):
    tensor = th.tensor([[-0.0, th.nan, 2.0], [3.0, 4.0, 5.0]])
    before, alias = describe(tensor), tensor.view(-1)
    snapshot = Snapshot(Holder(tensor=tensor))
    change(tensor)
    snapshot.restore()
    assert (describe(tensor), tensor.shape, tensor.requires_grad) == (before, (2, 3), False)
    alias[0] = 9
    assert tensor[0, 0] == 9


def test_tensor_that_grows():
    tensor = th.arange(6.0).view(2, 3)
    snapshot = Snapshot(Holder(tensor=tensor))
    for _ in range(2):
        tensor.resize_(1000, 3).fill_(1)
        snapshot.restore()
        assert th.equal(tensor, th.arange(6.0).view(2, 3))


@pytest.mark.parametrize(
    "make",
    [lambda: th.zeros(4, 4)[:, ::2], lambda: th.zeros(0, 3), lambda: th.zeros(2, dtype=th.bfloat16), lambda: th.tensor(1)],
)
def test_tensors_of_all_kinds(make):
    tensor = make()
    snapshot = Snapshot(Holder(tensor=tensor))
    tensor.fill_(1)
    snapshot.restore()
    assert th.equal(tensor, make())


def test_tensors_that_do_not_change_are_not_copied():
    tensor = th.zeros(3)
    codec = codec_of(th.Tensor)
    first, second = codec.save(tensor), codec.save(tensor)
    assert first.content is second.content
    tensor.data += 1
    assert codec.save(tensor).content is not first.content


def test_hooks_that_a_branch_adds():
    network = th.nn.Linear(1, 1)
    network.register_forward_hook(lambda *_: None)
    snapshot = Snapshot(Holder(network=network))
    for _ in range(2):
        network.register_forward_hook(lambda *_: 1 / 0)
        network.register_forward_pre_hook(lambda *_: 1 / 0)
        network.eval()
        snapshot.restore()
        network(th.zeros(1, 1))
        assert network.training


class Duel(gym.Env):
    """Plays against a policy; the observation counts the steps."""

    observation_space = spaces.Box(-1, 1, (2,))
    action_space = spaces.Discrete(2)

    def __init__(self, opponent=None):
        self.opponent = opponent

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.t = 0
        return np.zeros(2, dtype=np.float32), {}

    def step(self, action):
        self.t += 1
        obs = np.array([self.t / 50, action], dtype=np.float32)
        answer = 0 if self.opponent is None else int(self.opponent.predict(obs, deterministic=True)[0])
        return obs, float(action == answer), self.t >= 50, False, {}


SMALL = {"n_steps": 16, "batch_size": 8, "n_epochs": 1, "device": "cpu", "seed": 0}


def test_opponent_that_is_the_learner():
    env = Duel()
    model = HybridGRPO("MlpPolicy", env, n_samples=2, brancher="snapshot", **SMALL)
    env.opponent = model
    snapshot = Snapshot(env)
    walked = {type(visit.obj).__module__ for visit in snapshot.visits}
    assert not any(module.startswith(("sb3_hybrid_grpo.branching", "stable_baselines3.common.buffers")) for module in walked)
    env.t = 7
    brancher = model._brancher
    for _ in range(3):
        outcome = branch(brancher, np.array([[0, 1]]))
        np.testing.assert_allclose(outcome.observations[0, :, 0], 8 / 50)
    model.learn(32)


def test_brancher_within_an_environment_is_no_part_of_it():
    env = Duel()
    venv = DummyVecEnv([lambda: env])
    brancher = make_brancher("snapshot", venv)
    env.brancher, env.venv = brancher, venv
    venv.reset()
    for step in range(1, 4):
        outcome = branch(brancher, np.array([[0, 1, 0]]))
        np.testing.assert_allclose(outcome.observations[0, :, 0], step / 50)
        np.testing.assert_array_equal(venv.step(np.array([0]))[0][0], outcome.observations[0, 0])


def test_opponent_that_was_loaded(tmp_path):
    PPO("MlpPolicy", Duel(), **SMALL).save(tmp_path / "opponent")
    env = Duel(PPO.load(tmp_path / "opponent", device="cpu"))
    venv = DummyVecEnv([lambda: env])
    brancher = make_brancher("snapshot", venv)
    venv.reset()
    for _ in range(5):
        outcome = branch(brancher, np.array([[1, 0]]))
        obs, rewards, *_ = venv.step(np.array([1]))
        np.testing.assert_array_equal(outcome.observations[0, 0], obs[0])
        assert outcome.rewards[0, 0] == rewards[0]


def test_opponent_that_is_trained_in_branches_comes_back():
    opponent = PPO("MlpPolicy", Duel(), **SMALL)
    opponent.env = None
    before = describe(opponent.policy.state_dict())
    snapshot = Snapshot(Holder(opponent=opponent))
    loss = opponent.policy.predict_values(th.ones(1, 2)).sum()
    loss.backward()
    opponent.policy.optimizer.step()
    assert describe(opponent.policy.state_dict()) != before
    snapshot.restore()
    assert describe(opponent.policy.state_dict()) == before
    assert not opponent.policy.optimizer.state


def test_buffers_that_branches_fill_are_refused():
    buffer = RolloutBuffer(4, spaces.Box(-1, 1, (2,)), spaces.Discrete(2))
    snapshot = Snapshot(Holder(buffer=buffer))
    snapshot.restore()
    row = np.zeros((1, 2)), np.zeros((1, 1)), np.zeros(1), np.zeros(1), th.zeros(1), th.zeros(1)
    buffer.add(*row)
    with pytest.raises(UnrestorableStateError, match=r"Holder\.buffer is a .*RolloutBuffer.* added to a buffer"):
        snapshot.restore()
