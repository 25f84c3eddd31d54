"""Figures of the claims: curves over all tasks, and those of each task."""

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from benchmarks.learning.budgeted.claims.results import Claims
from benchmarks.learning.budgeted.claims.time_to_score import AXES, scores_at
from benchmarks.learning.statistics import interquartile_means
from benchmarks.png import save_png

_BUDGETS = tuple(np.linspace(0.05, 1, 20).tolist())
# Runs of one budget end a little apart.
_ROUNDING = 0.01
_MOMENTS = 121
_COLUMNS = 3
_LABELS = {
    "hybrid_grpo": "HybridGRPO",
    "ppo": "PPO",
    "ppo_16": "PPO, 16 environments",
    "trpo": "TRPO",
    "trpo_slower": "TRPO",
    "sac": "SAC",
    "tqc": "TQC",
    "crossq": "CrossQ",
    "qrdqn": "QR-DQN",
}


def draw_aggregates(claims: Claims, methods: Sequence[str], path: Path) -> None:
    """
    Draw IQM curves over all tasks, on each axis, each as far as it was followed on all of them.

    :param claims: finished runs
    :param methods: names of methods that every task has
    :param path: PNG file
    """
    figure = Figure(figsize=(5 * len(AXES), 4), layout="constrained")
    for axis, (name, panel) in enumerate(zip(AXES, figure.subplots(1, len(AXES), sharey=True), strict=True)):
        means = interquartile_means(claims.normalized_scores(methods, axis, _BUDGETS))
        for method in methods:
            n = np.searchsorted(_BUDGETS, claims.followed(method, methods[0], axis) + _ROUNDING)
            (line,) = panel.plot(_BUDGETS[:n], means.points[method][:n], label=_label(method))
            panel.fill_between(_BUDGETS[:n], *means.intervals[method][:, :n], color=line.get_color(), alpha=0.2)
        panel.set_xlabel(f"{name}, share of those of {methods[0]}")
    figure.legend(*panel.get_legend_handles_labels(), loc="outside upper center", ncols=len(methods))
    figure.supylabel("IQM of normalised scores")
    save_png(figure, path)


def draw_tasks(claims: Claims, methods: Sequence[str], path: Path) -> None:
    """
    Draw the mean return on each task over processor seconds, and where single runs are.

    :param claims: finished runs
    :param methods: names of methods that every task has
    :param path: PNG file
    """
    n_rows = math.ceil(len(claims.curves) / _COLUMNS)
    figure = Figure(figsize=(4 * _COLUMNS, 2.9 * n_rows), layout="constrained")
    panels = figure.subplots(n_rows, _COLUMNS, squeeze=False).ravel()
    moments = np.linspace(0, claims.seconds, _MOMENTS)
    for panel, (task, curves) in zip(panels, claims.curves.items(), strict=False):
        for method in methods:
            returns = scores_at(curves[method], moments.tolist(), 0)
            (line,) = panel.plot(moments, returns.mean(axis=0), label=_label(method) + _number_of_seeds(claims, method))
            panel.fill_between(moments, returns.min(axis=0), returns.max(axis=0), color=line.get_color(), alpha=0.12)
        panel.set_title(task, loc="left", fontsize="medium")
        panel.grid(alpha=0.3)
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside upper center", ncols=len(methods))
    for panel in panels[len(claims.curves) :]:
        panel.set_axis_off()
    figure.supxlabel("processor seconds of training")
    figure.supylabel("return, mean and extremes of the seeds")
    save_png(figure, path)


def _label(method: str) -> str:
    return _LABELS.get(method, method)


def _number_of_seeds(claims: Claims, method: str) -> str:
    numbers = {len(by_method[method]) for by_method in claims.curves.values()}
    return f" ({' to '.join(map(str, sorted({min(numbers), max(numbers)})))} seeds)"
