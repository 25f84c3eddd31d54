"""The outcome of a comparison, as a table and as learning curves."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from matplotlib.figure import Figure
from rich.box import SIMPLE_HEAD
from rich.markup import escape
from rich.table import Table

from sb3_hybrid_grpo.compare.settings import ALGORITHMS
from sb3_hybrid_grpo.compare.training import Evaluation


class Curves(NamedTuple):
    """
    Learning curves of one algorithm, S seeds with P evaluations each.

    :param committed_steps: committed steps, [S, P]
    :param simulator_steps: simulator steps, [S, P]
    :param seconds: processor seconds of training, or seconds on the clock, [S, P]
    :param returns: mean returns, [S, P]
    :param is_by_clock: whether they are seconds on the clock
    """

    committed_steps: np.ndarray
    simulator_steps: np.ndarray
    seconds: np.ndarray
    returns: np.ndarray
    is_by_clock: bool = False


def curves_by_algorithm(evaluations: Sequence[Evaluation], is_by_clock: bool = False) -> dict[str, Curves]:
    """
    Sort evaluations into one block of curves per algorithm.

    :param evaluations: evaluations of finished runs with the same settings
    :param is_by_clock: whether seconds shall be those on the clock: a process does not see the processor time of its workers
    :return: curves by name of the algorithm, in the order of ``ALGORITHMS``
    """
    curves = {}
    for algo in ALGORITHMS:
        points = [point for point in evaluations if point.algo == algo]
        if points:
            seconds = [point.seconds if is_by_clock else point.cpu_seconds for point in points]
            others = [(point.committed_steps, point.simulator_steps, point.return_mean) for point in points]
            n_seeds = len({point.seed for point in points})
            steps, simulator_steps, returns = np.array(others).reshape(n_seeds, -1, 3).transpose(2, 0, 1)
            curves[algo] = Curves(steps, simulator_steps, np.reshape(seconds, returns.shape), returns, is_by_clock)
    return curves


def summary_table(curves: dict[str, Curves], env: str, notes: Sequence[str] = ()) -> Table:
    """
    Make the table of results: at the end, and when the quickest algorithm was at its end.

    :param curves: learning curves by name of the algorithm
    :param env: environment id
    :param notes: lines to stand below
    :return: one row per algorithm
    """
    title = f"{env}, mean ± standard deviation over seeds"
    table = Table(title=title, box=SIMPLE_HEAD, padding=(0, 0, 0, 1))
    if notes:
        table.caption, table.caption_justify = "\n".join(map(escape, notes)), "left"
    table.add_column("algorithm", no_wrap=True)
    seconds = min(curve.seconds[:, -1].mean() for curve in curves.values())
    clock = "clock" if _is_by_clock(curves) else "CPU"
    columns = ("final\nreturn", f"return\nat {seconds:.0f} s", "committed\nsteps", "simulator\nsteps", f"{clock}\nseconds")
    for column in ("seeds", *columns):
        table.add_column(column, justify="right")
    for algo, curve in curves.items():
        table.add_row(
            algo,
            str(len(curve.returns)),
            _spread(curve.returns[:, -1]),
            _spread(_returns_after(seconds, curve)),
            _spread(curve.committed_steps[:, -1], 0),
            _spread(curve.simulator_steps[:, -1], 0),
            _spread(curve.seconds[:, -1], 0 if seconds >= 10 else 1),
        )
    return table


def draw_curves(curves: dict[str, Curves], env: str) -> Figure:
    """
    Draw the return against committed steps and against seconds, side by side.

    :param curves: learning curves by name of the algorithm
    :param env: environment id
    :return: the figure
    """
    figure = Figure(figsize=(11, 4.2), layout="constrained")
    axes = figure.subplots(1, 2, sharey=True)
    abscissas: tuple[tuple[str, Callable[[Curves], np.ndarray]], ...] = (
        ("committed steps", lambda curve: curve.committed_steps),
        (f"{'' if _is_by_clock(curves) else 'processor '}seconds of training", lambda curve: curve.seconds),
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
    return figure


def _is_by_clock(curves: dict[str, Curves]) -> bool:
    return any(curve.is_by_clock for curve in curves.values())


def _returns_after(seconds: float, curve: Curves) -> np.ndarray:
    """Return those of the seeds after so many seconds, linear between evaluations."""
    return np.array([np.interp(seconds, *points) for points in zip(curve.seconds, curve.returns, strict=True)])


def _std(values: np.ndarray) -> np.ndarray:
    return values.std(axis=0, ddof=1) if len(values) > 1 else np.zeros_like(values[0])


def _spread(values: np.ndarray, decimals: int | None = None) -> str:
    mean, std = values.mean(), _std(values)
    if decimals is None:
        decimals = 0 if max(abs(mean), std) >= 100 else 1
    return f"{mean:,.{decimals}f}" + (f" ± {std:,.{decimals}f}" if std > 0 else "")
