"""Tables of what was measured with few workers, and of what is projected for many."""

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from statistics import median

from benchmarks.speed.scale.cost_model import Costs, Measured, Setting, fit, predict
from benchmarks.speed.scale.measure import DEFAULT, ECHO, LARGE, TASKS, Update
from sb3_hybrid_grpo.compare.csv_files import Row

WORKERS = (8, 64, 512)
ENVS_PER_WORKER = 8
ROUND_TRIPS = (0.0005, 0.01)
FAR = 0.01
COSTS: Mapping[str, Callable[[Costs], float]] = {
    "main process, µs per macro-step: `loop`": lambda costs: 1e6 * costs.macro_step,
    "main process, µs per message: `message`": lambda costs: 1e6 * costs.message,
    "main process, µs per kilobyte: `byte`": lambda costs: 1e9 * costs.byte,
    "main process, µs per committed step: `step`": lambda costs: 1e6 * costs.step,
    "update, µs per minibatch: `minibatch`": lambda costs: 1e6 * costs.minibatch,
    "update, µs per state in a minibatch: `state`": lambda costs: 1e6 * costs.row,
    "worker, µs per message: `worker_message`": lambda costs: 1e6 * costs.worker_message,
    "worker, µs per committed step and its branches: `simulator`": lambda costs: 1e6 * costs.worker_step,
    "messages per worker and macro-step: `messages`": lambda costs: costs.messages,
    "round trips in turn per macro-step: `round_trips`": lambda costs: costs.round_trips,
    "kilobytes per message: `message_bytes`": lambda costs: costs.bytes_per_message / 1e3,
    "kilobytes per committed step: `step_bytes`": lambda costs: costs.bytes_per_step / 1e3,
}
"""What the documentation calls them."""


def report(rows: Sequence[Row]) -> Iterable[str]:
    """
    Write the tables of the documentation.

    :param rows: rows of the file
    :return: its lines
    """
    numbers = {env_id: [as_numbers(row) for row in rows if row["environment"] == env_id] for env_id in (*TASKS, ECHO)}
    costs = {env_id: fit(numbers[env_id], numbers[ECHO]) for env_id in TASKS if numbers[env_id]}
    yield from table_of_costs(costs)
    yield ""
    yield from table_of_speeds(costs)
    yield ""
    for env_id, of_task in costs.items():
        yield line_of_errors(env_id, of_task, numbers[env_id], numbers[ECHO])


def line_of_errors(env_id: str, costs: Costs, rows: Sequence[Measured], echoes: Sequence[Measured]) -> str:
    """
    Say how far the model is from what it was fitted to, and from wall-clock, which it was not.

    :param env_id: the task
    :param costs: its costs
    :param rows: measurements
    :param echoes: measurements of messages alone
    :return: a line
    """
    errors = zip(*(relative_errors(costs, row) for row in rows if not row["round_trip"]), strict=True)
    main, workers = (f"{100 * median(sizes):.1f} %, at most {100 * max(sizes):.0f} %" for sizes in map(absolute, errors))
    speeds = [row["committed_steps_per_second"] / predict(costs, setting_of(row)).steps_per_second for row in rows]
    others = changes_of_projection(costs, rows, echoes)
    return (
        f"{env_id}: {len(rows)} measurements; the model's error is {main} (main process) and {workers} (workers); "
        f"measured speed / the model's {min(speeds):.2f} to {max(speeds):.2f}; "
        f"wall-clock that round trips of {1000 * FAR:g} ms add / the model's {added_wall_clock(rows):.2f}; "
        f"fitted without one number of workers and environments, "
        f"the speed of {WORKERS[-1]} workers changes by {min(others):+.0%} to {max(others):+.0%}"
    )


def absolute(values: Iterable[float]) -> list[float]:
    """Return the sizes of numbers."""
    return [abs(value) for value in values]


def added_wall_clock(rows: Sequence[Measured]) -> float:
    """
    Compare the longest round trips with none.

    :param rows: measurements
    :return: the wall-clock that they add, as a share of their sum; the median over numbers of workers and environments
    """
    walls: dict[tuple[float, ...], dict[float, list[float]]] = defaultdict(lambda: defaultdict(list))
    for row in rows:
        if row["batch_size"] == DEFAULT.batch_size:
            where = row["workers"], row["envs_per_worker"], row["round_trips"]
            walls[where][row["round_trip"]].append(row["wall_seconds"])
    return median(
        (median(by_distance[FAR]) - median(by_distance[0.0])) / (round_trips * FAR)
        for (_, _, round_trips), by_distance in walls.items()
    )


def changes_of_projection(costs: Costs, rows: Sequence[Measured], echoes: Sequence[Measured]) -> list[float]:
    """
    Fit again without the rows of one number of workers and environments, for each of them.

    :param costs: costs that were fitted to all rows
    :param rows: measurements
    :param echoes: measurements of messages alone
    :return: by how much the projected speed of the most workers changes, as a share of it, with either update
    """
    places = {(row["workers"], row["envs_per_worker"]) for row in rows}
    rest = [[row for row in rows if (row["workers"], row["envs_per_worker"]) != place] for place in sorted(places)]
    settings = [Setting(WORKERS[-1], ENVS_PER_WORKER, ROUND_TRIPS[0], *update) for update in (DEFAULT, LARGE)]
    return [
        predict(fit(kept, echoes), setting).steps_per_second / predict(costs, setting).steps_per_second - 1
        for kept in rest
        for setting in settings
    ]


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


def table_of_costs(costs: Mapping[str, Costs]) -> Iterable[str]:
    """
    Write the table of what was fitted.

    :param costs: costs by task
    :return: its lines
    """
    yield "| | " + " | ".join(costs) + " |"
    yield "|---" * (len(costs) + 1) + "|"
    for name, number in COSTS.items():
        yield f"| {name} | " + " | ".join(written(number(task)) for task in costs.values()) + " |"


def written(number: float) -> str:
    """Write three digits of a number that has no more before its point, else those before it."""
    return f"{number:.3g}" if abs(number) < 1000 else f"{number:,.0f}"


def table_of_speeds(costs: Mapping[str, Costs]) -> Iterable[str]:
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
