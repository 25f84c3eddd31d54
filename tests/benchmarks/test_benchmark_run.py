import json
import math
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest

from benchmarks import HERE
from benchmarks.learning import run
from benchmarks.learning.disturbed_reward import DisturbedReward, student_t
from benchmarks.learning.experiments import SUITES, Environment, agree, load_suite, runs_of, settings_of
from benchmarks.learning.rows import find_row, read_rows
from benchmarks.learning.scores import AXES, gather, steps_to_reach
from benchmarks.speed.machine_speeds import machine_speeds
from sb3_hybrid_grpo import PAPER_SETTINGS, check_branchable
from sb3_hybrid_grpo.compare.csv_files import append_row

pytest.importorskip("rich")

CARTPOLE = Environment("CartPole-v1", 256)


def write_suite(folder, configs=("ppo", "hybrid_grpo"), environments=(CARTPOLE,)):
    path = folder / "tiny.json"
    content = {"question": "Does it run?", "evaluations": 2, "configs": configs}
    path.write_text(json.dumps({**content, "environments": [environment._asdict() for environment in environments]}))
    return path


def arguments(suite, output, seeds=2):
    return ["--suite", str(suite), "--jobs", "2", "--seeds", str(seeds), "--output", str(output)]


def write_row(path, config, environment, seed, curve, commit="abc"):
    names = {"suite": path.stem, "config": config, "environment": environment.name, "seed": seed, "commit": commit}
    versions = {"torch": "1", "stable-baselines3": "2", "gymnasium": "3", "mujoco": "4"}
    settings = json.dumps(settings_of(config, environment))
    append_row(path, {**names, **versions, "curve": json.dumps(curve), "settings": settings})


@pytest.mark.usefixtures("quick_processes")
def test_runs_and_resumes(tmp_path, capsys):
    suite, output = write_suite(tmp_path), tmp_path / "rows"
    assert run.main(arguments(suite, output, seeds=1)) == 0
    first = (output / "tiny.csv").read_text()
    assert run.main(arguments(suite, output)) == 0
    assert "2 runs to do, 2 of 4 have a row" in capsys.readouterr().out
    assert (output / "tiny.csv").read_text().startswith(first)

    rows = read_rows(output)
    assert [(row.columns["config"], row.seed) for row in rows[:2]] in (
        [("ppo", 0), ("hybrid_grpo", 0)],
        [("hybrid_grpo", 0), ("ppo", 0)],
    )
    for row in rows:
        hybrid = row.columns["config"] == "hybrid_grpo"
        (start, *_), (*end, _) = row.curve[0], row.curve[-1]
        assert start == 0
        assert end[0] == 256 == int(row.columns["committed_steps"])
        assert end[1] == int(row.columns["simulator_steps"])
        assert 256 < end[1] <= 256 * (1 + 8) if hybrid else end[1] == 256
        assert 0 < end[2] == float(row.columns["training_cpu_seconds"]) < float(row.columns["wall_seconds"])

    assert run.main(arguments(suite, output)) == 0
    assert "0 runs to do, 4 of 4 have a row" in capsys.readouterr().out


@pytest.mark.usefixtures("quick_processes")
def test_a_failed_run_takes_nothing_with_it(tmp_path, capsys):
    broken = write_suite(tmp_path, configs=["grpo"], environments=[CARTPOLE._replace(reward_scale=math.nan)])
    good = json.loads(broken.read_text())
    good["environments"].append(CARTPOLE._asdict())
    broken.write_text(json.dumps(good))
    assert run.main(arguments(broken, tmp_path / "rows", seeds=1)) == 1
    printed = capsys.readouterr().out
    assert "1 of 2 runs failed" in printed
    assert "InvalidOutcomeError" in printed
    assert len(read_rows(tmp_path / "rows")) == 1


@pytest.mark.skipif(os.name != "posix", reason="needs SIGKILL")
def test_a_kill_leaves_whole_rows(tmp_path):
    suite, output = (
        write_suite(tmp_path, configs=["ppo"], environments=[CARTPOLE, CARTPOLE._replace(steps=10_000_000)]),
        tmp_path,
    )
    command = [sys.executable, "-m", "benchmarks.learning.run", *arguments(suite, output, seeds=1)]
    process = subprocess.Popen(command, cwd=HERE.parent, stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    try:
        while not (output / "tiny.csv").exists() or not (output / "tiny.csv").stat().st_size:
            assert time.monotonic() < deadline
            time.sleep(0.1)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    (row,) = read_rows(output)
    assert row.settings["steps"] == 256
    assert (output / "tiny.csv").read_bytes().endswith(b"\n")


def test_rows_are_found_under_any_name_and_only_with_their_settings(tmp_path):
    path = tmp_path / "other.csv"
    write_row(path, "n2", CARTPOLE, 0, [(0, 0, 0.0, 1.0)])
    (wanted,) = [found for found in runs_of(load_suite(str(write_suite(tmp_path, ["hybrid_grpo"]))), 1)]
    rows = read_rows(tmp_path)
    assert find_row(wanted, rows) == rows[0]
    assert find_row(wanted._replace(seed=1), rows) is None
    assert find_row(wanted._replace(config="n8"), rows) is None
    assert find_row(wanted._replace(environment=CARTPOLE._replace(steps=512)), rows) is None
    before = {"algorithm": "hybrid_grpo", "gamma": 0.9, "removed_since": 1}
    after = {"algorithm": "hybrid_grpo", "gamma": 0.9, "normalize": False}
    assert agree(before, after | {"sampling_temperature": 1.0})
    assert not agree(before, after | {"sampling_temperature": 2.0})
    assert not agree(before, after | {"normalize": True})


def test_configurations_share_hyperparameters():
    ppo, hybrid, trpo = (settings_of(name, CARTPOLE) for name in ("ppo", "hybrid_grpo", "trpo"))
    assert {name: hybrid[name] for name in ppo} == ppo | {"algorithm": "hybrid_grpo"}
    assert (trpo["learning_rate"], trpo["batch_size"], trpo["n_critic_updates"]) == ("lin_0.001", 256, 20)
    assert settings_of("trpo", Environment("Hopper-v5", 1))["learning_rate"] == 3e-4
    assert settings_of("ppo_lambda0.5", CARTPOLE)["gae_lambda"] == 0.5
    paper = settings_of("paper", CARTPOLE)
    assert {name: paper[name] for name in PAPER_SETTINGS} == PAPER_SETTINGS


@pytest.mark.parametrize("name", SUITES)
def test_suites_can_be_read(name):
    suite = load_suite(name)
    assert all(settings_of(config, environment) for config in suite.configs for environment in suite.environments)


def test_noise_is_heavy_tailed_and_differs_between_actions():
    uniforms = (np.arange(10_000) + 0.5) / 10_000
    noise = np.array([student_t(u, np.array([0.3])) for u in uniforms])
    assert abs(np.median(noise)) < 0.01
    assert np.quantile(noise, 0.975) == pytest.approx(4.303, abs=0.02)  # of the t distribution with 2 degrees of freedom
    others = np.array([student_t(u, np.array([0.2])) for u in uniforms])
    assert (noise != others).all()


def test_disturbed_rewards_can_be_branched():
    report = check_branchable(lambda: DisturbedReward(gym.make("Pendulum-v1"), 0.1, noise=1.0))
    assert report.brancher == "snapshot", report


@pytest.mark.parametrize("name", ["CartPoleNoVelocity-v0", "PendulumNoVelocity-v0"])
def test_velocities_that_are_not_observed(name):
    env = gym.make(f"benchmarks.memory_environments:{name}")
    obs, _ = env.reset(seed=0)
    whole, _ = gym.make(name.replace("NoVelocity-v0", "-v1")).reset(seed=0)
    assert obs.shape == (2,) and set(obs) < set(whole) and env.observation_space.contains(obs)
    assert check_branchable(lambda: env, n_steps=20).brancher == "snapshot"


def test_report(tmp_path):
    pytest.importorskip("rliable")
    from benchmarks.learning import report

    suite = write_suite(tmp_path)
    # Twice PPO's score above random's 23.68, at twice its training time.
    for seed in range(2):
        write_row(tmp_path / "tiny.csv", "ppo", CARTPOLE, seed, [(0, 0, 0.0, 23.68), (256, 256, 1.0, 123.68)])
        hybrid = [(0, 0, 0.0, 23.68), (128, 512, 1.0, 123.68), (256, 1024, 2.0, 223.68)]
        write_row(tmp_path / "tiny.csv", "hybrid_grpo", CARTPOLE, seed, hybrid)
    options = ["--suites", str(suite), "--results", str(tmp_path), "--output", str(tmp_path / "out"), "--repetitions", "50"]
    assert report.main(options) == 0
    text = (tmp_path / "out" / "RESULTS.md").read_text(encoding="utf-8")
    assert re.findall(r"^\| hybrid_grpo \| ([\d.]+)", text, re.MULTILINE) == ["2.00", "0.50", "1.00"]
    assert "| hybrid_grpo | 2.00 [2.00, 2.00] | 2.00 [2.00, 2.00] | 1.00 [1.00, 1.00] |" in text
    assert "| CartPole-v1 | hybrid_grpo | 2 | 223.7 ± 0.0 | 2.00 | 128 | 1,024 | 2 |" in text
    assert text.count("python -m benchmarks.learning.run --suite tiny") == len(AXES) + 1
    images = re.findall(r"\]\((.*\.png)\)", text)
    assert len(images) == 3
    assert all((tmp_path / "out" / image).read_bytes().startswith(b"\x89PNG") for image in images)


def test_committed_report_says_what_the_command_says():
    from benchmarks.learning import report

    text = (HERE / "RESULTS.md").read_text(encoding="utf-8")
    assert text.startswith(report._INTRODUCTION)
    for module in set(re.findall(r"python -m ([\w.]+)", text)):
        assert (HERE.parent / Path(*module.split("."))).with_suffix(".py").exists(), module


def test_aggregates():
    metrics = pytest.importorskip("rliable.metrics")
    from benchmarks.learning.statistics import interquartile_means, ratios

    rng = np.random.default_rng(0)
    scores = {name: rng.normal(2, 1, size=(5, 2, 3)) for name in ("ppo", "other")}
    means, quotients = interquartile_means(scores, 50), ratios(scores, "ppo", 50)
    for budget in range(3):
        ppo, other = (metrics.aggregate_iqm(scores[name][..., budget]) for name in ("ppo", "other"))
        assert means.points["other"][budget] == pytest.approx(other)
        assert quotients.points["other"][budget] == pytest.approx(other / ppo)
        low, high = means.intervals["other"][:, budget]
        assert means.text("other", budget) == f"{other:.2f} [{low:.2f}, {high:.2f}]"
        assert low < other < high
    assert means.text("none") == ""
    np.testing.assert_array_equal(interquartile_means(scores, 50).intervals["other"], means.intervals["other"])


def test_scores_at_equal_budgets(tmp_path):
    suite = load_suite(str(write_suite(tmp_path)))
    write_row(tmp_path / "tiny.csv", "ppo", CARTPOLE, 0, [(0, 0, 0.0, 0.0), (256, 256, 1.0, 10.0)])
    write_row(tmp_path / "tiny.csv", "hybrid_grpo", CARTPOLE, 0, [(0, 0, 0.0, 0.0), (256, 1024, 0.5, 30.0)])
    rows = read_rows(tmp_path)
    found = gather(suite, rows, {"CartPole-v1": 5.0})
    hybrid = [found.scores(axis, [1.0])["hybrid_grpo"].item() for axis, _ in enumerate(AXES)]
    assert hybrid == [5.0, 0.5, 5.0]
    assert found.scores(0, [1.0])["ppo"].item() == 1
    assert steps_to_reach(rows[0], 10.0) == 256
    assert steps_to_reach(rows[0], 11.0) == math.inf
    assert not gather(suite, rows, {"CartPole-v1": 10.0}).comparable()


PENDULUM = Environment("Pendulum-v1", 256)


def write_run(folder, config, environment, commit, seconds, seed=0, steps=256):
    curve = [(0, 0, 0.0, 0.0), (steps // 2, steps, seconds / 2, 10.0), (steps, 2 * steps, seconds, 20.0)]
    write_row(folder / "tiny.csv", config, environment, seed, curve, commit)


def test_speeds_of_machines(tmp_path):
    write_run(tmp_path, "ppo", CARTPOLE, "quick", 1.0)
    write_run(tmp_path, "ppo", PENDULUM, "quick", 3.0, steps=512)
    write_run(tmp_path, "ppo", PENDULUM, "slow", 2.0)
    write_run(tmp_path, "ppo_lambda0.9", PENDULUM, "slow-dirty", 18.0)
    write_run(tmp_path, "ppo_lambda0.95_kl0.015", PENDULUM, "slow", 0.1)  # does less
    write_run(tmp_path, "hybrid_grpo", PENDULUM, "slow", 0.1)
    write_run(tmp_path, "ppo", Environment("Pendulum-v1", 256, reward_noise=1.0), "slow", 9.0)  # a slower environment
    write_run(tmp_path, "ppo", Environment("Acrobot-v1", 256), "apart", 1.0)
    # On Pendulum the quick one takes 1.5 seconds and the slow one the geometric mean of 2 and 18: four times as much.
    assert machine_speeds(read_rows(tmp_path)) == pytest.approx({"quick": 0.5, "slow": 2.0})
    assert machine_speeds([]) == {}


def test_seconds_of_several_machines_become_those_of_one(tmp_path):
    suite = load_suite(str(write_suite(tmp_path)))
    write_run(tmp_path, "ppo", CARTPOLE, "quick", 1.0)
    write_run(tmp_path, "ppo", PENDULUM, "quick", 1.0)
    write_run(tmp_path, "ppo", PENDULUM, "slow", 4.0)
    write_run(tmp_path, "hybrid_grpo", CARTPOLE, "slow-dirty", 8.0)
    found = gather(suite, read_rows(tmp_path), {"CartPole-v1": 5.0})
    assert found.has_one_machine
    # Twice PPO's time on the same machine, so that half of its run is PPO's budget.
    assert found.scores(2, [1.0])["hybrid_grpo"].item() == pytest.approx((10 - 5) / (20 - 5))
    assert found.rows["hybrid_grpo", CARTPOLE][0].curve[-1][:2] == (256, 512)

    write_run(tmp_path, "hybrid_grpo", CARTPOLE, "unknown", 1.0, seed=1)
    found = gather(suite, read_rows(tmp_path), {"CartPole-v1": 5.0})
    assert not found.has_one_machine
    assert found.rows["hybrid_grpo", CARTPOLE][0].curve[-1][2] == 8


def test_a_configuration_with_fewer_seeds_is_not_compared(tmp_path):
    suite = load_suite(str(write_suite(tmp_path)))
    suite = suite._replace(configs=("ppo", "hybrid_grpo", "paper"))
    curve = [(0, 0, 0.0, 0.0), (256, 256, 1.0, 10.0)]
    for config, seeds in ("ppo", (0, 1, 2)), ("hybrid_grpo", (0, 1)), ("paper", (0,)):
        for seed in seeds:
            write_row(tmp_path / "tiny.csv", config, CARTPOLE, seed, curve)
    found = gather(suite, read_rows(tmp_path), {"CartPole-v1": 5.0})
    assert found.configs == ("ppo", "hybrid_grpo", "paper") and found.compared() == ["ppo", "hybrid_grpo"]
    assert {config: scores.shape for config, scores in found.scores(0, [1.0]).items()} == dict.fromkeys(
        found.compared(), (2, 1, 1)
    )
