"""
What the rows of ``benchmarks.speed.throughput`` say, as a table and as a profile.

    python -m benchmarks.speed.throughput_report

draws ``benchmarks/results/profile.png`` from the profile beside it.
"""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks import HERE
from benchmarks.provenance import provenance
from benchmarks.speed.timed_run import ROLLOUT_PHASES, Run
from benchmarks.tables import print_aligned
from sb3_hybrid_grpo.compare.csv_files import Row, read_rows, write_rows

RESULTS = HERE / "results"
TABLE = {
    "committed steps/s": "committed_steps_per_second",
    "simulator steps/s": "simulator_steps_per_second",
    "rollout s": "rollout_seconds",
    "branching s": "branching_seconds",
    "values s": "values_seconds",
    "update s": "update_seconds",
    "peak RSS MB": "peak_rss_mb",
}
PROFILE = ("acting", *ROLLOUT_PHASES, "update", "other")


def grouped(runs: Iterable[Run], rows: Iterable[Row]) -> dict[Run, list[Row]]:
    """
    Gather the repetitions of each configuration.

    :param runs: runs of all repetitions
    :param rows: rows of runs, those of others among them
    :return: the rows of each configuration that has some; its ``pair`` is 0
    """
    rows = list(rows)
    groups: dict[Run, list[Row]] = {}
    for run in runs:
        found = [row for row in rows if run.columns().items() <= row.items()]
        if found:
            groups.setdefault(run._replace(pair=0), []).extend(found)
    return groups


def numbers(rows: Iterable[Row], column: str) -> list[float]:
    """
    Read a column.

    :param rows: rows of runs
    :param column: its name
    :return: its numbers where there are any
    """
    return [float(row[column]) for row in rows if row[column]]


def print_table(runs: Iterable[Run], rows: Iterable[Row]) -> None:
    """
    Print the medians over repetitions, and the smallest and largest ratios.

    :param runs: runs of all repetitions
    :param rows: rows of runs
    """
    lines = [["environment", "E", "algorithm", "N", *TABLE, "time/step / PPO's", "processor's"]]
    for run, found in grouped(runs, rows).items():
        columns = [numbers(found, column) for column in TABLE.values()]
        ratios = [numbers(found, column) for column in ("ratio_to_ppo", "cpu_ratio_to_ppo")]
        lines.append(
            [run.environment, str(run.n_envs), run.algorithm, str(run.n_samples)]
            + [f"{median(column):.4g}" if column else "" for column in columns]
            + [f"{median(column):.2f} [{min(column):.2f}, {max(column):.2f}]" if column else "" for column in ratios]
        )
    print_aligned(lines)


def microseconds(row: Row) -> dict[str, float]:
    """
    Split the time of a run.

    :param row: a row
    :return: microseconds per committed step in each phase of ``PROFILE``: what is left of rollouts is sampling and buffering,
        what is left of the total is SB3's loop around rollouts and updates
    """
    phases = {phase: float(row[f"{phase}_seconds"]) for phase in (*ROLLOUT_PHASES, "update")}
    phases["acting"] = float(row["rollout_seconds"]) - sum(phases[phase] for phase in ROLLOUT_PHASES)
    phases["other"] = float(row["seconds"]) - float(row["rollout_seconds"]) - phases["update"]
    return {phase: 1e6 * phases[phase] / float(row["committed_steps"]) for phase in PROFILE}


def write_profile(runs: Iterable[Run], rows: Iterable[Row], folder: Path) -> None:
    """
    Print and write where the time of a committed step goes, over N and beside PPO.

    :param runs: runs of all repetitions, with one environment
    :param rows: rows of runs
    :param folder: where to write ``profile.csv`` and ``profile.png``
    """
    profile = []
    for run, found in grouped(runs, rows).items():
        splits = [microseconds(row) for row in found]
        medians = {f"{phase}_us": round(median(split[phase] for split in splits), 2) for phase in PROFILE}
        total = round(median(sum(split.values()) for split in splits), 2)
        setting = {name: value for name, value in run._asdict().items() if name != "pair"}
        profile.append({**setting, "pairs": len(found), **medians, "total_us": total})
    if not profile:
        return
    phases = [f"{phase}_us" for phase in PROFILE] + ["total_us"]
    cells = [[line["algorithm"], str(line["n_samples"]), *(f"{line[phase]:.1f}" for phase in phases)] for line in profile]
    print_aligned([["algorithm", "N", *phases], *cells])

    origin = provenance()
    write_rows(folder / "profile.csv", [*profile[0], *origin], (line | origin for line in profile))
    draw_profile(profile, folder / "profile.png")


def draw_profile(profile: Sequence[Mapping[str, Any]], path: Path) -> None:
    """
    Draw the phases as stacked bars.

    :param profile: lines of ``profile.csv``
    :param path: PNG file
    """
    try:
        from matplotlib.figure import Figure

        from benchmarks.png import save_png
    except ImportError:
        print("matplotlib is missing: no figure")
        return
    figure = Figure(figsize=(10, 6), layout="constrained")
    axis = figure.subplots()
    labels = ["PPO" if line["algorithm"] == "ppo" else f"N = {line['n_samples']}" for line in profile]
    bottom = [0.0] * len(profile)
    for phase in PROFILE:
        heights = [float(line[f"{phase}_us"]) for line in profile]
        axis.bar(labels, heights, bottom=bottom, label=phase)
        bottom = [low + height for low, height in zip(bottom, heights, strict=True)]
    axis.set_ylabel("µs per committed step")
    axis.set_title(f"{profile[0]['environment']}, n_envs = {profile[0]['n_envs']}")
    axis.grid(axis="y", alpha=0.3)
    axis.legend(reverse=True)
    save_png(figure, path)


if __name__ == "__main__":
    draw_profile(read_rows(RESULTS / "profile.csv"), RESULTS / "profile.png")
