"""What a committed step is made of, fitted to measurements by least squares, and what follows from that for more workers."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

Measured = Mapping[str, float]


class Costs(NamedTuple):
    """
    Seconds of processor time, and messages. A macro-step is a step of all environments.

    :param macro_step: main process: each macro-step, however many environments there are (actor, loop)
    :param step: main process: each committed step (policy, storing it and its branches)
    :param message: main process: each message to a worker, and its answer
    :param byte: main process: each byte of these
    :param minibatch: main process: each minibatch of the update
    :param row: main process: each state in a minibatch
    :param worker_message: worker: each message
    :param worker_step: worker: each committed step and its branches (simulator)
    :param messages: number of messages to each worker per macro-step
    :param bytes_per_message: bytes that each message and answer have
    :param bytes_per_step: bytes that each committed step and its branches add
    :param round_trips: number of round trips that are waited for per macro-step
    """

    macro_step: float
    step: float
    message: float
    byte: float
    minibatch: float
    row: float
    worker_message: float
    worker_step: float
    messages: float
    bytes_per_message: float
    bytes_per_step: float
    round_trips: float


class Setting(NamedTuple):
    """
    What speed is asked for.

    :param workers: number of workers
    :param envs_per_worker: number of environments in each
    :param round_trip: seconds that a message and its answer are on the way
    :param batch_size: number of states in a minibatch
    :param n_epochs: number of epochs of the update
    """

    workers: int
    envs_per_worker: int
    round_trip: float
    batch_size: int
    n_epochs: int


class Speed(NamedTuple):
    """
    What the model says about a setting.

    :param steps_per_second: committed steps per second
    :param most_steps_per_second: what that tends to with more and more workers of as many environments
    :param learners_share: share of the time in which the main process works, and workers do not
    :param bottleneck: number of workers from which on this is more than half
    :param bytes_per_second: bytes that come and go
    """

    steps_per_second: float
    most_steps_per_second: float
    learners_share: float
    bottleneck: float
    bytes_per_second: float


def fit(rows: Sequence[Measured], echoes: Sequence[Measured]) -> Costs:
    """
    Fit the costs of a task.

    :param rows: measurements of rollouts and updates
    :param echoes: measurements of messages alone, by which those and their bytes are told from steps
    :return: the costs
    """
    near = [row for row in rows if not row["round_trip"]]
    collecting = [{**row, "collecting_seconds": row["main_seconds"] - row["updating_seconds"]} for row in (*near, *echoes)]
    contacts = [{**row, "contacts": row["macro_steps"] * row["workers"]} for row in rows]
    main = solve(collecting, "collecting_seconds", ("macro_steps", "committed_steps", "messages", "bytes"))
    update = solve(near, "updating_seconds", ("minibatches", "rows"))
    worker = solve(near, "workers_seconds", ("messages", "committed_steps"))
    traffic = solve(rows, "bytes", ("messages", "committed_steps"))
    (messages,) = solve(contacts, "messages", ("contacts",))
    (round_trips,) = solve(rows, "round_trips", ("macro_steps",))
    return Costs._make((*main, *update, *worker, messages, *traffic, round_trips))


def solve(rows: Sequence[Measured], total: str, parts: Sequence[str]) -> tuple[float, ...]:
    """
    Split a total into costs of its parts, so that the squares of relative errors are least.

    :param rows: measurements
    :param total: name of the total
    :param parts: names of the numbers of its parts
    :return: what each of the parts costs; a cost that would be below zero is zero, and the others are fitted without it
    """
    totals = np.array([row[total] for row in rows])
    numbers = np.array([[row[part] for part in parts] for row in rows]) / totals[:, None]
    costs, used = np.zeros(len(parts)), np.ones(len(parts), bool)
    while used.any():
        # Columns of one size, that the rank is found whatever the units are.
        scales = np.linalg.norm(numbers[:, used], axis=0)
        found = np.linalg.lstsq(numbers[:, used] / scales, np.ones(len(rows)), rcond=None)[0] / scales
        if (found >= 0).all():
            costs[used] = found
            break
        used[np.flatnonzero(used)[found.argmin()]] = False
    return tuple(map(float, costs))


def predict(costs: Costs, setting: Setting) -> Speed:
    """
    Predict the speed of workers that all take the same time, while the network has room for all bytes.

    :param costs: costs of a task
    :param setting: workers, their distance, and the update
    :return: the speed
    """
    workers, envs_per_worker, round_trip, batch_size, n_epochs = setting
    per_step = costs.step + costs.bytes_per_step * costs.byte + n_epochs * (costs.row + costs.minibatch / batch_size)
    per_contact = costs.messages * (costs.message + costs.bytes_per_message * costs.byte)
    per_worker = per_contact + envs_per_worker * per_step
    learner = costs.macro_step + workers * per_worker
    others = costs.round_trips * round_trip + costs.messages * costs.worker_message + envs_per_worker * costs.worker_step
    n_envs = workers * envs_per_worker
    n_bytes = costs.messages * workers * costs.bytes_per_message + n_envs * costs.bytes_per_step
    seconds = learner + others
    return Speed(
        n_envs / seconds,
        envs_per_worker / per_worker,
        learner / seconds,
        (others - costs.macro_step) / per_worker,
        n_bytes / seconds,
    )
