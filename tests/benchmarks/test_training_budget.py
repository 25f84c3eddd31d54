"""Trainings with a budget of processor seconds."""

import numpy as np
import pytest
from stable_baselines3 import PPO
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import VecNormalize

from benchmarks.learning.budgeted import training
from benchmarks.learning.budgeted.tasks.families import make_envs
from benchmarks.learning.budgeted.training import Budget, Curve, Point, train
from sb3_hybrid_grpo import HybridGRPO
from tests.envs import limited

SMALL = {"n_steps": 16, "batch_size": 16, "n_epochs": 1, "seed": 0, "device": "cpu"}


def points(*pairs):
    return [Point(seconds, 0, 0, mean_return) for seconds, mean_return in pairs]


@pytest.mark.parametrize(
    "curve, expected",
    [
        (points((0, 0.0), (5, 10.0), (10, 20.0)), 10.0),
        (points((0, 0.0), (2, 10.0)), (10 + 80) / 10),  # flat after the last one
        (points((1, 4.0), (10, 4.0)), 3.6),  # nothing before the first one
        (points((0, 0.0), (8, 8.0), (12, 12.0)), (32 + 16 + 4) / 10),  # the last rollout took longer than the budget
    ],
)
def test_area(curve, expected):
    assert Curve(curve).area(10.0, low=-100.0) == pytest.approx(expected)


def test_area_of_a_training_that_failed():
    assert Curve(points((0, 0.0), (5, 10.0)), "NaN").area(10.0, low=-2.0) == pytest.approx((25 - 10) / 10)


class Clock:
    """Moves on with every reading, and a lot during evaluations."""

    def __init__(self, monkeypatch, step=0.01, evaluation=1000.0):
        self.now, self._step = 5.0, step
        monkeypatch.setattr(training, "processor_seconds", self.read)
        evaluate = training.evaluate_policy

        def slow(*args):
            self.now += evaluation
            return evaluate(*args)

        monkeypatch.setattr(training, "evaluate_policy", slow)

    def read(self):
        self.now += self._step
        return self.now


@pytest.mark.parametrize("algorithm", [PPO, HybridGRPO])
def test_training_ends_with_its_budget(monkeypatch, algorithm):
    Clock(monkeypatch)
    progress, reported = [], []

    def make_model(env):
        model = algorithm("MlpPolicy", env, learning_rate=lambda share: progress.append(share) or 1e-3, **SMALL)
        progress.clear()
        return model

    env, eval_env = make_vec_env(limited(), 1, seed=0), make_vec_env(limited(), 2)
    curve = train(make_model, env, Budget(eval_env, 1.0, [0.3, 0.6], seed=0, report=reported.append))
    seconds = [point.seconds for point in curve.points]
    assert curve.points == reported and not curve.error
    # One reading per step, and rollouts of 16 steps: evaluations come at the first rollout that begins after they are due.
    assert len(seconds) == 4 and seconds[0] < 0.1 and 0.3 <= seconds[1] < 0.6 <= seconds[2] < 0.9 and 1 <= seconds[3] < 1.2
    assert 60 < curve.points[-1].steps < 100
    assert (curve.points[-1].simulator_steps > curve.points[-1].steps) == (algorithm is HybridGRPO)
    assert progress[0] > 0.7 and progress[-1] < 0.4 and sorted(progress, reverse=True) == progress


def test_evaluations_are_those_of_the_normalised_policy():
    env, eval_env = make_envs("Pendulum-v1", 2, True, 0.9, seed=0)
    assert isinstance(env, VecNormalize) and env.gamma == 0.9 and not eval_env.norm_reward
    budget = Budget(eval_env, 0.05, [], seed=0)
    train(lambda env: PPO("MlpPolicy", env, **SMALL), env, budget)
    np.testing.assert_array_equal(eval_env.obs_rms.mean, env.obs_rms.mean)
    assert budget.points[0].mean_return < -100
    assert not isinstance(make_envs("Pendulum-v1", 1, False, 0.9, seed=0)[0], VecNormalize)


def test_the_pace_of_the_machine_is_measured_beside_the_budget(monkeypatch):
    clock, paces = Clock(monkeypatch), iter([1.0, 4.0])

    def work_seconds():
        clock.now += 100
        return next(paces)

    monkeypatch.setattr(training, "work_seconds", work_seconds)
    env, eval_env = make_vec_env(limited(), 1), make_vec_env(limited(), 1)
    curve = train(lambda env: PPO("MlpPolicy", env, **SMALL), env, Budget(eval_env, 1.0, [], seed=0))
    assert curve.work_seconds == 2.5 and 1 <= curve.points[-1].seconds < 1.2 and len(curve.points) == 2


def test_a_policy_that_diverges_ends_its_training():
    def make_model(env):
        return PPO("MlpPolicy", env, learning_rate=1e30, **{**SMALL, "n_epochs": 5})

    curve = train(make_model, make_vec_env(limited(), 1), Budget(make_vec_env(limited(), 1), 60.0, [], seed=0))
    assert "Error" in curve.error and len(curve.points) == 1
    with pytest.raises(ValueError, match="no model"):
        train(
            lambda env: (_ for _ in ()).throw(ValueError("no model")),
            make_vec_env(limited(), 1),
            Budget(make_vec_env(limited(), 1), 60.0, [], seed=0),
        )
