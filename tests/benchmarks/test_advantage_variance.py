"""The experiment on variances, on a small scale."""

import csv

import numpy as np
import pytest

from benchmarks.gradients import advantage_variance
from benchmarks.gradients.advantage_variance import COLUMNS, ESTIMATORS, PPO, agreement, table
from benchmarks.gradients.quality import text


def test_agreement():
    a, b = np.array([3.0, 4.0]), np.array([-4.0, 3.0])
    assert agreement([a, 2 * a, 0.1 * a]) == pytest.approx(1)
    assert agreement([a, b]) == pytest.approx(0)
    assert agreement([a, a, b]) == pytest.approx(1 / 3)


def test_table_by_hand():
    rows = []
    for name in ESTIMATORS:
        variances = (2.0, 4.0) if name == PPO else (1.0, 1.0)
        for seed in (1, 0):
            numbers = dict(zip(COLUMNS, (variances[seed], 0.5 + seed, 1.0, 3.0), strict=True))
            cells = {"environment": "Env", "seed": seed} | ESTIMATORS[name]._asdict() | numbers
            rows.append({key: text(value) for key, value in cells.items()})
    lines = list(table(rows, lambda numbers: [" ".join(f"{number:g}" for number in column) for column in numbers.T]))
    assert [line[1] for line in lines] == list(ESTIMATORS)
    assert lines[0] == ["Env", PPO, "1 1", "0.5 1.5", "0.25 0.25"]
    assert ["Env", "GRPO, N = 8", "0.5 0.25", "0.5 1.5", "0.25 0.25"] in lines


def test_rows_are_made_once(tmp_path):
    output = tmp_path / "rows.csv"
    settings = ["--envs", "CartPole-v1", "--stage", "0", "--seeds", "2", "--n-batches", "2", "--batch-states", "64"]
    for _ in range(2):
        advantage_variance.main([*settings, "--policies", str(tmp_path), "--output", str(output)])
        with output.open(newline="") as file:
            rows = list(csv.DictReader(file))
        assert len(rows) == 2 * len(ESTIMATORS)
    by_name = {(row["name"], row["n_samples"], row["seed"]): row for row in rows if row["branch_horizon"] == "1"}
    assert float(by_name["averaged", "8", "0"]["advantage_variance"]) < float(by_name["gae", "1", "0"]["advantage_variance"])
    assert all(-1 <= float(row["agreement"]) <= 1 for row in rows)
