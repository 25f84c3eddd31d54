"""What branches do must not depend on how many of them are followed together: equal bits, whatever the batch."""

import contextlib
import copy
import pickle

import cloudpickle
import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from sb3_contrib.common.maskable.policies import MaskableActorCriticPolicy
from stable_baselines3.common.policies import ActorCriticCnnPolicy, ActorCriticPolicy, MultiInputActorCriticPolicy

from sb3_hybrid_grpo import InvalidArgumentError
from sb3_hybrid_grpo.policies.actors import Actor, MlpActor, make_actor
from sb3_hybrid_grpo.policies.row_by_row import RowByRow
from sb3_hybrid_grpo.policies.sampling import draw_noise
from tests.policies.test_compiled import Compiled

BOX, BOX_ACTIONS = spaces.Box(-1, 1, (17,)), spaces.Box(-1, 1, (6,))
DICT = spaces.Dict({"position": spaces.Box(-1, 1, (5,)), "bin": spaces.Discrete(4)})
IMAGE = spaces.Box(0, 255, (2, 36, 36), np.uint8)
N_STATES = 23
POLICIES = {
    "gaussian": (ActorCriticPolicy, BOX, BOX_ACTIONS, {}),
    "large": (ActorCriticPolicy, BOX, BOX_ACTIONS, {"net_arch": [256, 256], "activation_fn": th.nn.ReLU}),
    "odd": (ActorCriticPolicy, BOX, BOX_ACTIONS, {"net_arch": [5, 3], "activation_fn": th.nn.ELU}),
    "categorical": (ActorCriticPolicy, BOX, spaces.Discrete(7), {}),
    "multi": (ActorCriticPolicy, BOX, spaces.MultiDiscrete([3, 4]), {}),
    "gsde": (ActorCriticPolicy, BOX, BOX_ACTIONS, {"use_sde": True, "squash_output": True}),
    "maskable": (MaskableActorCriticPolicy, BOX, spaces.Discrete(7), {}),
    "dict": (MultiInputActorCriticPolicy, DICT, BOX_ACTIONS, {}),
    "image": (ActorCriticCnnPolicy, IMAGE, spaces.Discrete(4), {}),
}


def make(name):
    policy_class, obs_space, action_space, kwargs = POLICIES[name]
    th.manual_seed(0)
    policy = policy_class(obs_space, action_space, lambda _: 1e-3, ortho_init=False, **kwargs)
    policy.set_training_mode(False)
    rng = np.random.default_rng(0)
    if isinstance(obs_space, spaces.Dict):
        obs = {"position": rng.normal(size=(N_STATES, 5)).astype(np.float32), "bin": rng.integers(4, size=N_STATES)}
    elif obs_space is IMAGE:
        obs = rng.integers(256, size=(N_STATES, *IMAGE.shape), dtype=np.uint8)
    else:
        obs = rng.normal(size=(N_STATES, 17)).astype(np.float32)
    masks = rng.random((N_STATES, 7)) < 0.7 if name == "maskable" else None
    if kwargs.get("use_sde"):
        policy.reset_noise(N_STATES)
    return policy, obs, draw_noise(policy.action_dist, N_STATES), masks


def select(obs, rows):
    return {key: part[rows] for key, part in obs.items()} if isinstance(obs, dict) else obs[rows]


@pytest.mark.parametrize("name", POLICIES)
def test_actions_do_not_depend_on_the_batch(name):
    policy, obs, noise, masks = make(name)
    actor = make_actor(policy)
    together = actor.act(obs, noise, masks)
    for start, stop in [(0, 1), (0, 2), (3, 6), (5, 9), (7, 8), (2, 15), (1, 23)]:
        rows = slice(start, stop)
        apart = actor.act(select(obs, rows), noise[rows], None if masks is None else masks[rows])
        assert apart.tobytes() == together[rows].tobytes(), rows


def test_other_products_depend_on_it():
    """The comparison above can fail: this is what the rows of a plain product do."""
    weight = np.random.default_rng(0).normal(size=(147, 7)).astype(np.float32)
    rows = np.random.default_rng(1).normal(size=(64, 147)).astype(np.float32)
    assert any((rows[:n] @ weight).tobytes() != (rows @ weight)[:n].tobytes() for n in range(1, 10))


@pytest.mark.parametrize("name", POLICIES)
def test_row_by_row_computes_what_the_layers_do_and_leaves_no_trace(name):
    policy, obs, noise, masks = make(name)
    before = {module: set(vars(module)) for module in policy.modules()}
    expected = make_actor(policy).act(obs, noise, masks)
    plain = Actor(policy)
    vars(plain)["_row_by_row"] = contextlib.nullcontext()
    np.testing.assert_allclose(plain.act(obs, noise, masks), expected, rtol=1e-5, atol=1e-6)
    assert {module: set(vars(module)) for module in policy.modules()} == before


def test_layers_of_the_users_own_are_left_alone():
    class Doubled(th.nn.Linear):
        def forward(self, batch):
            return 2 * super().forward(batch)

    network = th.nn.Sequential(Doubled(3, 2))
    network.device = th.device("cpu")
    batch = th.ones(1, 3)
    with th.no_grad(), RowByRow(network):
        assert th.equal(network(batch), 2 * th.nn.functional.linear(batch, network[0].weight, network[0].bias))


@pytest.mark.parametrize("name", POLICIES)
def test_a_replica_acts_like_its_original(name):
    policy, obs, noise, masks = make(name)
    actor = make_actor(policy)
    pickled = cloudpickle.dumps(actor.replica())
    n_threads = th.get_num_threads()
    replica = pickle.loads(pickled)
    th.set_num_threads(n_threads)
    assert replica.act(obs, noise, masks).tobytes() == actor.act(obs, noise, masks).tobytes()
    assert (type(actor) is MlpActor) == (b"torch" not in pickled)
    assert policy.optimizer is not None and getattr(getattr(replica, "policy", None), "optimizer", None) is None


def test_what_would_compute_other_bits_has_no_replica():
    policy, *_ = make("dict")
    with pytest.raises(InvalidArgumentError, match="compiled"):
        Actor(Compiled(policy)).replica()
    elsewhere = copy.copy(policy).to("meta")
    with pytest.raises(InvalidArgumentError, match="meta"):
        Actor(elsewhere).replica()
