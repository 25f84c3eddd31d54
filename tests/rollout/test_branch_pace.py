"""The share of states that are branched follows the clock."""

import sys
from contextlib import contextmanager

import numpy as np
import pytest
from stable_baselines3.common.env_util import make_vec_env

from sb3_hybrid_grpo import HybridGRPO, InvalidArgumentError
from sb3_hybrid_grpo.hybrid_grpo import algorithm
from sb3_hybrid_grpo.rollout import BranchPace, branch_pace
from tests.envs import limited

T = 16
SMALL = {"n_steps": T, "batch_size": 16, "n_epochs": 1, "seed": 0, "branch_horizon": 2}


class Clock:
    """Goes on when it is told to."""

    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now


def spend(pace, clock, n_states, n_branched, rest, per_branch, elsewhere=0.0):
    """Go through a rollout and an update."""
    for idx in range(n_states):
        clock.now += rest
        with pace.branching(int(idx < n_branched)):
            clock.now += per_branch * (idx < n_branched)
        with pace.elsewhere():
            clock.now += elsewhere


@pytest.mark.parametrize("per_branch, expected", [(2.0, 0.25), (10.0, 0.05), (0.1, 1.0), (1000.0, 0.01)])
def test_share_is_what_the_limit_affords(per_branch, expected):
    """Of 1 second for the rest of a step, half a second may be added."""
    clock = Clock()
    pace, share = BranchPace(1.5, clock), 0.5
    share = pace.begin(share)
    for _ in range(3):
        spend(pace, clock, 100, round(100 * share), 1.0, per_branch, elsewhere=7.0)
        share = pace.begin(share)
    assert share == pytest.approx(expected)
    assert expected in (0.01, 1.0) or 1 + share * per_branch == pytest.approx(1.5)


def test_what_was_taken_beyond_the_limit_is_saved_later():
    """Branches of the rollout to come take twice as long as those that the share was chosen by, or half as long."""
    clock = Clock()
    pace = BranchPace(1.5, clock)
    share, spent, rest = pace.begin(0.25), 0.0, 0.0
    for idx, cost in enumerate([2.0, *np.random.default_rng(0).choice([1.0, 2.0, 4.0], size=60)]):
        n_branched = round(1000 * share)
        spend(pace, clock, 1000, n_branched, 1.0, cost)
        share = pace.begin(share)
        if idx > 0:
            spent, rest = spent + n_branched * cost, rest + 1000
    assert 0.4 * rest < spent < 0.5 * rest


def test_nothing_is_learned_from_what_was_interrupted():
    clock = Clock()
    pace = BranchPace(1.5, clock)
    assert pace.begin(0.3) == 0.3
    spend(pace, clock, 10, 3, 1.0, 1.0)
    pace.forget()
    clock.now += 3600
    assert pace.begin(0.3) == 0.3
    clock.now += 10
    assert pace.begin(0.3) == 0.3, "nothing was branched"


def test_all_that_branches_need_counts():
    """Noise for steps ahead, the choice of what is branched, and the values where branches end: nothing without branches."""
    counted = []

    class Pace(BranchPace):
        @contextmanager
        def branching(self, n_states=0):
            counted.append(sys._getframe(2).f_code.co_name)
            with super().branching(n_states):
                yield

    model = make_model(n_steps=8)
    model._pace = Pace(1.5)
    model.learn(16)
    assert counted.count("collect_rollouts") == 2 * 8 + 1
    assert counted.count("begin") == counted.count("finish") == 8


def make_model(**kwargs):
    return HybridGRPO("MlpPolicy", make_vec_env(limited(), 2, seed=0), **{**SMALL, "branch_fraction": "auto", **kwargs})


@pytest.fixture
def costly_branches(monkeypatch):
    """Let a state that is branched take ten seconds, and its macro-step half a second besides."""
    clock = Clock()

    class Pace(BranchPace):
        def __init__(self, limit):
            super().__init__(limit, clock)

        @contextmanager
        def branching(self, n_states=0):
            clock.now += 0.5 * (n_states > 0)
            with super().branching(n_states):
                clock.now += 10.0 * n_states
                yield

    monkeypatch.setattr(algorithm, "BranchPace", Pace)
    return clock


def test_share_of_a_model(costly_branches, tmp_path):
    model = make_model(n_steps=4 * T)
    shares = []
    model.learn(2 * 4 * T * 3, callback=lambda *_: shares.append(model.branch_share) or True, log_interval=100)
    assert shares[0] == branch_pace.FIRST_SHARE
    assert model.branch_share < shares[0]
    assert model.logger.name_to_value["rollout/branch_share"] == model.branch_share
    branched = np.array(model.rollout_buffer.branched)
    assert branched.mean() < 0.25
    model.save(tmp_path / "model")
    assert HybridGRPO.load(tmp_path / "model").branch_share == model.branch_share


def test_limit_is_an_argument_and_evaluations_do_not_count(costly_branches):
    shares = []
    for limit in (1.2, 3.0):
        model = make_model(branch_time_limit=limit, n_steps=4 * T)

        def evaluate(locals_, globals_):
            costly_branches.now += 1000.0
            return True

        model.learn(2 * 4 * T * 2, callback=evaluate)
        shares.append(model.branch_share)
    assert shares[0] < shares[1] < 0.25


@pytest.mark.parametrize(
    "kwargs, message",
    [
        ({"branch_fraction": "some"}, "number or 'auto'"),
        ({"branch_fraction": "auto", "branch_time_limit": 1.0}, "branch_time_limit"),
        ({"branch_fraction": "auto", "action_selection": "best"}, "not all states are branched"),
    ],
)
def test_bad_arguments(kwargs, message):
    with pytest.raises(InvalidArgumentError, match=message):
        make_model(**kwargs)
