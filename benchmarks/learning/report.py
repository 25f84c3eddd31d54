"""
Write ``benchmarks/RESULTS.md`` and its figures from the rows of ``benchmarks.learning.run``.

    python -m benchmarks.learning.report

A suite is reported once it was begun, or other suites have runs of all its configurations. What a person concludes from it
belongs in ``suites/NAME.md`` and is copied into the report.
"""

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from benchmarks import HERE
from benchmarks.gradients.advantage_variance import RESULTS as VARIANCES
from benchmarks.gradients.advantage_variance import table
from benchmarks.learning.experiments import SUITES, load_suite
from benchmarks.learning.random_scores import EPISODES, random_scores
from benchmarks.learning.rows import RESULTS, Row, read_rows
from benchmarks.learning.scores import AXES, REFERENCE, SuiteRows, final_return, gather, steps_to_reach
from sb3_hybrid_grpo.compare import csv_files
from sb3_hybrid_grpo.compare.extras import extra

_INTRODUCTION = f"""# Results

Written by `python -m benchmarks.learning.report` from the rows in `benchmarks/results/learning`; edit the conclusions in
`benchmarks/suites/*.md`, not here.

Returns are means over 10 episodes with deterministic actions and raw rewards. The normalised score of an environment is 0 for
random actions ({EPISODES} episodes, `benchmarks/random_scores.json`) and 1 for the mean final return of PPO after the same
committed steps, with undisturbed rewards. Equal budgets are PPO's mean budgets in that environment; between evaluations scores
are interpolated, and a run that ends earlier keeps its last score. A run
trains in one thread: its processor seconds, which leave evaluations out, are its wall-clock time on a free core. Seconds of
several machines are converted to those of one: divided by how much longer PPO took at the same commit than on average, fitted
over all environments that it was trained in (`benchmarks/speed/machine_speeds.py`). Aggregates are
interquartile means (IQM) with 95 % stratified bootstrap intervals over environments and seeds, computed by
[rliable](https://github.com/google-research/rliable).
"""


def main(argv: Sequence[str] | None = None) -> int:
    """
    Write the report.

    :param argv: arguments of the command line, ``sys.argv`` by default
    :return: exit code: 1 if there is nothing to report
    """
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.learning.report", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--suites", nargs="+", default=SUITES, help="names, or paths of files (default: all)")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the CSV files")
    parser.add_argument("--variances", type=Path, default=VARIANCES, help="rows of gradients.advantage_variance")
    parser.add_argument("--output", type=Path, default=HERE, help="folder of RESULTS.md and figures/")
    parser.add_argument("--repetitions", type=int, default=2000, help="bootstrap repetitions (default: %(default)s)")
    options = parser.parse_args(argv)
    with extra(parser, "sb3-hybrid-grpo[bench]", ("rliable", "matplotlib")):
        import benchmarks.learning.figures  # noqa: F401

    rows = read_rows(options.results)
    suites = [load_suite(name) for name in options.suites]
    scores = random_scores({row.settings["id"] for row in rows})
    reported = [found for found in (gather(suite, rows, scores) for suite in suites) if _is_worth_a_report(found)]
    if not reported:
        print(f"nothing to report in {options.results}")
        return 1
    figures = options.output / "figures"
    figures.mkdir(parents=True, exist_ok=True)
    sections = [section for found in reported for section in _sections(found, options.repetitions, figures)]
    sections += _variance_section(options.variances, options.repetitions)
    (options.output / "RESULTS.md").write_text("\n".join([_INTRODUCTION, *sections]), encoding="utf-8")
    print(f"{options.output / 'RESULTS.md'}: {', '.join(found.suite.name for found in reported)}")
    return 0


def _variance_section(path: Path, repetitions: int) -> Iterator[str]:
    from benchmarks.learning.statistics import interquartile_means

    rows = csv_files.read_rows(path)
    if not rows:
        return
    question = "Is the variance of Hybrid GRPO's advantages lower than PPO's, and is its gradient any better for it?"
    yield f"## advantage_variance\n\n{question}\n"
    conclusions = HERE / "suites" / "advantage_variance.md"
    if conclusions.exists():
        yield conclusions.read_text(encoding="utf-8")
    header = ["environment", "estimator", "variance / PPO's", "agreement of batches", "share of the action"]

    def cells(numbers: np.ndarray) -> list[str]:
        means = interquartile_means({"": numbers[:, None]}, repetitions)
        return [means.text("", i) for i in range(numbers.shape[1])]

    command = "`python -m benchmarks.gradients.advantage_variance && python -m benchmarks.learning.report`"
    yield f"IQM over seeds: {command}\n\n{_table(header, list(table(rows, cells)))}\n"


def _is_worth_a_report(found: SuiteRows) -> bool:
    begun = any(row.columns["suite"] == found.suite.name for rows in found.rows.values() for row in rows)
    return begun or set(found.suite.configs) <= set(found.configs)


def _sections(found: SuiteRows, repetitions: int, figures: Path) -> Iterator[str]:
    from benchmarks.learning.figures import draw_environments

    suite = found.suite
    command = f"`python -m benchmarks.learning.run --suite {suite.name} && python -m benchmarks.learning.report`"
    yield f"## {suite.name}\n\n{suite.question}\n\n{_origin(found)}\n"
    conclusions = HERE / "suites" / f"{suite.name}.md"
    if conclusions.exists():
        yield conclusions.read_text(encoding="utf-8")
    if not found.has_one_machine:
        yield "Processor seconds are those of several machines, as measured: PPO was not trained on each of them.\n"
    comparable = found.comparable()
    left_out = [environment.name for environment in suite.environments if environment not in comparable]
    if left_out:
        yield f"Not in the aggregates: {', '.join(left_out)}. Runs are missing, or PPO is no better than random actions.\n"
    if comparable:
        behind = [config for config in found.configs if config not in found.compared()]
        if behind:
            yield f"Not in the aggregates, as seeds are missing: {', '.join(behind)}.\n"
        yield from _aggregates(found, repetitions, figures, command)
    yield f"By environment: {command}\n\n{_environment_table(found)}\n"
    path = figures / f"{suite.name}_environments.png"
    draw_environments(found, path)
    yield f"![Curves of each environment]({path.parent.name}/{path.name})\n"


def _aggregates(found: SuiteRows, repetitions: int, figures: Path, command: str) -> Iterator[str]:
    from benchmarks.learning.figures import draw_comparisons, draw_curves
    from benchmarks.learning.statistics import improvements, interquartile_means, ratios

    finals = [found.scores(axis, [1.0]) for axis, _ in enumerate(AXES)]
    stacked = {config: np.concatenate([scores[config] for scores in finals], axis=-1) for config in finals[0]}
    means = interquartile_means(stacked, repetitions)
    baseline = _best_ppo(found, means.points)
    quotients = ratios(stacked, baseline, repetitions)
    chances = [improvements({config: own[..., 0] for config, own in scores.items()}, baseline) for scores in finals]
    n_seeds, n_environments, _ = stacked[baseline].shape
    for axis, chance in enumerate(chances):
        lines = [[config, means.text(config, axis), quotients.text(config, axis), chance.text(config)] for config in stacked]
        header = ["configuration", "IQM", f"IQM / that of {baseline}", f"P(better than {baseline})"]
        title = f"At equal {AXES[axis]} (environments: {n_environments}, seeds: {n_seeds})"
        yield f"{title}: {command}\n\n{_table(header, lines)}\n"
    for name, title in (("curves", "IQM over each axis"), ("comparisons", "Performance profiles, probability of improvement")):
        path = figures / f"{found.suite.name}_{name}.png"
        if name == "curves":
            draw_curves(found, path)
        else:
            draw_comparisons(found, chances[0], baseline, path)
        yield f"![{title}]({path.parent.name}/{path.name})\n"


def _best_ppo(found: SuiteRows, means: dict[str, np.ndarray]) -> str:
    """Return the PPO to beat: the one with the best IQM, where a suite has several."""
    candidates = [
        config
        for config in found.compared()
        if any(row.settings["algorithm"] == "ppo" for environment in found.scales for row in found.rows[config, environment])
    ]
    return max(candidates, key=lambda config: float(means[config][0]), default=REFERENCE)


def _environment_table(found: SuiteRows) -> str:
    header = ["environment", "configuration", "seeds", "final return", "normalised", "steps to PPO's final return (median)"]
    header += ["simulator steps", AXES[2]]
    lines = []
    for environment in found.suite.environments:
        scale = found.scales.get(environment)
        for config in found.configs:
            rows = found.rows[config, environment]
            if not rows:
                continue
            finals = np.array([final_return(row) for row in rows])
            normalized, reached = "", ""
            if scale is not None:
                normalized = f"{scale.normalize(finals).mean():.2f}"
                steps = np.median([steps_to_reach(row, scale.reference) for row in rows])
                reached = f"{steps:,.0f}" if np.isfinite(steps) else "not reached"
            _, simulator_steps, seconds, _ = np.mean([row.curve[-1] for row in rows], axis=0)
            final = f"{finals.mean():.1f} ± {finals.std():.1f}"
            costs = (f"{simulator_steps:,.0f}", f"{seconds:,.0f}")
            lines.append([environment.name, config, str(len(rows)), final, normalized, reached, *costs])
    return _table(header, lines)


def _table(header: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    rule = ["---", *["---:"] * (len(header) - 1)]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in (header, rule, *lines))


def _origin(found: SuiteRows) -> str:
    rows: list[Row] = [row for rows in found.rows.values() for row in rows]
    commits = sorted({row.columns["commit"] for row in rows})
    packages = ("torch", "stable-baselines3", "gymnasium", "mujoco")
    versions = [f"{name} {' and '.join(sorted({row.columns[name] for row in rows}))}" for name in packages]
    return f"{len(rows)} runs of commit {', '.join(commits)} with {', '.join(versions)}."


if __name__ == "__main__":
    raise SystemExit(main())
