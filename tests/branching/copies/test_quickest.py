"""Branching by replays or forks, whichever is quicker: the same laws, and a way on where replays are not exact."""

import os
import warnings

import gymnasium as gym
import numpy as np
import pytest
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv

from sb3_hybrid_grpo import HybridGRPO
from sb3_hybrid_grpo.branching import choice as local
from sb3_hybrid_grpo.branching.choice import choose_brancher
from sb3_hybrid_grpo.branching.copies.fork import ForkBrancher
from sb3_hybrid_grpo.branching.copies.quickest import QuickestBrancher
from sb3_hybrid_grpo.branching.copies.replay import ReplayBrancher
from tests.envs import Walk, far_library, limited
from tests.lockstep import assert_laws_of_paths, describe, reporting, subproc

pytestmark = [
    pytest.mark.skipif(not hasattr(os, "fork"), reason="the platform cannot fork"),
    pytest.mark.filterwarnings("ignore:.*use of fork:DeprecationWarning:multiprocessing"),
]
VEC_ENVS = pytest.mark.parametrize("vec_env_cls", [DummyVecEnv, subproc()], ids=["DummyVecEnv", "SubprocVecEnv"])
ACTIONS = np.linspace(-1, 1, 12).reshape(3, 2, 2)


def lunar_lander():
    pytest.importorskip("Box2D")
    return Monitor(gym.make("LunarLander-v3", max_episode_steps=120))


@pytest.fixture
def forks_from_step_4(monkeypatch):
    def choose(self, alive, horizon):
        self._is_forked = self._replays.lengths >= 4

    monkeypatch.setattr(QuickestBrancher, "_choose", choose)


def walks(kinds=("box", "box", "box")):
    """Return environments after different numbers of steps, and a brancher that has seen them all."""
    envs = [limited(observation=kind)() for kind in kinds]
    brancher = QuickestBrancher(envs)
    for n_steps, env in enumerate(envs):
        env.reset(seed=n_steps)
        for _ in range(3 * n_steps):
            env.step(np.zeros(2))
    return envs, brancher


@pytest.mark.usefixtures("forks_from_step_4")
@pytest.mark.filterwarnings("ignore:.*use of fork:DeprecationWarning")
@VEC_ENVS
def test_laws(vec_env_cls):
    with pytest.warns(
        UserWarning, match=r"LunarLander.*forked copy.*while that is quicker.*ms per branch.*brancher='quickest'"
    ):
        assert_laws_of_paths(
            lambda: make_vec_env(reporting(lunar_lander), 2, vec_env_cls=vec_env_cls),
            150,
            {0: 1, 1: 6, 4: 2, 9: 3},
            name="auto",
        )


@pytest.mark.usefixtures("forks_from_step_4")
@pytest.mark.parametrize("kind", ["box", "dict", "discrete"])
def test_outcomes_of_both_are_put_together(kind):
    envs, brancher = walks([kind] * 3)
    reference = ForkBrancher(envs)
    alive = np.array([[True, True], [False, True], [True, False]])
    for horizon in (1, 2):
        found, expected = (b.open(ACTIONS, alive, horizon) for b in (brancher, reference))
        assert describe(found) == describe(expected) and np.count_nonzero(found.rewards) == 4
    found, expected = (b.advance(ACTIONS, alive) for b in (brancher, reference))
    assert describe(found) == describe(expected)
    brancher.close()
    reference.close()


def test_the_quicker_way_is_taken(monkeypatch):
    _, brancher = walks()
    calls = []
    for part in (brancher._replays, brancher._forks):
        original = part.open

        def open_(actions, alive, horizon, part=part, original=original):
            calls.append((type(part), alive.any(axis=1).tolist()))
            return original(actions, alive, horizon)

        monkeypatch.setattr(part, "open", open_)
    alive = np.ones((3, 2), dtype=bool)
    brancher._fork_cost.seconds, brancher._step_cost.seconds = 1e6, 1e-6
    brancher.open(ACTIONS, alive, 1)
    assert calls == [(ReplayBrancher, [True, True, True])]
    n_steps = brancher._step_cost.count
    assert n_steps == 1 + 2 * (1 + 4 + 7) and brancher._step_cost.seconds > 1e-5
    brancher._step_cost.seconds, brancher._fork_cost.seconds = float(n_steps), 5.0
    calls.clear()
    brancher.open(ACTIONS, alive, 1)
    brancher.close()
    assert calls == [(ForkBrancher, [False, False, True]), (ReplayBrancher, [True, True, False])]
    assert brancher._fork_cost.count == 3 and brancher._fork_cost.seconds > 5


@pytest.mark.usefixtures("forks_from_step_4")
def test_forks_where_nothing_was_written_down_yet():
    env = Walk()
    env.reset(seed=0)
    brancher = QuickestBrancher([env])
    assert brancher.open(ACTIONS[:1], np.ones((1, 2), dtype=bool), 1).rewards.all()


@pytest.mark.usefixtures("forks_from_step_4")
def test_forks_where_replays_turn_out_not_to_be_exact():
    envs, brancher = walks()
    envs[1].unwrapped.velocity += 1
    before = describe(envs)
    alive = np.ones((3, 2), dtype=bool)
    with pytest.warns(UserWarning, match=r"Environment 1.*another state(?s:.*)From now on all branches are forked"):
        outcome = brancher.open(ACTIONS, alive, 1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        again = brancher.open(ACTIONS, alive, 1)
    assert describe(envs) == before
    assert describe(outcome) == describe(again) == describe(ForkBrancher(envs).open(ACTIONS, alive, 1))


class Keeps(Walk):
    """Cannot be copied, nor saved."""

    def __init__(self):
        super().__init__()
        self.kept = (step for step in "abc")


def test_choice():
    pytest.importorskip("Box2D")
    for make_env, kind, name in ((lunar_lander, QuickestBrancher, "quickest"), (Keeps, ForkBrancher, "fork")):
        choice = choose_brancher("auto", [make_env()])
        assert type(choice.brancher) is kind and f"brancher={name!r}" in choice.announcement
        assert type(choose_brancher(name, [make_env()]).brancher) is kind


def test_replays_are_tried_in_a_copy_of_the_process(monkeypatch):
    """What the copies of an environment share must not be changed by finding out."""
    steps = far_library().connect()

    class Shares(Keeps):
        def __deepcopy__(self, memo):
            return type(self)()

        def step(self, action):
            far_library().step(steps)
            return super().step(action)

    choice = choose_brancher("auto", [Shares()])
    assert type(choice.brancher) is QuickestBrancher and far_library().worlds[steps] > 0
    monkeypatch.setattr(local.ReplayBrancher, "__init__", lambda self, envs: 1 / 0)
    steps = far_library().connect()
    choice = choose_brancher("auto", [Shares()])
    assert type(choice.brancher) is ForkBrancher and not far_library().worlds[steps]


def test_training():
    pytest.importorskip("Box2D")

    def trained(brancher):
        env = make_vec_env("LunarLander-v3", 2, seed=0)
        model = HybridGRPO("MlpPolicy", env, n_steps=32, batch_size=16, brancher=brancher, seed=0)
        model.learn(64)
        return model.num_simulator_steps, [parameter.tolist() for parameter in model.policy.parameters()]

    with pytest.warns(UserWarning, match="last resort"):
        found = trained("auto")
    assert found == trained("fork")
