"""Train one run of a comparison."""

from typing import NamedTuple

from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm

from sb3_hybrid_grpo.compare.curve import CurveCallback
from sb3_hybrid_grpo.compare.pool import Report
from sb3_hybrid_grpo.compare.settings import Run, Settings, build_model, make_envs


class Evaluation(NamedTuple):
    """
    A point of a learning curve and whose it is: a row of ``results.csv``. For the numbers see ``Point``.

    :param algo: name of the algorithm
    :param env: environment id
    :param seed: seed of the run
    """

    algo: str
    env: str
    seed: int

    committed_steps: int
    simulator_steps: int
    seconds: float
    cpu_seconds: float
    return_mean: float
    return_std: float


def train(settings: Settings, run: Run, report: Report) -> tuple[OnPolicyAlgorithm, list[Evaluation]]:
    """
    Train one run from scratch.

    :param settings: settings of the comparison
    :param run: algorithm and seed
    :param report: called a few times per second with the committed steps and the latest mean return
    :return: the trained model and its learning curve
    """
    env, eval_env = make_envs(settings, run.seed)
    curve = CurveCallback(eval_env, settings.eval_every, run.seed, report)
    model = build_model(settings, run, env).learn(settings.timesteps, callback=curve)
    env.close()
    evaluations = [
        Evaluation(
            run.algo,
            settings.env,
            run.seed,
            point.committed_steps,
            point.simulator_steps,
            round(point.seconds, 3),
            round(point.cpu_seconds, 3),
            point.return_mean,
            point.return_std,
        )
        for point in curve.points
    ]
    return model, evaluations
