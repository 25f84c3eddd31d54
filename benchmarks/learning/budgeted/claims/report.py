"""Tables and figures of the claims."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from benchmarks.learning.budgeted.claims.results import SHARES, Claims
from benchmarks.learning.budgeted.claims.time_to_score import AXES, scores_at

_PUBLISHED_STEPS = (100_000.0, 300_000.0)
"""After which others report returns."""


def print_report(claims: Claims, ours: str, figures: Path | None = None) -> None:
    """
    Print tables in Markdown, and draw curves.

    :param claims: finished runs
    :param ours: name of the method that the others are compared with
    :param figures: where the figures begin: ``a/b`` has them in ``a/b_curves.png`` and ``a/b_tasks.png``; none by default
    """
    _print_paces(claims)
    for task in claims.curves:
        _print_task(claims, task)
    for axis, name in enumerate(AXES):
        _print_ratios(claims, ours, axis, name)
    _print_published_steps(claims)
    methods = common_methods(claims, ours)
    if ours in methods and len(methods) > 1:
        _print_aggregates(claims, methods)
        _print_at_equal_steps(claims, methods)
        if figures is not None:
            from benchmarks.learning.budgeted.claims.figures import draw_aggregates, draw_tasks

            figures.parent.mkdir(parents=True, exist_ok=True)
            draw_aggregates(claims, methods, figures.with_name(f"{figures.name}_curves.png"))
            draw_tasks(claims, methods, figures.with_name(f"{figures.name}_tasks.png"))


def common_methods(claims: Claims, ours: str) -> list[str]:
    """
    List the methods that every task has, ours first.

    :param claims: finished runs
    :param ours: name of the one to list first
    :return: their names
    """
    common = set.intersection(*(set(by_method) for by_method in claims.curves.values())) if claims.curves else set()
    return sorted(common, key=lambda method: (method != ours, method))


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


def _print_published_steps(claims: Claims) -> None:
    """Print what can be compared with tables of papers, where every run of a method went so far."""
    print("\n## Return after so many committed steps, ± one standard deviation over seeds\n")
    print(
        f"| task | method | {' | '.join(f'{steps:,.0f}' for steps in _PUBLISHED_STEPS)} |\n|---|---|"
        + "---|" * len(_PUBLISHED_STEPS)
    )
    for task, by_method in claims.curves.items():
        for method, curves in by_method.items():
            shortest = min(curve[-1][1] for curve in curves)
            returns = scores_at(curves, _PUBLISHED_STEPS, 1)
            cells = [
                f" {of_runs.mean():,.1f} ± {of_runs.std():,.1f} |" if steps <= shortest else " |"
                for steps, of_runs in zip(_PUBLISHED_STEPS, returns.T, strict=True)
            ]
            print(f"| {task} | {method} |{''.join(cells)}")


def _print_aggregates(claims: Claims, methods: Sequence[str]) -> None:
    from benchmarks.learning.statistics import improvements, interquartile_means

    ours, *others = methods
    final = claims.normalized_scores(methods, 0, (1.0,))
    means = interquartile_means(final)
    runs = {method: scores[..., -1] for method, scores in final.items()}
    better = {other: improvements({ours: runs[ours], other: runs[other]}, other) for other in others}
    print(f"\n## After {claims.seconds:g} processor seconds, all tasks that every method has\n")
    print(f"| method | IQM | probability that {ours} is better |\n|---|---|---|")
    for method in methods:
        chance = better[method].text(ours) if method in better else ""
        print(f"| {method} | {means.text(method)} | {chance} |")


def _print_at_equal_steps(claims: Claims, methods: Sequence[str]) -> None:
    from benchmarks.learning.statistics import interquartile_means

    print("\n## IQM after as many steps as every method has taken, all tasks that every method has\n")
    print(f"| method | {' | '.join(AXES[1:])} |\n|---|" + "---|" * (len(AXES) - 1))
    cells = {method: f"| {method} |" for method in methods}
    for axis in range(1, len(AXES)):
        means = interquartile_means(claims.normalized_scores(methods, axis, (1.0,), methods))
        for method in methods:
            cells[method] += f" {means.text(method)} |"
    print("\n".join(cells.values()))
