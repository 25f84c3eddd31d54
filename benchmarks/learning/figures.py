"""Figures of a suite: aggregated curves, profiles and improvements by rliable, and every environment's own curves."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from matplotlib import colormaps
from matplotlib.figure import Figure
from rliable import plot_utils

from benchmarks.learning.scores import AXES, SuiteRows
from benchmarks.learning.statistics import Estimates, interquartile_means, profiles
from benchmarks.png import save_png

SHARES = np.linspace(0, 1, 21)
THRESHOLDS = np.linspace(0, 2.5, 51)
_FONT = "medium"


def draw_curves(suite_rows: SuiteRows, path: Path) -> None:
    """
    Draw IQM curves over the share of PPO's budget, on each axis.

    :param suite_rows: rows of a suite
    :param path: PNG file
    """
    figure = Figure(figsize=(13, 4.2), layout="constrained")
    for axis, panel in enumerate(figure.subplots(1, len(AXES), sharey=True)):
        estimates = interquartile_means(suite_rows.scores(axis, SHARES))
        plot_utils.plot_sample_efficiency_curve(
            SHARES,
            *estimates,
            colors=colors_of(suite_rows),
            xlabel=f"{AXES[axis]} / PPO's",
            ylabel="" if axis else "IQM of normalised score",
            ax=panel,
            marker="",
            labelsize=_FONT,
            ticklabelsize=_FONT,
        )
    panel.legend(fontsize="small")
    save_png(figure, path)


def draw_comparisons(suite_rows: SuiteRows, improvements: Estimates, baseline: str, path: Path) -> None:
    """
    Draw performance profiles and probabilities of improvement, at equal committed steps.

    :param suite_rows: rows of a suite
    :param improvements: probabilities to be better than the baseline
    :param baseline: configuration that the others are compared with
    :param path: PNG file
    """
    scores = {name: values[..., -1] for name, values in suite_rows.scores(0, SHARES).items()}
    figure = Figure(figsize=(13, 1.8 + max(2.4, 0.35 * len(scores))), layout="constrained")
    left, right = figure.subplots(1, 2)
    points, intervals = profiles(scores, THRESHOLDS.tolist())
    colors = colors_of(suite_rows)
    fonts = {"labelsize": _FONT, "ticklabelsize": _FONT}
    plot_utils.plot_performance_profiles(
        points, THRESHOLDS, performance_profile_cis=intervals, colors=colors, xlabel="normalised score τ", ax=left, **fonts
    )
    left.set_ylabel("share of runs above τ", fontsize=_FONT)
    left.legend(fontsize="small")
    others = [name for name in scores if name != baseline]
    plot_utils.plot_probability_of_improvement(
        {f"{name},{baseline}": improvements.points[name] for name in others},
        {f"{name},{baseline}": np.ravel(improvements.intervals[name]) for name in others},
        colors=[colors[name] for name in others],
        ax=right,
        xlabel="P(X > Y)",
        left_ylabel="X",
        right_ylabel="Y",
        **fonts,
    )
    right.axvline(0.5, color="grey", linestyle="dashed")
    save_png(figure, path)


def draw_environments(suite_rows: SuiteRows, path: Path) -> None:
    """
    Draw the mean return in each environment, ± one standard deviation over seeds, over steps and over seconds.

    :param suite_rows: rows of a suite
    :param path: PNG file
    """
    environments = [e for e in suite_rows.suite.environments if any(suite_rows.rows[c, e] for c in suite_rows.configs)]
    axes = [AXES.index(name) for name in ("committed steps", "processor seconds")]
    figure = Figure(figsize=(11, 2.8 * len(environments)), layout="constrained")
    panels = figure.subplots(len(environments), len(axes), squeeze=False, sharey="row")
    colors = colors_of(suite_rows)
    for environment, row in zip(environments, panels, strict=True):
        for axis, panel in zip(axes, row, strict=True):
            for config in suite_rows.configs:
                points = [np.array(found.curve) for found in suite_rows.rows[config, environment]]
                if not points:
                    continue
                grid = np.linspace(0, np.mean([p[-1, axis] for p in points]), len(points[0]))
                returns = np.array([np.interp(grid, p[:, axis], p[:, -1]) for p in points])
                mean, spread = returns.mean(axis=0), returns.std(axis=0)
                panel.plot(grid, mean, color=colors[config], label=config)
                panel.fill_between(grid, mean - spread, mean + spread, color=colors[config], alpha=0.15)
            panel.set_xlabel(AXES[axis])
            panel.grid(alpha=0.3)
        row[0].set_ylabel("return")
        row[0].set_title(environment.name, loc="left")
    panels[0, 0].legend(fontsize="small")
    save_png(figure, path)


def colors_of(suite_rows: SuiteRows) -> Mapping[str, tuple[float, ...]]:
    """
    Choose colours.

    :param suite_rows: rows of a suite
    :return: a colour for each configuration
    """
    palette = colormaps["tab10" if len(suite_rows.configs) <= 10 else "tab20"]
    return {config: palette(i) for i, config in enumerate(suite_rows.configs)}
