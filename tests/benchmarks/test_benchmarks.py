import csv
import math

import pytest

from benchmarks.provenance import provenance
from benchmarks.speed import throughput
from benchmarks.speed.timed_run import Clock, Run

ARGUMENTS = (
    "--envs CartPole-v1 --n-envs 1 --n-steps 64 --iterations 1 --pairs 1 --algorithms ppo hybrid_grpo --n-samples".split()
)


def measure(output, *arguments):
    with pytest.raises(SystemExit) as exit_info:
        throughput.main([*ARGUMENTS, *arguments, "--output", str(output)])
    assert exit_info.value.code == 0
    with output.open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    """A file of three runs, and its rows."""
    output = tmp_path_factory.mktemp("measured") / "throughput.csv"
    return output, measure(output, "1", "2")


def test_throughput_is_measured_once_per_configuration(measured, capsys):
    output, rows = measured
    assert measure(output, "1", "2") == rows
    assert [(row["algorithm"], row["n_samples"]) for row in rows] == [("ppo", "1"), ("hybrid_grpo", "1"), ("hybrid_grpo", "2")]
    assert capsys.readouterr().out.splitlines()[-1].split()[:4] == ["CartPole-v1", "1", "hybrid_grpo", "2"]
    for row in rows:
        assert {*Run._fields, "ratio_to_ppo", *provenance()} <= set(row)
        assert row["committed_steps"] == "64"
        seconds = {name.removesuffix("_seconds"): float(row[name]) for name in row if name.endswith("_seconds")}
        branching = seconds.pop("branching")
        assert (branching > 0) == (int(row["simulator_steps"]) > 64) == (row["n_samples"] == "2")
        assert min(seconds.values()) > 0
        assert branching + seconds["env_step"] + seconds["values"] <= seconds["rollout"]
        assert seconds["rollout"] + seconds["update"] <= float(row["seconds"])
        assert math.isclose(float(row["committed_steps_per_second"]) * float(row["seconds"]), 64, rel_tol=1e-4)
    assert float(rows[0]["ratio_to_ppo"]) == 1
    expected = float(rows[2]["seconds"]) / float(rows[0]["seconds"])
    assert math.isclose(float(rows[2]["ratio_to_ppo"]), expected, rel_tol=1e-4)

    assert measure(output, "2", "--profile", "CartPole-v1") == rows
    with (output.parent / "profile.csv").open(newline="") as file:
        ppo, hybrid = csv.DictReader(file)
    assert (ppo["algorithm"], hybrid["n_samples"]) == ("ppo", "2")
    phases = [float(hybrid[name]) for name in hybrid if name.endswith("_us") and name != "total_us"]
    assert math.isclose(sum(phases), float(hybrid["total_us"]), rel_tol=1e-3)
    assert (output.parent / "profile.png").read_bytes().startswith(b"\x89PNG")


def test_pairs_are_counterbalanced():
    options = throughput.parse("--envs CartPole-v1 --n-samples 1 2 --n-envs 4 --pairs 2".split())
    names = [[f"{run.algorithm} {run.n_samples}" for run in runs] for runs in throughput.rounds(options)]
    assert names == [
        ["ppo 1", "trpo 1", "hybrid_grpo 1", "hybrid_grpo 2"],
        ["ppo 1", "hybrid_grpo 2", "hybrid_grpo 1", "trpo 1"],
    ]


def test_device(measured):
    output, rows = measured
    assert {row["device"] for row in rows} == {"cpu"}
    with pytest.raises(SystemExit) as exit_info:
        throughput.main([*ARGUMENTS, "1", "--device", "nowhere", "--output", str(output)])
    assert exit_info.value.code == 1


def test_options_of_branches():
    arguments = "--envs CartPole-v1 --n-samples 1 2 --n-envs 1 --pairs 1 --branch-fraction auto --branch-horizon 8 --warm-up 3"
    (runs,) = throughput.rounds(throughput.parse(arguments.split()))
    told = [
        (run.n_samples, run.branch_fraction, run.branch_horizon, run.warm_up) for run in runs if run.algorithm == "hybrid_grpo"
    ]
    assert told == [(1, 1.0, 1, 3), (2, "auto", 8, 3)]


def test_brancher(tmp_path):
    ppo, hybrid = measure(tmp_path / "throughput.csv", "2", "--brancher", "replay")
    assert (ppo["brancher"], hybrid["brancher"]) == ("auto", "replay")
    assert int(hybrid["simulator_steps"]) > 64


def test_learned_model(tmp_path):
    _, hybrid = measure(tmp_path / "throughput.csv", "2", "--brancher", "learned")
    assert hybrid["simulator_steps"] == hybrid["committed_steps"] == "64"
    assert float(hybrid["branching_seconds"]) > 0


def test_missing_runs_get_a_reference_of_their_own(monkeypatch):
    options = throughput.parse("--envs CartPole-v1 --n-samples 1 2 --n-envs 4 --pairs 1".split())
    (runs,) = throughput.rounds(options)

    def time_apart(run):
        return {"seconds": float(run.n_samples), "cpu_seconds": run.n_samples**2, "committed_steps": 1}

    monkeypatch.setattr(throughput, "time_apart", time_apart)
    done = [run.columns() for run in runs if run.n_samples == 1]
    rows = list(throughput.time_round(runs, done))
    ratios = [(row["algorithm"], row["ratio_to_ppo"], row["cpu_ratio_to_ppo"]) for row in rows]
    assert ratios == [("ppo", "1", "1"), ("hybrid_grpo", "2", "4")]
    assert not list(throughput.time_round(runs, [run.columns() for run in runs]))


def test_only_rollouts_are_split():
    class Model:
        def predict(self):
            return 1

        def rollout(self):
            return self.predict()

        def update(self):
            return self.predict()

    model, clock = Model(), Clock()
    clock.watch(model, "predict", "values")
    clock.watch(model, "rollout", "rollout")
    clock.watch(model, "update", "update")
    assert model.update() == 1
    assert set(clock.seconds) == {"update"}
    assert model.rollout() == 1
    assert set(clock.seconds) == {"update", "rollout", "values"}
    assert clock.seconds["values"] <= clock.seconds["rollout"]
