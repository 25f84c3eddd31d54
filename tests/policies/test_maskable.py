"""Masks of invalid actions: these are never sampled nor branched, and with one sample per state this is MaskablePPO."""

import re
from collections import Counter

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from sb3_contrib import MaskablePPO
from sb3_contrib.common.envs import InvalidActionEnvDiscrete, InvalidActionEnvMultiBinary, InvalidActionEnvMultiDiscrete
from sb3_contrib.common.maskable.callbacks import MaskableEvalCallback
from sb3_contrib.common.maskable.evaluation import evaluate_policy
from sb3_contrib.common.maskable.policies import MaskableActorCriticPolicy
from sb3_contrib.common.wrappers import ActionMasker
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import SubprocVecEnv, VecNormalize

from sb3_hybrid_grpo import GRPO, HybridGRPO, InvalidArgumentError
from sb3_hybrid_grpo.branching import make_brancher
from sb3_hybrid_grpo.check import check_branchable

PPO_SETTINGS = {"n_samples": 1, "reward_transform": "identity", "refit_critic": False, "max_actor_grad_norm": None}
N_STEPS = 64


class Ladder(gym.Env):
    """
    Climb with one of five steps, of which only those are valid that do not pass the top. Invalid actions raise.

    :param observation: ``"box"`` or ``"dict"``
    :param action_space: 5 discrete actions, or several of them
    """

    def __init__(self, observation="box", action_space=None):
        box = spaces.Box(0, 20, (1,))
        self.observation_space = box if observation == "box" else spaces.Dict({"height": box})
        self.action_space = spaces.Discrete(5) if action_space is None else action_space
        self.taken = Counter()

    def _observe(self):
        height = np.array([self.height], dtype=np.float32)
        return height if isinstance(self.observation_space, spaces.Box) else {"height": height}

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.height = int(self.np_random.integers(0, 5))
        return self._observe(), {}

    def valid(self):
        masks = []
        for dim, n in enumerate(self._sizes()):
            masks += [step == 0 or (step <= 20 - self.height and (step + self.height + dim) % 3 != 1) for step in range(n)]
        return np.array(masks)

    def _sizes(self):
        if isinstance(self.action_space, spaces.Discrete):
            return [self.action_space.n]
        return [2] * self.action_space.n if isinstance(self.action_space, spaces.MultiBinary) else self.action_space.nvec

    def step(self, action):
        starts = np.cumsum([0, *self._sizes()[:-1]])
        if not self.valid()[starts + np.ravel(action)].all():
            raise RuntimeError(f"invalid action {action}")
        self.height = min(20, self.height + int(np.max(action)))
        slipped = self.np_random.random() < 0.2
        reward = float(np.sum(action)) - 2.0 * slipped
        return self._observe(), reward, self.height == 20, bool(self.np_random.random() < 0.02), {}

    def action_masks(self):
        return self.valid()


def masked_cartpole():
    """Never push outwards near the edge."""

    def masks(env):
        position = env.unwrapped.state[0]
        return np.array([position > -1, position < 1])

    return ActionMasker(gym.make("CartPole-v1"), masks)


SPACES = {
    "discrete": None,
    "multidiscrete": spaces.MultiDiscrete([3, 4]),
    "multibinary": spaces.MultiBinary(3),
}


@pytest.mark.parametrize(
    "make, policy, wrapper",
    [
        (masked_cartpole, "MlpPolicy", None),
        (Ladder, "MlpPolicy", VecNormalize),
        (lambda: Ladder(action_space=SPACES["multidiscrete"]), "MlpPolicy", None),
        (lambda: Ladder(action_space=SPACES["multibinary"]), "MlpPolicy", None),
        (lambda: Ladder(observation="dict"), "MultiInputPolicy", None),
    ],
    ids=["wrapper", "vecnormalize", "multidiscrete", "multibinary", "dict"],
)
def test_one_sample_is_maskable_ppo(make, policy, wrapper):
    models = []
    for algorithm, name, settings in ((MaskablePPO, policy, {}), (HybridGRPO, f"Maskable{policy}", PPO_SETTINGS)):
        vec_env = make_vec_env(make, 2, seed=3)
        vec_env = wrapper(vec_env) if wrapper else vec_env
        model = algorithm(name, vec_env, n_steps=N_STEPS, batch_size=32, ent_coef=0.01, seed=5, device="cpu", **settings)
        models.append(model.learn(3 * 2 * N_STEPS))
    expected = models[0].policy.state_dict()
    for name, parameter in models[1].policy.state_dict().items():
        th.testing.assert_close(parameter, expected[name], rtol=1e-3, atol=1e-4, msg=lambda msg, name=name: f"{name}: {msg}")


@pytest.mark.filterwarnings("ignore:.*use of fork:DeprecationWarning")
@pytest.mark.parametrize("vec_env_cls", [None, SubprocVecEnv], ids=["dummy", "subproc"])
@pytest.mark.parametrize("brancher", ["snapshot", "fork"])
@pytest.mark.parametrize("n_samples", [3, 5], ids=["iid", "enumerate"])
def test_no_invalid_action_is_taken_in_any_branch(vec_env_cls, brancher, n_samples):
    """The environment raises if one is."""
    vec_env = make_vec_env(Ladder, 2, vec_env_cls=vec_env_cls)
    try:
        model = HybridGRPO(
            "MaskableMlpPolicy", vec_env, n_steps=16, batch_size=32, n_samples=n_samples, branch_horizon=3, brancher=brancher
        )
        model.learn(32)
    finally:
        vec_env.close()
    assert model.num_simulator_steps > 1.5 * model.num_timesteps


@pytest.mark.parametrize("space", SPACES)
@pytest.mark.parametrize("advantage", ["hybrid", "averaged"])
def test_every_discrete_space(space, advantage):
    env = Ladder(action_space=SPACES[space])
    model = HybridGRPO("MaskableMlpPolicy", env, n_steps=64, n_samples=3, branch_horizon=3, advantage=advantage, seed=0)
    model.learn(128)
    assert np.isfinite(model.rollout_buffer.advantages).all()
    assert model.rollout_buffer.branch_alive[:, :, 1:, 1].any()


def test_outcomes_have_the_masks_of_their_states():
    vec_env = make_vec_env(Ladder, 2, seed=0)
    vec_env.reset()
    heights = np.array([env.unwrapped.height for env in vec_env.envs])
    brancher = make_brancher("snapshot", vec_env)
    actions = np.array([[0, 2], [0, 0]]) * vec_env.envs[0].unwrapped.valid()[2]
    alive = np.ones((2, 2), dtype=bool)
    assert brancher.open(actions, alive, horizon=2).action_masks is None
    brancher.close()
    brancher.include_masks()
    outcome = brancher.open(actions, alive, horizon=2)
    brancher.close()
    expected = np.zeros((2, 2, 5), dtype=bool)
    env = Ladder()
    for at in np.ndindex(2, 2):
        env.height = heights[at[0]] + actions[at]
        if not (outcome.terminated[at] or outcome.truncated[at]):
            expected[at] = env.valid()
    np.testing.assert_array_equal(outcome.action_masks, expected)
    assert expected.any() and not expected.all()
    # Nobody acts after the last step, and the state may have no valid action.
    assert not brancher.open(actions, alive, horizon=1).action_masks.any()


def test_enumeration_weighs_invalid_actions_with_zero():
    model = HybridGRPO("MaskableMlpPolicy", Ladder(), n_steps=64, n_samples=5, branch_horizon=1, seed=0, n_epochs=1)
    model.learn(64)
    buffer = model.rollout_buffer
    assert buffer.action_sampling == "enumerate"
    actions = buffer.actions.reshape(-1, 5).astype(int)
    is_valid = np.take_along_axis(buffer.action_masks.reshape(-1, 5).astype(bool), actions, axis=1)
    weights = buffer.weights.reshape(-1, 5)
    assert (weights[~is_valid] == 0).all() and (weights[is_valid] > 0).all()
    np.testing.assert_allclose(weights.sum(axis=1), 1, rtol=1e-5)
    alive = buffer.branch_alive[..., 0].swapaxes(0, 1).reshape(-1, 5)
    np.testing.assert_array_equal(alive, is_valid)


class Forced(Ladder):
    """Two valid actions at even heights, one at odd ones."""

    def valid(self):
        return np.array([self.height % 2 == 0, True, False, False, False])


def test_states_without_a_choice_tell_nothing_about_the_policy():
    model = HybridGRPO("MaskableMlpPolicy", Forced(), n_steps=256, n_samples=2, branch_horizon=1, seed=0)
    model.learn(256, log_interval=None)
    buffer = model.rollout_buffer
    is_same = (buffer.actions == buffer.actions[:, :1]).all(axis=(1, 2))
    is_free = buffer.action_masks.sum(axis=-1) == 2
    assert 0.2 < is_free.mean() < 0.8
    coincident = model.logger.name_to_value["diagnostics/coincident_actions"]
    assert coincident == pytest.approx(is_same[is_free].mean())
    assert coincident < is_same.mean() - 0.1


def test_checkpoints_go_both_ways(tmp_path):
    vec_env = make_vec_env(Ladder, 2, seed=3)
    ours = HybridGRPO("MaskableMlpPolicy", vec_env, n_steps=N_STEPS, seed=0).learn(N_STEPS)
    ours.save(tmp_path / "ours")
    theirs = MaskablePPO("MlpPolicy", vec_env, n_steps=N_STEPS, seed=1).learn(N_STEPS)
    theirs.save(tmp_path / "theirs")
    obs, masks = np.array([19.0], dtype=np.float32), np.array([True, True, False, False, False])
    for model, loaded in (
        (ours, HybridGRPO.load(tmp_path / "ours", vec_env)),
        (ours, MaskablePPO.load(tmp_path / "ours", vec_env)),
        (theirs, HybridGRPO.load(tmp_path / "theirs", vec_env)),
    ):
        np.testing.assert_array_equal(
            model.predict(obs, deterministic=True, action_masks=masks)[0],
            loaded.predict(obs, deterministic=True, action_masks=masks)[0],
        )
        loaded.learn(N_STEPS)


def test_predict_respects_the_masks():
    model = HybridGRPO("MaskableMlpPolicy", Ladder(), n_steps=64, seed=0)
    obs = np.zeros((50, 1), dtype=np.float32)
    masks = np.tile([False, False, True, False, True], (50, 1))
    actions, _ = model.predict(obs, action_masks=masks)
    assert set(actions) == {2, 4}
    assert set(model.predict(obs)[0]) > {2, 4}


def test_maskable_eval_callback(tmp_path):
    callback = MaskableEvalCallback(make_vec_env(Ladder, 1), eval_freq=32, n_eval_episodes=2, log_path=tmp_path)
    HybridGRPO("MaskableMlpPolicy", Ladder(), n_steps=64, seed=0).learn(128, callback=callback)
    assert np.load(tmp_path / "evaluations.npz")["results"].shape == (4, 2)


@pytest.mark.filterwarnings("ignore:5 updates in a row")  # a policy that has solved the task is sure of its actions
@pytest.mark.parametrize("algorithm", [HybridGRPO, GRPO])
@pytest.mark.parametrize(
    "env",
    [
        lambda: InvalidActionEnvDiscrete(dim=20, n_invalid_actions=10),
        lambda: InvalidActionEnvMultiDiscrete(dims=[4, 4], n_invalid_actions=4),
        lambda: InvalidActionEnvMultiBinary(dims=4, n_invalid_actions=2),
    ],
    ids=["discrete", "multidiscrete", "multibinary"],
)
def test_the_environments_of_sb3_contrib_are_solved(algorithm, env):
    np.random.seed(0)
    vec_env = make_vec_env(env, 1, seed=0)
    settings = {"n_steps": 256, "learning_rate": 3e-3, "n_epochs": 4, "seed": 0, "gamma": 0.4, "n_samples": 4}
    if algorithm is HybridGRPO:
        settings["branch_horizon"] = 1
    model = algorithm("MaskableMlpPolicy", vec_env, **settings)
    model.learn(2048)
    mean_reward, _ = evaluate_policy(model, vec_env, n_eval_episodes=5, warn=False)
    assert mean_reward > 95


@pytest.mark.parametrize("space", SPACES)
def test_the_check_keeps_to_the_masks(space):
    report = check_branchable(lambda: Ladder(action_space=SPACES[space]), n_envs=2, n_steps=40)
    assert re.fullmatch(r"exact by snapshots, in 40 steps with \d+ ends of episodes", report.verdict), report


def test_bad_input():
    with pytest.raises(InvalidArgumentError, match="ActionMasker"):
        HybridGRPO("MaskableMlpPolicy", "CartPole-v1")
    with pytest.raises(InvalidArgumentError, match="ActionMasker"):
        HybridGRPO("MaskableMlpPolicy", Ladder(), n_samples=1).set_env(gym.make("CartPole-v1"))
    with pytest.raises(InvalidArgumentError, match="action_masks"):
        HybridGRPO("MaskableMlpPolicy", Ladder(), n_steps=64, branch_horizon=2, brancher=without_masks).learn(64)


def without_masks(venv):
    brancher = make_brancher("snapshot", venv)
    brancher.include_masks = lambda: None
    return brancher


class OwnForward(MaskableActorCriticPolicy):
    n_calls = 0

    def forward(self, obs, deterministic=False, action_masks=None):
        assert action_masks is not None and len(action_masks) == len(obs)
        OwnForward.n_calls += 1
        return super().forward(obs, deterministic, action_masks)


def test_a_policy_with_a_forward_of_its_own():
    OwnForward.n_calls = 0
    HybridGRPO(OwnForward, Ladder(), n_steps=64, n_samples=3, branch_horizon=1).learn(64)
    assert OwnForward.n_calls == 64
