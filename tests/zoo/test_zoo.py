"""
The RL Zoo runs with our algorithms.

It does so in processes of its own: importing it replaces a wrapper of Gymnasium.
"""

import importlib.util
import inspect
import json
import math
import os
import re
import subprocess
import sys
from importlib.resources import files
from pathlib import Path
from types import SimpleNamespace

import gymnasium as gym
import pytest

from sb3_hybrid_grpo import GRPO, HybridGRPO, zoo
from sb3_hybrid_grpo.compare.settings import ZOO_HYPERPARAMS

ROOT = Path(__file__).parents[2]
needs_zoo = pytest.mark.skipif(importlib.util.find_spec("rl_zoo3") is None, reason="rl_zoo3 is not installed")
TINY = {
    "batch_size_pow": 5,
    "n_steps_pow": 5,
    "one_minus_gamma": 0.01,
    "one_minus_gae_lambda": 0.05,
    "learning_rate": 0.001,
    "ent_coef": 0.001,
    "clip_range": 0.3,
    "n_epochs": 5,
    "max_grad_norm": 0.7,
    "net_arch": "tiny",
    "activation_fn": "relu",
    "n_samples": 4,
    "tail_coef": 0.25,
    "branch_horizon": 2,
    "branch_lambda": 0.75,
    "target_kl": 0.02,
}


def run(*arguments, cwd):
    process = subprocess.run(
        [sys.executable, *map(str, arguments)],
        cwd=cwd,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert process.returncode == 0, process.stdout[-2000:] + process.stderr[-4000:]
    return process.stdout


@needs_zoo
class TestScripts:
    def test_train(self, tmp_path):
        options = ("-n", 200, "--eval-freq", 100, "--eval-episodes", 1, "-params", "n_steps:64", "n_envs:2", "batch_size:64")
        run("-m", "sb3_hybrid_grpo.zoo", "train", "--env", "CartPole-v1", *options, cwd=tmp_path)
        run_folder = tmp_path / "logs" / "hybrid_grpo" / "CartPole-v1_1"
        model = HybridGRPO.load(run_folder / "CartPole-v1.zip", device="cpu")
        assert model.num_timesteps == 256
        assert model.num_simulator_steps > model.num_timesteps
        assert (model.n_samples, model.n_steps, model.gae_lambda) == (2, 64, 0.8)
        assert (run_folder / "best_model.zip").exists()

    def test_tune_train_with_what_was_found_and_enjoy(self, tmp_path):
        commands = []
        for algo in ("hybrid_grpo", "grpo"):
            options = ["--algo", algo, "--storage", "study.log", "--study-name", algo, "-n", "64"]
            search = ["--n-trials", "2", "--n-evaluations", "1", "--eval-episodes", "1", "--no-optim-plots"]
            commands += [["tune", *options, *search], ["train", *options, "--trial-id", "1", "--eval-freq", "-1"]]
        commands.append(["enjoy", "-n", "50", "--no-render"])
        printed = run("-c", TUNE, json.dumps(TINY), json.dumps(commands), cwd=tmp_path)
        assert printed.count("Number of finished trials:  2") == 2
        assert f"Loading {os.path.join('logs', 'hybrid_grpo', 'CartPole-v1_2')}" in printed

        model = HybridGRPO.load(tmp_path / "logs" / "hybrid_grpo" / "CartPole-v1_2" / "CartPole-v1.zip", device="cpu")
        assert (model.n_steps, model.batch_size, model.gamma, model.gae_lambda) == (32, 32, 0.99, 0.95)
        for name in ("n_samples", "tail_coef", "branch_horizon", "branch_lambda", "target_kl"):
            assert getattr(model, name) == TINY[name]
        model = GRPO.load(tmp_path / "logs" / "grpo" / "CartPole-v1_2" / "CartPole-v1.zip", device="cpu")
        assert type(model) is GRPO
        assert (model.n_steps, model.n_samples, model.target_kl) == (32, 4, 0.02)

    @pytest.mark.parametrize("budget", ["minutes", "seconds"])
    def test_tune_from_settings_that_limit_updates_in_other_ways(self, tmp_path, budget):
        options = ["--env", "Pendulum-v1", "--conf-file", f"hybrid_grpo_{budget}", "--storage", "study.log", "-n", "64"]
        search = ["--n-trials", "2", "--n-evaluations", "1", "--eval-episodes", "1", "--no-optim-plots"]
        options += ["--study-name", "hybrid_grpo"]
        commands = [["tune", *options, *search], ["train", *options, "--trial-id", "1", "--eval-freq", "-1"]]
        run("-c", TUNE, json.dumps({**TINY, "target_kl": 0.005}), json.dumps(commands), cwd=tmp_path)
        (path,) = tmp_path.glob("logs/hybrid_grpo/*/Pendulum-v1.zip")
        model = HybridGRPO.load(path, device="cpu")
        assert (model.target_kl, model.desired_kl, model.trust_region) == (0.005, None, None)

    def test_the_zoos_own_algorithms_keep_their_settings(self):
        assert zoo._defaults("train", ["--algo", "ppo"]) == []
        assert zoo._defaults("enjoy", ["--env", "CartPole-v1", "--algo=ppo"]) == []
        assert zoo._defaults("tune", ["--algo", "ppo"]) == ["--optimize-hyperparameters"]


# Trials of known, small size come first in a study.
TUNE = """
import json, sys
import optuna
from optuna.storages import JournalStorage, journal
from sb3_hybrid_grpo.zoo import main
trial, commands = map(json.loads, sys.argv[1:])
for study_name in ("hybrid_grpo", "grpo"):
    storage = JournalStorage(journal.JournalFileBackend("study.log"))
    study = optuna.create_study(study_name=study_name, storage=storage, direction="maximize")
    study.enqueue_trial(trial | {"learning_rate": 0.0001})
    study.enqueue_trial(trial)
for command in commands:
    main(command)
"""

BUILD_ALL = """
import json, sys
from rl_zoo3.exp_manager import ExperimentManager
from sb3_hybrid_grpo.zoo import main
ExperimentManager.learn = lambda self, model: None
ExperimentManager.save_trained_model = lambda self, model: model.env.close()
for command in json.loads(sys.argv[1]):
    main(command)
    print("built", command[2])
"""


@needs_zoo
class TestSettings:
    def test_hybrid_grpo_takes_every_entry(self, tmp_path):
        """With a warning if it cannot branch as the entry says or if minibatches are cut off, and none is allowed."""
        entries = {**read_settings(), "FrozenLake-v1": {}, "ALE/Pong-v5": {}}
        env_ids = [env_id for env_id in entries if env_id not in ("default", "atari") and is_available(env_id)]
        commands = [["train", "--env", env_id, "--eval-freq", "-1"] for env_id in env_ids]
        for env_id, command in zip(env_ids, commands, strict=True):
            if entries[env_id].get("brancher") == "fork":  # slow to set up
                command += ["-params", "n_envs:1"]
        printed = run("-W", "error::UserWarning", "-c", BUILD_ALL, json.dumps(commands), cwd=tmp_path)
        assert re.findall(r"^built (\S+)$", printed, flags=re.MULTILINE) == env_ids
        assert printed.count("Using 'default' hyperparameters") == 1

    def test_grpo_takes_every_entry(self):
        variables = {}
        exec(zoo.CONFIG_FILES["grpo"].read_text(), variables)
        entries = variables["hyperparams"]
        assert set(entries) == set(read_settings())
        ours = set(inspect.signature(GRPO).parameters)
        for_the_zoo = {"n_envs", "n_timesteps", "normalize", "env_wrapper", "frame_stack"}
        assert set().union(*entries.values()) <= ours | for_the_zoo
        assert entries["Hopper-v5"]["n_steps"] == 512

    def test_ppos_arguments_have_the_zoos_values(self):
        import yaml

        ours = read_settings()
        theirs = yaml.safe_load(files("rl_zoo3").joinpath("hyperparams", "ppo.yml").read_text())
        adapted = {"n_samples", "branch_horizon", "branch_fraction", "brancher"}
        compared = 0
        for env_id, entry in ours.items():
            stem = env_id.partition("-v")[0]
            same = [env_id] if env_id in theirs else [name for name in theirs if name.partition("-v")[0] == stem]
            for name in same:
                expected = dict(theirs[name])
                n_states = entry.get("n_steps", 2048) * entry.get("n_envs", 1)
                if expected.get("batch_size", 0) > n_states:
                    expected["batch_size"] = n_states
                expected = {key: normalized(value) for key, value in expected.items()} | {"n_envs": expected.get("n_envs", 1)}
                actual = {key: normalized(value) for key, value in entry.items() if key not in adapted}
                assert actual | {"n_envs": entry.get("n_envs", 1)} == expected, env_id
                compared += 1
        assert compared >= 20

    def test_settings_for_seconds_and_minutes_are_what_tuning_has_found(self, tmp_path):
        import yaml

        results, hyperparams = ROOT / "benchmarks" / "results", ROOT / "sb3_hybrid_grpo" / "hyperparams"
        minutes = yaml.safe_load((hyperparams / "hybrid_grpo_minutes.yml").read_text())
        tuned = json.loads((results / "tuning_held" / "tuned_by_hand.json").read_text())["continuous"]["hybrid_grpo"]
        assert tuned["noise_together"]
        listed = minutes.keys() - {"default", "Acrobot-v1", "CartPole-v1"}
        dimensions = {name: gym.make(name).action_space.shape[0] for name in listed}
        assert len(dimensions) == 11 and max(dimensions.values()) == 17
        for name, n_dimensions in {"default": 7, **dimensions}.items():
            self.assert_tuned(minutes[name], {**tuned, "log_std_init": tuned["log_std_init"] - math.log(n_dimensions) / 2})
        tuned = json.loads((results / "tuning_discrete_held" / "tuned_by_hand.json").read_text())
        self.assert_tuned(minutes["Acrobot-v1"], tuned["discrete"]["hybrid_grpo"])
        assert minutes["CartPole-v1"] == minutes["Acrobot-v1"]
        found = json.loads((results / "tuning" / "tuned.json").read_text())
        settings = yaml.safe_load((hyperparams / "hybrid_grpo_seconds.yml").read_text())
        assert settings["CartPole-v1"] == settings["Acrobot-v1"]
        self.assert_tuned(settings["default"], found["continuous"]["hybrid_grpo"])
        self.assert_tuned(settings["Acrobot-v1"], found["discrete"]["hybrid_grpo"])
        commands = [
            ["train", "--env", env_id, "--eval-freq", "-1", "--conf-file", f"hybrid_grpo_{budget}"]
            for budget in ("seconds", "minutes")
            for env_id in ("Pendulum-v1", "CartPole-v1")
        ]
        printed = run("-W", "error::UserWarning", "-c", BUILD_ALL, json.dumps(commands), cwd=tmp_path)
        assert "('desired_kl', 0.0153)" in printed and "('trust_region', 'lin_0.03')" in printed
        assert printed.count("('trust_region', 'lin_0.03')") == 2
        assert printed.count("built Pendulum-v1") == 2 and printed.count("built CartPole-v1") == 2

    def assert_tuned(self, ours, found):
        same = (
            *("n_envs", "batch_size", "n_epochs", "clip_range", "ent_coef", "max_grad_norm", "normalize"),
            *("n_samples", "branch_horizon", "tail_coef", "refit_critic"),
        )
        assert {name: ours[name] for name in same} == pytest.approx({name: found[name] for name in same}, rel=3e-3)
        assert ours["n_steps"] * ours["n_envs"] == found["rollout"]
        assert self.scheduled(ours["learning_rate"]) == (found["schedule"], pytest.approx(found["learning_rate"], rel=3e-3))
        assert (1 - ours["gamma"], 1 - ours["gae_lambda"]) == pytest.approx(
            (found["one_minus_gamma"], found["one_minus_lambda"]), rel=3e-3
        )
        kl = pytest.approx(found["kl"], rel=3e-3) if found["kl_control"] == "desired" else None
        assert (ours.get("desired_kl"), ours["max_actor_grad_norm"], found["actor_limit"]) == (kl, None, "none")
        if found.get("natural"):
            assert self.scheduled(ours["trust_region"]) == (found["schedule"], found["kl"])
        else:
            assert "trust_region" not in ours
        expected = {"net_arch": [found["width"]] * 2}
        if "log_std_init" in found:
            expected["log_std_init"] = pytest.approx(found["log_std_init"], abs=1e-3)
        assert eval(ours.get("policy_kwargs", "dict(net_arch=[64, 64])")) == expected

    def scheduled(self, value):
        is_linear = str(value).startswith("lin_")
        return ("linear", float(value.removeprefix("lin_"))) if is_linear else ("constant", value)

    def test_the_comparisons_settings_are_the_zoos(self):
        ours = read_settings()
        for env_id, expected in ZOO_HYPERPARAMS.items():
            found = {name: ours[env_id][name] for name in expected}
            if "policy_kwargs" in expected:
                nn = SimpleNamespace(ReLU="ReLU")
                found["policy_kwargs"] = eval(found["policy_kwargs"], {"nn": nn})
            assert found == expected


def read_settings():
    import yaml

    return yaml.safe_load(zoo.CONFIG_FILES["hybrid_grpo"].read_text())


def normalized(value):
    return re.sub(r"\s+|,\s*(?=\))", "", value) if isinstance(value, str) else value


def is_available(env_id):
    """Whether the optional package of an environment is installed, and the system can branch it."""
    if env_id.startswith("ALE/"):
        return importlib.util.find_spec("ale_py") is not None
    module = gym.spec(env_id).entry_point.partition(":")[0]
    if ".box2d" in module:
        return importlib.util.find_spec("Box2D") is not None and hasattr(os, "fork")
    return ".mujoco" not in module or importlib.util.find_spec("mujoco") is not None


def test_without_the_zoo(monkeypatch, capsys):
    for name in [name for name in sys.modules if name.partition(".")[0] == "rl_zoo3"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "rl_zoo3", None)
    with pytest.raises(SystemExit) as exit_info:
        zoo.main(["train", "--env", "CartPole-v1"])
    assert exit_info.value.code == 1
    assert 'pip install "sb3-hybrid-grpo[zoo]"' in capsys.readouterr().err


@needs_zoo
@pytest.mark.parametrize("settings", ["hybrid_grpo_seconds", "hybrid_grpo_minutes"])
def test_settings_without_atari(settings, tmp_path):
    pytest.importorskip("ale_py")
    command = ["-m", "sb3_hybrid_grpo.zoo", "train", "--conf-file", settings, "--env", "BreakoutNoFrameskip-v4", "-n", "100"]
    done = subprocess.run([sys.executable, *command], capture_output=True, text=True, cwd=tmp_path, timeout=300)
    assert done.returncode == 2 and "no entry for Atari: leave out --conf-file" in done.stderr


def test_workers_are_for_training():
    pytest.importorskip("rl_zoo3")
    command = ["-m", "sb3_hybrid_grpo.zoo", "enjoy", "--env", "CartPole-v1", "--engine", "process"]
    done = subprocess.run([sys.executable, *command], capture_output=True, text=True)
    assert done.returncode == 2 and "--engine and --workers are for train and tune" in done.stderr


def test_unknown_command(capsys):
    with pytest.raises(SystemExit):
        zoo.main(["evaluate"])
    assert "invalid choice: 'evaluate'" in capsys.readouterr().err
