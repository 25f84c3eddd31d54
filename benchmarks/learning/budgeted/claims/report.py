"""Tables and figures of the claims."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from scipy import stats

from benchmarks.learning.budgeted.claims.results import SHARES, Claims
from benchmarks.learning.budgeted.claims.time_to_score import AXES

_REPETITIONS = 400
_BUDGETS = tuple(np.linspace(0.05, 1, 20).tolist())


def print_report(claims: Claims, ours: str, figures: Path | None = None) -> None:
    """
    Print tables in Markdown, and draw curves.

    :param claims: finished runs
    :param ours: name of the method that the others are compared with
    :param figures: folder of the figures, none by default
    """
    _print_paces(claims)
    for task in claims.curves:
        _print_task(claims, task)
    for axis, name in enumerate(AXES):
        _print_ratios(claims, ours, axis, name)
    methods = common_methods(claims, ours)
    if ours in methods and len(methods) > 1:
        _print_aggregates(claims, methods)
        _print_at_equal_steps(claims, methods)
        if figures is not None:
            _draw(claims, methods, figures)


def common_methods(claims: Claims, ours: str) -> list[str]:
    """
    List the methods that every task has, ours first.

    :param claims: finished runs
    :param ours: name of the one to list first
    :return: their names
    """
    common = set.intersection(*(set(by_method) for by_method in claims.curves.values())) if claims.curves else set()
    return sorted(common, key=lambda method: (method != ours, method))


def interquartile_means(scores: dict[str, np.ndarray]) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """
    Average the middle half of all runs, at each of several budgets.

    :param scores: normalised scores by method, [seeds, tasks, budgets]
    :return: IQM [budgets] and its 95 % interval [2, budgets] by method
    """
    from rliable import library

    def iqm(of_method: np.ndarray) -> np.ndarray:
        return np.asarray(stats.trim_mean(of_method.reshape(-1, of_method.shape[-1]), proportiontocut=0.25))

    np.random.seed(0)  # rliable draws from NumPy's global generator
    means, intervals = library.get_interval_estimates(scores, iqm, reps=_REPETITIONS)
    return means, intervals


def _print_paces(claims: Claims) -> None:
    print("\n## Processor seconds of a fixed piece of work beside the runs: where they differ, those of the runs do\n")
    print("| method | mean [extremes] | runs without |\n|---|---|---|")
    for method, paces in claims.paces.items():
        known = [pace for pace in paces if np.isfinite(pace)]
        mean = f"{np.mean(known):.4f} [{min(known):.4f}, {max(known):.4f}]" if known else ""
        print(f"| {method} | {mean} | {len(paces) - len(known)} |")


def _print_task(claims: Claims, task: str) -> None:
    scale = claims.scales[task]
    print(f"\n## {task}: best final score {scale.best:.1f}, random actions {scale.base:.1f}\n")
    print("Restricted mean to a share of the best final score [95 % interval], and runs that got there.\n")
    print("| method | final score |" + "".join(f" {share:.0%}, {name} |" for name in AXES for share in SHARES))
    print("|---|---|" + "---|" * len(AXES) * len(SHARES))
    cells = {method: f"| {method} | {_mean_final(claims, task, method)} |" for method in claims.curves[task]}
    for axis in range(len(AXES)):
        for share in SHARES:
            for method, interval in claims.restricted_means(task, share, axis).items():
                reached = claims.times(task, method, share, axis).reached
                ends = f"{interval.estimate:,.0f} [{interval.low:,.0f}, {interval.high:,.0f}]"
                cells[method] += f" {ends}, {reached.sum()}/{len(reached)} |"
    print("\n".join(cells.values()))


def _mean_final(claims: Claims, task: str, method: str) -> str:
    finals = [curve[-1][3] for curve in claims.curves[task][method]]
    return f"{np.mean(finals):.1f} ± {np.std(finals):.1f}"


def _print_ratios(claims: Claims, ours: str, axis: int, name: str) -> None:
    print(f"\n## {name.capitalize()} to a score, {ours} over the best of {', '.join(claims.baselines)}\n")
    print("nan: nobody got there, or untrained policies have it.\n")
    print("| share | median | " + " | ".join(claims.curves) + " |\n|---|---|" + "---|" * len(claims.curves))
    for share in SHARES:
        by_task, median = claims.ratios(ours, share, axis)
        print(f"| {share:.0%} | {median} | " + " | ".join(f"{by_task.get(task, np.nan):.2f}" for task in claims.curves) + " |")


def _print_aggregates(claims: Claims, methods: Sequence[str]) -> None:
    from rliable import library, metrics

    ours, *others = methods
    final = {method: scores[..., -1] for method, scores in claims.normalized_scores(methods, 0, (1.0,)).items()}
    means, intervals = interquartile_means({method: scores[..., None] for method, scores in final.items()})
    np.random.seed(0)
    pairs = {method: (final[ours], final[method]) for method in others}
    better, better_ends = library.get_interval_estimates(pairs, metrics.probability_of_improvement, reps=_REPETITIONS)
    print(f"\n## After {claims.seconds:g} processor seconds, all tasks that every method has\n")
    print(f"| method | IQM | probability that {ours} is better |\n|---|---|---|")
    for method in methods:
        low, high = np.ravel(intervals[method])
        chance = ""
        if method in better:
            chance_low, chance_high = np.ravel(better_ends[method])
            chance = f"{float(better[method]):.2f} [{chance_low:.2f}, {chance_high:.2f}]"
        print(f"| {method} | {means[method].item():.2f} [{low:.2f}, {high:.2f}] | {chance} |")


def _print_at_equal_steps(claims: Claims, methods: Sequence[str]) -> None:
    print("\n## IQM after as many steps as every method has taken, all tasks that every method has\n")
    print(f"| method | {' | '.join(AXES[1:])} |\n|---|" + "---|" * (len(AXES) - 1))
    cells = {method: f"| {method} |" for method in methods}
    for axis in range(1, len(AXES)):
        means, intervals = interquartile_means(claims.normalized_scores(methods, axis, (1.0,), methods))
        for method in methods:
            low, high = np.ravel(intervals[method])
            cells[method] += f" {means[method].item():.2f} [{low:.2f}, {high:.2f}] |"
    print("\n".join(cells.values()))


def _draw(claims: Claims, methods: Sequence[str], figures: Path) -> None:
    from matplotlib.figure import Figure

    figures.mkdir(parents=True, exist_ok=True)
    figure = Figure(figsize=(5 * len(AXES), 4), layout="constrained")
    for axis, (name, axes) in enumerate(zip(AXES, figure.subplots(1, len(AXES), sharey=True), strict=True)):
        means, intervals = interquartile_means(claims.normalized_scores(methods, axis, _BUDGETS))
        for method in methods:
            (line,) = axes.plot(_BUDGETS, means[method], label=method)
            axes.fill_between(_BUDGETS, *intervals[method], color=line.get_color(), alpha=0.2)
        axes.set_xlabel(f"{name}, share of those of {methods[0]}")
    axes.legend()
    figure.supylabel("IQM of normalised scores")
    figure.savefig(figures / f"claims_{claims.seconds:g}.png", dpi=120)
