"""The outcome of a comparison, as a table and as learning curves."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from matplotlib.figure import Figure
from rich.box import SIMPLE_HEAD
from rich.table import Table

from sb3_hybrid_grpo.compare.settings import ALGORITHMS
from sb3_hybrid_grpo.compare.training import Evaluation


class Curves(NamedTuple):
    """
    Learning curves of one algorithm, S seeds with P evaluations each.

    :param committed_steps: committed steps, [S, P]
    :param simulator_steps: simulator steps, [S, P]
    :param seconds: training seconds, [S, P]
    :param returns: mean returns, [S, P]
    """

    committed_steps: np.ndarray
    simulator_steps: np.ndarray
    seconds: np.ndarray
    returns: np.ndarray


def curves_by_algorithm(evaluations: Sequence[Evaluation]) -> dict[str, Curves]:
    """
    Sort evaluations into one block of curves per algorithm.

    :param evaluations: evaluations of finished runs with the same settings
    :return: curves by name of the algorithm, in the order of ``ALGORITHMS``
    """
    curves = {}
    for algo in ALGORITHMS:
        points = [point for point in evaluations if point.algo == algo]
        if points:
            columns = np.array([(p.committed_steps, p.simulator_steps, p.seconds, p.return_mean) for p in points])
            n_seeds = len({point.seed for point in points})
            curves[algo] = Curves(*columns.reshape(n_seeds, -1, 4).transpose(2, 0, 1))
    return curves


def summary_table(curves: dict[str, Curves], env: str) -> Table:
    """
    Make the table of final results.

    :param curves: learning curves by name of the algorithm
    :param env: environment id
    :return: one row per algorithm
    """
    table = Table(title=f"{env}, mean ± standard deviation over seeds", box=SIMPLE_HEAD)
    table.add_column("algorithm")
    for column in ("seeds", "final return", "committed\nsteps", "simulator\nsteps", "training\nseconds"):
        table.add_column(column, justify="right", no_wrap=True)
    for algo, curve in curves.items():
        table.add_row(
            algo,
            str(len(curve.returns)),
            _spread(curve.returns[:, -1], 1),
            _spread(curve.committed_steps[:, -1], 0),
            _spread(curve.simulator_steps[:, -1], 0),
            _spread(curve.seconds[:, -1], 1),
        )
    return table


def save_curves(curves: dict[str, Curves], env: str, path: Path) -> None:
    """
    Draw the return against committed steps and against seconds, side by side.

    :param curves: learning curves by name of the algorithm
    :param env: environment id
    :param path: image file to write
    """
    figure = Figure(figsize=(11, 4.2), layout="constrained")
    axes = figure.subplots(1, 2, sharey=True)
    abscissas: tuple[tuple[str, Callable[[Curves], np.ndarray]], ...] = (
        ("committed steps", lambda curve: curve.committed_steps),
        ("training seconds", lambda curve: curve.seconds),
    )
    for axis, (label, abscissa) in zip(axes, abscissas, strict=True):
        for algo, curve in curves.items():
            mean, std = curve.returns.mean(axis=0), _std(curve.returns)
            x = abscissa(curve).mean(axis=0)
            axis.plot(x, mean, label=algo)
            axis.fill_between(x, mean - std, mean + std, alpha=0.2, linewidth=0)
        axis.set_xlabel(label)
        axis.grid(alpha=0.3)
    axes[0].set_ylabel("evaluation return")
    axes[0].legend()
    figure.suptitle(f"{env}: mean and standard deviation over seeds")
    figure.savefig(path, dpi=150)


def _std(values: np.ndarray) -> np.ndarray:
    return values.std(axis=0, ddof=1) if len(values) > 1 else np.zeros_like(values[0])


def _spread(values: np.ndarray, decimals: int) -> str:
    mean, std = values.mean(), _std(values)
    return f"{mean:,.{decimals}f}" + (f" ± {std:,.{decimals}f}" if std > 0 else "")
