"""Branches from snapshots that wait until they are many."""

import random

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from gymnasium import spaces, wrappers
from stable_baselines3.common.env_util import make_vec_env

from sb3_hybrid_grpo.branching import CONSTANT, make_brancher, register_codec
from sb3_hybrid_grpo.branching.snapshots import registry
from tests.lockstep import describe


class Counter(gym.Env):
    """Keeps lists and arrays that it makes anew, and draws from generators, of the process as well from some step on."""

    observation_space = spaces.Box(-np.inf, np.inf, (3,), np.float64)
    action_space = spaces.Discrete(3)

    def __init__(self, draws_from=10**6):
        self.draws_from = draws_from
        self.n_steps = 0
        self.own = random.Random(0)
        self.history = []

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.history = []
        self.noise = np.random.RandomState(int(self.np_random.integers(100)))
        return self._observation(), {}

    def step(self, action):
        self.n_steps += 1
        self.history = [*self.history[-3:], np.array([float(action), self.noise.normal(), self.own.gauss(0, 1)])]
        if self.n_steps >= self.draws_from:
            self.history[-1] += np.random.normal(), random.random(), th.rand(1).item()
        return self._observation(), float(action), False, False, {}

    def _observation(self):
        return np.sum(self.history, axis=0) if self.history else np.zeros(3)


def make(draws_from=10**6):
    return make_vec_env(lambda: wrappers.TimeLimit(Counter(draws_from), 7), 2, seed=0)


def state_of(venv):
    return describe([*venv.envs, np.random.mtrand._rand, random._inst])


def follow(brancher, actions, horizon):
    """Take the same actions in all steps of branches; return the outcomes."""
    alive = np.ones(actions.shape, dtype=bool)
    outcomes = [brancher.open(actions, alive, horizon)]
    for _ in range(horizon - 1):
        alive = alive & ~(outcomes[-1].terminated | outcomes[-1].truncated)
        outcomes.append(brancher.advance(actions, alive))
    brancher.close()
    return outcomes


@pytest.mark.filterwarnings("ignore:An environment began to draw")
@pytest.mark.parametrize("draws_from", [10**6, 40])
def test_prompt_branches_are_right_from_the_first_that_draws(draws_from):
    """The middle one of three steps of a branch is the first ever to draw: it is taken again from where it began."""
    venv = make(draws_from)
    brancher = make_brancher("snapshot", venv)
    th.manual_seed(0)
    venv.reset()
    actions = np.ones((2, 3), dtype=int)
    for _ in range(38):
        venv.step(actions[:, 0])
    before = state_of(venv)
    outcomes = follow(brancher, actions, 3)
    assert state_of(venv) == before
    # Environments of one process draw from the same generators in turn: only the first one's first draw can be foretold.
    steps = [venv.step(actions[:, 0]) for _ in range(2)]
    for outcome, (obs, *_) in zip(outcomes, steps, strict=False):
        np.testing.assert_array_equal(outcome.observations[0, 0], obs[0])


@pytest.mark.filterwarnings("ignore:An environment began to draw")
@pytest.mark.parametrize("draws_from", [10**6, 36])
def test_branches_that_wait_foretell_the_committed_steps(draws_from):
    """Over the ends of episodes, and with the generators of the process as they were at each state."""
    venv, twin = make(draws_from), make(draws_from)
    brancher = make_brancher("snapshot", venv)
    assert brancher.can_remember
    horizon, n_states = 2, 12
    for each in (venv, twin):
        each.reset()
    for _ in range(30):
        for each in (venv, twin):
            each.step(np.ones(2, dtype=int))
    th.manual_seed(0)
    actions = np.random.default_rng(0).integers(3, size=(n_states + horizon, 2))
    steps = []
    for committed in actions:
        if len(steps) < n_states:
            brancher.remember()
            brancher.confirm()
        steps.append(venv.step(committed))
    before = state_of(venv), th.get_rng_state().tolist()
    branches = np.concatenate([row[:, None].repeat(2, axis=1) for row in actions[:n_states]], axis=1)
    outcomes = follow(brancher.recall(), branches, horizon)
    assert (state_of(venv), th.get_rng_state().tolist()) == before
    for state in range(n_states):
        # With generators that both environments share, only the first one's next draw can be foretold.
        for env_idx in range(2 if draws_from > n_states + 30 else 1):
            obs, rewards, _, infos = steps[state]
            last = infos[env_idx].get("terminal_observation", obs[env_idx])
            for branch in (2 * state, 2 * state + 1):
                np.testing.assert_array_equal(outcomes[0].observations[env_idx, branch], last)
                assert outcomes[0].rewards[env_idx, branch] == rewards[env_idx]


def test_what_the_environment_has_dropped_by_now_is_left_as_it_was():
    """Whoever looks at an environment may hold the diary of an episode that is over."""

    class Diarist(Counter):
        def reset(self, **kwargs):
            self.diary = []
            return super().reset(**kwargs)

        def step(self, action):
            self.diary.append(int(action))
            return super().step(action)

    venv = make_vec_env(lambda: wrappers.TimeLimit(Diarist(), 4), 1, seed=0)
    brancher = make_brancher("snapshot", venv)
    venv.reset()
    diaries = []
    for _ in range(60):
        brancher.remember()
        brancher.confirm()
        diaries.append(venv.get_attr("diary")[0])
        venv.step(np.ones(1, dtype=int))
    is_branched = np.arange(60)[None] == 5
    brancher.recall().open(np.full((1, 60), 2), is_branched, 1)
    brancher.close()
    assert diaries == [[1, 1, 1, 1]] * 60


@pytest.mark.parametrize("env_id", ["HalfCheetah-v5", "Hopper-v5"])
def test_branches_that_wait_are_judged_by_the_settings_of_their_time(env_id):
    """A curriculum may change the weights of rewards, and limits, in the middle of a rollout."""
    pytest.importorskip("mujoco")
    venv = make_vec_env(env_id, 2, seed=0)
    brancher = make_brancher("snapshot", venv)
    venv.reset()
    actions = np.random.default_rng(0).uniform(-1, 1, (8, *venv.action_space.shape)).astype(np.float32)
    committed = []
    for t, action in enumerate(actions):
        if t in (3, 6):
            for env in venv.envs:
                env.unwrapped._forward_reward_weight = 10.0 * t
        if t == 5:
            venv.envs[1].env._max_episode_steps = 7
        brancher.remember()
        brancher.confirm()
        _, rewards, dones, _ = venv.step(np.stack([action, action]))
        committed.append((rewards, dones))
    now = venv.envs[0].unwrapped._forward_reward_weight
    outcome = brancher.recall().open(np.stack([actions, actions]), np.ones((2, 8), dtype=bool), 1)
    rewards, dones = map(np.array, zip(*committed, strict=True))
    np.testing.assert_array_equal(outcome.rewards.T, rewards)
    np.testing.assert_array_equal((outcome.terminated | outcome.truncated).T, dones)
    assert dones[6, 1] and not dones[:7, 0].any() and venv.envs[0].unwrapped._forward_reward_weight == now


def test_what_users_said_of_a_type_is_asked_for_at_once():
    register_codec("nobody.Nothing", CONSTANT)
    try:
        assert not make_brancher("snapshot", make()).can_remember
    finally:
        registry._user_registry.clear()
        registry._forget_resolved()


def test_large_states_wait_in_small_numbers():
    class Large(Counter):
        def __init__(self):
            super().__init__()
            self.content = [np.zeros(8000) for _ in range(20)]

    few = make_brancher("snapshot", make_vec_env(lambda: wrappers.TimeLimit(Large(), 7), 1))
    many = make_brancher("snapshot", make())
    for brancher in (few, many):
        brancher._venv.reset()
        brancher.remember()
    assert 0 < few.branches_at_once < many.branches_at_once
