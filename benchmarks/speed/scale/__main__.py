"""
What more workers bring to HybridGRPO (K=8, N=2), measured with one and two of them, and projected to 512.

    python -m benchmarks.speed.scale
    python -m benchmarks.speed.scale --report

Environments are in processes, and messages are held up as if the workers were further away. Written are the processor time of
the main process (collecting, updating) and of the workers, messages, bytes, and the seconds that these were on the way: none
of that depends on who else uses the cores, as wall-clock does. A row per measurement goes to
``benchmarks/results/scale.csv``; what is there is not measured again.
"""

import argparse
from collections.abc import Iterable, Sequence
from pathlib import Path
from statistics import median

import torch as th

from benchmarks import HERE
from benchmarks.speed.scale.cost_model import Costs, Measured, Setting, fit, predict
from benchmarks.speed.scale.measure import DEFAULT, ECHO, LARGE, TASKS, Update, measure, measure_messages
from sb3_hybrid_grpo.compare.csv_files import Row, read_rows

RESULTS = HERE / "results" / "scale.csv"
WORKERS = (8, 64, 512)
ENVS_PER_WORKER = 8
ROUND_TRIPS = (0.0005, 0.01)


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """
    Read the command line.

    :param argv: its arguments, those of the process if ``None``
    :return: the options
    """
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--envs", nargs="+", choices=TASKS, default=TASKS)
    parser.add_argument("--workers", nargs="+", type=int, default=[1, 2])
    parser.add_argument("--envs-per-worker", nargs="+", type=int, default=[1, 4, 8])
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--output", type=Path, default=RESULTS, help="CSV file of rows")
    parser.add_argument("--report", action="store_true", help="print the tables of the documentation, and measure nothing")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> None:
    """
    Measure, or report.

    :param argv: arguments of the command line
    """
    options = parse(argv)
    if not options.report:
        th.set_num_threads(1)
        measure_messages(options.output, options.rounds)
        for env_id in options.envs:
            for workers in options.workers:
                for envs_per_worker in options.envs_per_worker:
                    measure(options.output, env_id, workers, envs_per_worker, options.rounds)
    print("\n".join(report(read_rows(options.output))))


def report(rows: Sequence[Row]) -> Iterable[str]:
    """
    Write the tables of the documentation.

    :param rows: rows of the file
    :return: its lines
    """
    numbers = {env_id: [as_numbers(row) for row in rows if row["environment"] == env_id] for env_id in (*TASKS, ECHO)}
    costs = {env_id: fit(numbers[env_id], numbers[ECHO]) for env_id in TASKS}
    yield from table_of_costs(costs)
    yield ""
    yield from table_of_speeds(costs)
    yield ""
    for env_id in TASKS:
        errors = [relative_errors(costs[env_id], row) for row in numbers[env_id] if not row["round_trip"]]
        largest = [f"{100 * max(map(abs, column)):.0f} %" for column in zip(*errors, strict=True)]
        middle = [f"{100 * median(map(abs, column)):.0f} %" for column in zip(*errors, strict=True)]
        walls = [
            row["committed_steps_per_second"] / predict(costs[env_id], setting_of(row)).steps_per_second
            for row in numbers[env_id]
        ]
        yield (
            f"{env_id}: main process and workers are off by {' and '.join(middle)} (median), {' and '.join(largest)} (at most); "
            f"measured speed / that of the model: {min(walls):.2f} to {max(walls):.2f}, median {median(walls):.2f}"
        )


def as_numbers(row: Row) -> Measured:
    """
    Convert what was measured.

    :param row: a row of the file
    :return: its numbers
    """
    batch_size, n_epochs = row["update"].split("x")
    names = ("workers", "envs_per_worker", "round_trip")
    measured = list(row)[list(row).index("round") + 1 : list(row).index("commit")]
    numbers = {name: float(row[name]) for name in (*names, *measured)}
    return {**numbers, "batch_size": float(batch_size), "n_epochs": float(n_epochs)}


def setting_of(row: Measured) -> Setting:
    """
    Look up what was measured.

    :param row: a row
    :return: its setting
    """
    values = {name: row[name] for name in Setting._fields}
    return Setting(**{name: value if name == "round_trip" else int(value) for name, value in values.items()})  # type: ignore[arg-type]


def relative_errors(costs: Costs, row: Measured) -> tuple[float, float]:
    """
    Compare the model with a measurement.

    :param costs: costs of the task
    :param row: the measurement
    :return: by how much processor time of main process and workers is wrong, as a share of the measured
    """
    main = costs.macro_step * row["macro_steps"] + costs.step * row["committed_steps"]
    main += costs.message * row["messages"] + costs.byte * row["bytes"]
    main += costs.minibatch * row["minibatches"] + costs.row * row["rows"]
    workers = costs.worker_message * row["messages"] + costs.worker_step * row["committed_steps"]
    return main / row["main_seconds"] - 1, workers / row["workers_seconds"] - 1


def table_of_costs(costs: dict[str, Costs]) -> Iterable[str]:
    """
    Write the table of what was fitted.

    :param costs: costs by task
    :return: its lines
    """
    lines = {
        "main process, per macro-step: $c_\\text{loop}$, µs": lambda task: 1e6 * task.macro_step,
        "main process, per message: $c_\\text{message}$, µs": lambda task: 1e6 * task.message,
        "main process, per kilobyte: $c_\\text{byte}$, µs": lambda task: 1e9 * task.byte,
        "main process, per committed step: $c_\\text{step}$, µs": lambda task: 1e6 * task.step,
        "update, per minibatch: $c_\\text{minibatch}$, µs": lambda task: 1e6 * task.minibatch,
        "update, per state in a minibatch: $c_\\text{state}$, µs": lambda task: 1e6 * task.row,
        "worker, per message: $w_\\text{message}$, µs": lambda task: 1e6 * task.worker_message,
        "worker, per committed step and its branches: $w_\\text{step}$, µs": lambda task: 1e6 * task.worker_step,
        "messages per worker and macro-step: $q$": lambda task: task.messages,
        "round trips that are waited for, per macro-step: $r$": lambda task: task.round_trips,
        "kilobytes per message": lambda task: task.bytes_per_message / 1e3,
        "kilobytes per committed step": lambda task: task.bytes_per_step / 1e3,
    }
    yield "| | " + " | ".join(costs) + " |"
    yield "|---" * (len(costs) + 1) + "|"
    for name, number in lines.items():
        yield f"| {name} | " + " | ".join(f"{number(task):.3g}" for task in costs.values()) + " |"


def table_of_speeds(costs: dict[str, Costs]) -> Iterable[str]:
    """
    Write the table of projections.

    :param costs: costs by task
    :return: its lines
    """
    yield (
        f"| task, {ENVS_PER_WORKER} environments per worker | update | round trip | "
        + " | ".join(f"{workers} workers" for workers in WORKERS)
        + " | at most | learner is the bottleneck from |"
    )
    yield "|---" * (len(WORKERS) + 5) + "|"
    for env_id, of_task in costs.items():
        for update in (DEFAULT, LARGE):
            for round_trip in ROUND_TRIPS:
                yield line_of_speeds(env_id, of_task, update, round_trip)


def line_of_speeds(env_id: str, costs: Costs, update: Update, round_trip: float) -> str:
    """
    Write a line of the table of projections.

    :param env_id: the task
    :param costs: its costs
    :param update: how rollouts are learnt from
    :param round_trip: seconds that a message and its answer are on the way
    :return: the line
    """
    speeds = [predict(costs, Setting(workers, ENVS_PER_WORKER, round_trip, *update)) for workers in WORKERS]
    cells = [
        f"{speed.steps_per_second:,.0f} ({100 * speed.learners_share:.0f} %, {speed.bytes_per_second / 1e6:.0f} MB/s)"
        for speed in speeds
    ]
    how = f"{update.batch_size} states, {update.n_epochs} epochs | {1000 * round_trip:g} ms"
    bottleneck = max(1, -int(-speeds[0].bottleneck // 1))
    end = f"{speeds[0].most_steps_per_second:,.0f} | {bottleneck} worker{'s' * (bottleneck > 1)}"
    return f"| {env_id} | {how} | {' | '.join(cells)} | {end} |"


if __name__ == "__main__":
    main()
