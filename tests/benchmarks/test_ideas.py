"""Ideas that are tried in the settings that tuning has found for PPO."""

import pytest
from stable_baselines3.common.env_util import make_vec_env

from benchmarks.learning.budgeted.training import Curve, Point
from benchmarks.learning.variants import VARIANTS
from sb3_hybrid_grpo import HybridGRPO

ARGUMENTS = ["--tasks", "Pendulum-v1", "--ideas", "ppo", "n2_k2_identity", "--seconds", "1"]


@pytest.fixture
def ideas():
    pytest.importorskip("optuna")
    pytest.importorskip("scipy")
    from benchmarks.learning import ideas

    return ideas


def test_runs_are_made_once(ideas, tmp_path, monkeypatch, capsys):
    calls = []

    def train_task(algorithm, task, params, seed, seconds):
        calls.append((algorithm, task.id, seed, params["learning_rate"], params.get("reward_transform")))
        return Curve([Point(0.0, 0, 0, -1208.0), Point(seconds, 2_000, 4_000, -170.0)])

    monkeypatch.setattr(ideas, "train_task", train_task)
    ideas.main([*ARGUMENTS, "--folder", str(tmp_path), "--seeds", "1"])
    ideas.main([*ARGUMENTS, "--folder", str(tmp_path), "--seeds", "2"])
    rate = ideas.ranking(ideas.finished_trials(ideas.FOLDER), "continuous", "ppo")[0][0].params["learning_rate"]
    assert calls == [
        (algorithm, "Pendulum-v1", seed, rate, transform)
        for seed in (0, 1)
        for algorithm, transform in (("ppo", None), ("hybrid_grpo", "identity"))
    ]
    capsys.readouterr()
    ideas.main([*ARGUMENTS, "--folder", str(tmp_path), "--report"])
    assert "| ppo | 0.50 (0.50 to 0.50; 2) | 0.50 |" in capsys.readouterr().out
    monkeypatch.setitem(ideas.IDEAS, "ppo", {"learning_rate": 1.0})
    with pytest.raises(SystemExit):
        ideas.main([*ARGUMENTS, "--folder", str(tmp_path), "--seeds", "3"])
    assert "ppo on Pendulum-v1 with other settings" in capsys.readouterr().err and len(calls) == 4


def test_report_of_one_budget_with_runs_that_diverged_at_once(ideas, tmp_path, monkeypatch, capsys):
    def train_task(algorithm, task, params, seed, seconds):
        start = Point(0.0, 0, 0, -1208.0)
        return Curve([start], "ValueError: NaN") if algorithm == "ppo" else Curve([start, Point(seconds, 1_000, 9, -170.0)])

    monkeypatch.setattr(ideas, "train_task", train_task)
    for seconds in ("1", "2"):
        ideas.main([*ARGUMENTS[:-1], seconds, "--folder", str(tmp_path), "--seeds", "2"])
    capsys.readouterr()
    ideas.main([*ARGUMENTS[:-1], "2", "--folder", str(tmp_path), "--report"])
    printed = capsys.readouterr().out
    assert "| ppo | 0.00 (0.00 to 0.00; 2) |  |" in printed
    assert "| n2_k2_identity | 0.50 (0.50 to 0.50; 2) | 2.00 |" in printed


def test_rows_that_are_older_than_a_choice_count(ideas, tmp_path, monkeypatch):
    path = tmp_path / "ideas.csv"
    for idea in ("natural", "n2_k2", "ppo_long"):
        monkeypatch.setattr(ideas, "train_task", lambda *arguments: Curve([Point(0.0, 0, 0, 0.0), Point(1.0, 9, 9, 0.0)]))
        arguments = ["--tasks", "Pendulum-v1", "--ideas", idea, "--seconds", "1", "--folder", str(tmp_path), "--seeds", "1"]
        ideas.main(arguments)
        text = path.read_text()
        assert '""noise_together"": false' in text
        path.write_text(text.replace('""noise_together"": false, ', "").replace(', ""noise_together"": false', ""))
        ideas.main(arguments)
        assert "noise_together" not in path.read_text()


def test_every_idea_is_a_setting_of_the_algorithm(ideas):
    from benchmarks.learning.budgeted.tuning.search_space import settings_of

    common = ideas.ranking(ideas.finished_trials(ideas.FOLDER), "continuous", "ppo")[0][0].params
    for idea in ideas.IDEAS.values():
        params = {**common, **idea}
        arguments = settings_of(params).arguments
        algorithm = VARIANTS.get(params.get("variant"), HybridGRPO)
        if "n_samples" in params:
            env = make_vec_env("Pendulum-v1", n_envs=params["n_envs"])
            model = algorithm("MlpPolicy", env, device="cpu", _init_setup_model=False, **arguments)
            assert type(model).__name__ == params.get("variant", "HybridGRPO")
            assert (model.n_samples, model.branch_horizon) == (params["n_samples"], params["branch_horizon"])
