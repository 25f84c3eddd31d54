import itertools

import numpy as np
import pytest

from benchmarks.speed.scale.__main__ import RESULTS, main
from benchmarks.speed.scale.cost_model import Costs, Setting, fit, predict, solve
from benchmarks.speed.scale.distance import DistantTransport
from benchmarks.speed.scale.report import relative_errors, report, setting_of
from sb3_hybrid_grpo.compare.csv_files import read_rows

COSTS = Costs(
    macro_step=3e-4,
    step=1e-4,
    message=5e-5,
    byte=1e-9,
    minibatch=8e-4,
    row=2e-6,
    worker_message=4e-4,
    worker_step=2e-3,
    messages=1.1,
    bytes_per_message=3000.0,
    bytes_per_step=25000.0,
    round_trips=1.05,
)


def row_of(setting, costs=COSTS, macro_steps=64):
    """What would be measured if the model were true."""
    workers, envs_per_worker, round_trip, batch_size, n_epochs = setting
    committed_steps = macro_steps * workers * envs_per_worker
    messages = costs.messages * macro_steps * workers
    n_bytes = costs.bytes_per_message * messages + costs.bytes_per_step * committed_steps
    rows, minibatches = n_epochs * committed_steps, n_epochs * np.ceil(committed_steps / batch_size)
    updating = costs.minibatch * minibatches + costs.row * rows
    collecting = costs.macro_step * macro_steps + costs.step * committed_steps
    collecting += costs.message * messages + costs.byte * n_bytes
    workers_seconds = costs.worker_message * messages + costs.worker_step * committed_steps
    round_trips = costs.round_trips * macro_steps
    return {
        **setting._asdict(),
        "macro_steps": macro_steps,
        "committed_steps": committed_steps,
        "minibatches": minibatches,
        "rows": rows,
        "messages": messages,
        "bytes": n_bytes,
        "round_trips": round_trips,
        "main_seconds": updating + collecting,
        "workers_seconds": workers_seconds,
        "updating_seconds": updating,
        "wall_seconds": updating + collecting + workers_seconds / workers + round_trips * round_trip,
    }


def echo_of(size):
    messages, n_bytes = 400, 400 * (200 + size)
    nothing = dict.fromkeys(("round_trip", "macro_steps", "committed_steps", "updating_seconds"), 0)
    return {**nothing, "messages": messages, "bytes": n_bytes, "main_seconds": messages * 5e-5 + n_bytes * 1e-9}


SETTINGS = [
    Setting(workers, envs_per_worker, round_trip, *update)
    for workers, envs_per_worker in itertools.product((1, 2), (1, 4, 8))
    for round_trip, update in [(0.0, (64, 10)), (0.0, (256, 4)), (0.01, (64, 10))]
]
ECHOES = [echo_of(size) for size in (0, 10_000, 1_000_000)]


def test_fit_recovers_what_the_rows_were_made_of():
    rows = [row_of(setting) for setting in SETTINGS]
    costs = fit(rows, ECHOES)
    assert costs == pytest.approx(COSTS, rel=1e-6)
    assert np.abs([relative_errors(costs, row) for row in rows]).max() < 1e-6


def test_fit_is_close_despite_noise():
    rng = np.random.default_rng(0)
    rows = [row_of(setting) for setting in SETTINGS * 3]
    for row in rows:
        for name in ("main_seconds", "workers_seconds", "updating_seconds"):
            row[name] *= rng.normal(1, 0.01)
    costs = fit(rows, ECHOES)
    for name in ("worker_step", "minibatch", "messages", "bytes_per_step", "message", "byte"):
        assert getattr(costs, name) == pytest.approx(getattr(COSTS, name), rel=0.05), name


def test_far_workers_do_not_change_processor_time():
    """Messages that are held up take a little of it, which is no part of any cost."""
    rows = [row_of(setting) for setting in SETTINGS]
    for row in rows:
        row["main_seconds"] *= 2 if row["round_trip"] else 1
    assert fit(rows, ECHOES) == pytest.approx(COSTS, rel=1e-6)


def test_no_cost_is_below_zero():
    rows = [{"total": 3.0 * a - 0.5 * b, "a": a, "b": b} for a, b in [(1.0, 1.0), (2.0, 1.0), (3.0, 2.0), (4.0, 1.0)]]
    a, b = solve(rows, "total", ("a", "b"))
    assert a > 0 and b == 0
    (alone,) = solve(rows, "total", ("a",))
    assert a == alone


@pytest.mark.parametrize("setting", [setting for setting in SETTINGS if setting.workers * setting.envs_per_worker >= 4])
def test_prediction_is_what_would_be_measured(setting):
    row = row_of(setting)
    speed = predict(COSTS, setting)
    assert setting_of(row) == setting
    assert speed.steps_per_second == pytest.approx(row["committed_steps"] / row["wall_seconds"])
    assert speed.learners_share == pytest.approx(row["main_seconds"] / row["wall_seconds"])
    assert speed.bytes_per_second == pytest.approx(row["bytes"] / row["wall_seconds"])


def test_learner_becomes_the_bottleneck():
    setting = Setting(1, 8, 0.002, 256, 4)
    bottleneck = predict(COSTS, setting).bottleneck
    shares = [predict(COSTS, setting._replace(workers=workers)).learners_share for workers in (bottleneck, 1e9)]
    assert shares == pytest.approx([0.5, 1.0], abs=1e-6)
    most = predict(COSTS, setting).most_steps_per_second
    assert predict(COSTS, setting._replace(workers=1e9)).steps_per_second == pytest.approx(most)


class Pipe:
    """The end of a pipe that has all answers at once."""

    def __init__(self, answers):
        self.answers = answers

    def send_bytes(self, message):
        self.message = bytes(message)

    def recv_bytes(self):
        return self.answers.pop(0)


@pytest.fixture
def transport(monkeypatch):
    """Two workers whose answers have come, and a clock that stands still but for sleep."""
    from multiprocessing.reduction import ForkingPickler

    from benchmarks.speed.scale import distance

    transport = DistantTransport([], [range(1), range(1, 2)], None)
    transport._pipes = [Pipe([ForkingPickler.dumps(answer)]) for answer in ("first", "second")]
    clock = [0.0]
    monkeypatch.setattr(distance, "wait", lambda pipes, timeout: pipes)
    monkeypatch.setattr(distance.time, "perf_counter", lambda: clock[0])
    monkeypatch.setattr(distance.time, "sleep", lambda seconds: clock.__setitem__(0, clock[0] + seconds))
    return transport


@pytest.mark.parametrize("round_trip", [0.0, 0.5])
def test_workers_that_are_asked_together_are_waited_for_together(transport, round_trip):
    transport.round_trip = round_trip
    for worker in range(2):
        transport.send(worker, "step", worker)
    sent = sum(len(pipe.message) + len(pipe.answers[0]) for pipe in transport._pipes)
    assert [transport.receive(worker) for worker in range(2)] == ["first", "second"]
    assert transport.seconds_on_the_way == round_trip
    assert (transport.n_messages, transport.n_round_trips, transport.n_bytes) == (2, 1, sent)


def test_report_of_the_rows_is_in_the_documentation(capsys):
    from tests.pages import PAGES

    main(["--report"])
    lines = capsys.readouterr().out.splitlines()
    assert lines == list(report(read_rows(RESULTS)))
    table = [line for line in lines if line.startswith("|")]
    assert len(table) > 20
    assert not [line for line in table if line not in PAGES["docs/scaling"].splitlines()]
