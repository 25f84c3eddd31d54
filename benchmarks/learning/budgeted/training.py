"""One training with a budget of processor seconds."""

import os
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.vec_env import VecEnv, VecNormalize, sync_envs_normalization

from benchmarks.learning.budgeted.pace import work_seconds
from benchmarks.learning.budgeted.tasks.families import EVAL_EPISODES

MakeModel = Callable[[VecEnv], BaseAlgorithm]
_NO_LIMIT = 10**9
# What a policy that diverged makes libraries raise.
_DIVERGENCE = (ValueError, FloatingPointError, OverflowError, RuntimeError)


class Point(NamedTuple):
    """
    An evaluation.

    :param seconds: processor seconds of training before it
    :param steps: committed steps before it
    :param simulator_steps: simulator steps before it
    :param mean_return: mean return of deterministic actions
    """

    seconds: float
    steps: int
    simulator_steps: int
    mean_return: float


class Curve(NamedTuple):
    """
    A training.

    :param points: its evaluations: before the first rollout, now and then, and at its end
    :param error: what ended it early, if anything
    :param work_seconds: how fast the machine was: processor seconds of ``pace.work_seconds``, mean over the evaluations
    """

    points: list[Point]
    error: str = ""
    work_seconds: float = float("nan")

    def area(self, seconds: float, low: float) -> float:
        """
        Return the area under the curve over processor seconds, as a mean return.

        :param seconds: the budget
        :param low: the return of a training after an error
        :return: mean return over the budget, linear between evaluations
        """
        times = [min(point.seconds, seconds) for point in self.points]
        returns = [point.mean_return for point in self.points]
        if self.error:
            times, returns = [*times, times[-1]], [*returns, low]
        steps, means = np.diff([*times, seconds]), np.add(returns, [*returns[1:], returns[-1]]) / 2
        return float(steps @ means) / seconds


def processor_seconds() -> float:
    """
    Read the processor's clock.

    :return: seconds that it has spent on this process and on its children that have ended
    """
    children = os.times()
    return time.process_time() + children.children_user + children.children_system


class Budget(BaseCallback):
    """
    End a training when its processor seconds are spent, and let schedules follow them; evaluate now and then. Evaluations do
    not count. The policy changes only between rollouts, so that is where it is evaluated.

    :param eval_env: environments for one episode each
    :param seconds: processor seconds of training
    :param due: processor seconds after which to evaluate, beside the evaluations before the first rollout and at the end
    :param seed: seed of the evaluations: all algorithms meet the same initial states
    :param report: called after each evaluation
    """

    def __init__(
        self,
        eval_env: VecEnv,
        seconds: float,
        due: Sequence[float],
        seed: int,
        report: Callable[[Point], None] = lambda point: None,
    ) -> None:
        super().__init__()
        self.points: list[Point] = []
        self.paces: list[float] = []
        self.eval_env = eval_env
        self._seconds = seconds
        self._due = [0.0, *due]
        self._eval_seed = 1000 * (seed + 1)
        self._report = report
        self._start = processor_seconds()

    @property
    def spent(self) -> float:
        """Processor seconds of training."""
        return processor_seconds() - self._start

    def _init_callback(self) -> None:
        self.model._update_current_progress_remaining = self._update_progress  # type: ignore[method-assign]

    def _update_progress(self, num_timesteps: int, total_timesteps: int) -> None:
        self.model._current_progress_remaining = max(1 - self.spent / self._seconds, 0.0)

    def _on_training_start(self) -> None:
        self._start = processor_seconds()

    def _on_rollout_start(self) -> None:
        spent = self.spent
        if self._due and spent >= self._due[0]:
            self._due = [seconds for seconds in self._due if seconds > spent]
            self.evaluate()

    def _on_step(self) -> bool:
        return self.spent < self._seconds

    def evaluate(self) -> None:
        """Add a point to the curve; its processor time does not count."""
        spent, before = self.spent, processor_seconds()
        self.paces.append(work_seconds())
        if isinstance(self.eval_env, VecNormalize):
            sync_envs_normalization(self.training_env, self.eval_env)
        self.eval_env.seed(self._eval_seed)
        mean_return, _ = evaluate_policy(self.model, self.eval_env, EVAL_EPISODES)
        simulator_steps = getattr(self.model, "num_simulator_steps", self.num_timesteps)
        point = Point(round(spent, 3), self.num_timesteps, simulator_steps, round(float(mean_return), 4))
        self.points.append(point)
        self._report(point)
        self._start += processor_seconds() - before


def train(make_model: MakeModel, env: VecEnv, budget: Budget) -> Curve:
    """
    Train until the budget is spent.

    :param make_model: makes the model for the environments
    :param env: environments to train in, closed at the end
    :param budget: how long to train
    :return: the learning curve; a policy that diverges ends it with an error
    """
    model = make_model(env)
    error = ""
    try:
        model.learn(_NO_LIMIT, callback=budget)
        budget.evaluate()
    except _DIVERGENCE as exception:
        if not budget.points:
            raise
        error = f"{type(exception).__name__}: {exception}".partition("\n")[0][:200]
    finally:
        env.close()
        budget.eval_env.close()
    return Curve(budget.points, error, float(np.mean(budget.paces)))
