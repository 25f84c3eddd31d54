import csv
import io
import multiprocessing
import os
import runpy
import sys
import textwrap
import time
import warnings
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from rich.console import Console
from stable_baselines3 import PPO
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import VecNormalize

from sb3_hybrid_grpo import GRPO, PAPER_SETTINGS, HybridGRPO
from sb3_hybrid_grpo.compare import cli, curve, display, report, run_log, settings, training
from sb3_hybrid_grpo.compare.folder import ResultsFolder, read_evaluations
from sb3_hybrid_grpo.compare.settings import Run, Settings, build_model, make_envs, parse_hyperparam
from sb3_hybrid_grpo.compare.training import Evaluation

TINY = [
    "--env",
    "CartPole-v1",
    "--timesteps",
    "128",
    "--eval-episodes",
    "2",
    "--hyperparams",
    "n_steps=16",
    "batch_size=32",
    "n_envs=2",
]


def make_settings(**overrides) -> Settings:
    defaults = {
        "env": "CartPole-v1",
        "timesteps": 64,
        "n_samples": 2,
        "hyperparams": {"n_envs": 2, "n_steps": 8, "batch_size": 16, "gamma": 0.8, "gae_lambda": 0.7, "clip_range": "lin_0.4"},
        "eval_every": 32,
        "eval_episodes": 2,
        "device": "cpu",
    }
    return Settings(**{**defaults, **overrides})


def read_rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("n_steps=64", ("n_steps", 64)),
        ("gamma=1", ("gamma", 1)),
        ("use_sde=True", ("use_sde", True)),
        ("target_kl=None", ("target_kl", None)),
        ("clip_range=lin_0.2", ("clip_range", "lin_0.2")),
        ("policy_kwargs={'net_arch': [8]}", ("policy_kwargs", {"net_arch": [8]})),
    ],
)
def test_hyperparameters_are_read(text, expected):
    assert parse_hyperparam(text) == expected


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("gamma", "key=value"),
        ("gama=0.9", "valid ones: n_envs, normalize, learning_rate"),
        ("n_steps=1.5", "n_steps must be of type int"),
        ("n_steps=True", "n_steps must be of type int"),
        ("use_sde=1", "use_sde must be of type bool"),
        ("gamma='0.9'", "gamma must be of type float"),
        ("gamma=__import__('os').getcwd()", "not a Python literal"),
        ("n_steps=lin_3", "not a Python literal"),
        ("clip_range=lin_x", "could not convert string to float"),
    ],
)
def test_bad_hyperparameters_are_refused(text, message):
    with pytest.raises(ValueError, match=message):
        parse_hyperparam(text)


@pytest.mark.parametrize(
    ("algo", "expected"), [("hybrid_grpo", HybridGRPO), ("ppo", PPO), ("grpo", GRPO), ("paper", HybridGRPO)]
)
def test_every_algorithm_gets_the_shared_settings(algo, expected):
    model = build_model(make_settings(), Run(algo, seed=7), make_vec_env("CartPole-v1", n_envs=2))
    assert type(model) is expected
    assert (model.n_steps, model.batch_size, model.gamma, model.seed) == (8, 16, 0.8, 7)
    assert model.clip_range(0.5) == pytest.approx(0.2)
    if algo in ("hybrid_grpo", "ppo", "paper"):
        assert model.gae_lambda == 0.7
    if algo != "ppo":
        assert model.n_samples == 2
    if algo == "paper":
        assert model.advantage == PAPER_SETTINGS["advantage"]


@pytest.mark.parametrize(("algo", "branches"), [("ppo", 1), ("hybrid_grpo", 1 + 8)])
def test_evaluations_follow_the_steps_and_stop_the_clock(algo, branches, monkeypatch):
    evaluate_policy = curve.evaluate_policy

    def slow_evaluation(*args, **kwargs):
        time.sleep(0.5)
        return evaluate_policy(*args, **kwargs)

    monkeypatch.setattr(curve, "evaluate_policy", slow_evaluation)
    start = time.perf_counter()
    model, evaluations = training.train(make_settings(), Run(algo, 0), lambda steps, last_return: None)
    elapsed = time.perf_counter() - start
    assert model.num_timesteps == 64
    assert [point.committed_steps for point in evaluations] == [0, 32, 64]
    simulator_steps = [point.simulator_steps for point in evaluations]
    assert simulator_steps[0] == 0 and simulator_steps[2] == getattr(model, "num_simulator_steps", 64)
    assert 32 <= simulator_steps[1] <= 32 * branches and 64 <= simulator_steps[2] <= 64 * branches
    seconds = [point.seconds for point in evaluations]
    assert sorted(seconds) == seconds
    assert seconds[-1] < elapsed - 3 * 0.5
    assert all(point.return_mean >= 1 for point in evaluations)


@pytest.mark.parametrize("algo", ["ppo", "hybrid_grpo"])
def test_evaluations_do_not_change_the_training(algo):
    def parameters(settings):
        model, _ = training.train(settings, Run(algo, 3), lambda steps, last_return: None)
        return np.concatenate([value.detach().numpy().ravel() for value in model.policy.parameters()])

    rarely, often = make_settings(eval_every=1000), make_settings(eval_every=1)
    np.testing.assert_array_equal(parameters(rarely), parameters(often))


def test_environments_in_workers(monkeypatch):
    made = []
    monkeypatch.setattr(settings, "make_parallel_env", lambda *arguments: made.append(arguments))
    for chosen in (["--engine", "ray", "--workers", "2"], ["--workers", "3"], ["--engine", "process"]):
        shared = cli._settings(cli._parser().parse_args(["--env", "CartPole-v1", *chosen]))
        settings.make_env(shared.env, 4, 1, shared.engine, shared.workers)
    assert made == [
        ("CartPole-v1", 4, 2, "ray", 1),
        ("CartPole-v1", 4, 3, "process", 1),
        ("CartPole-v1", 4, None, "process", 1),
    ]


@pytest.mark.slow
def test_main_job_with_workers(tmp_path):
    argv = [*TINY, "--algos", "hybrid_grpo", "--seeds", "1", "--engine", "process", "--workers", "2", "--out", str(tmp_path)]
    assert cli.main(argv) == 0
    assert read_rows(tmp_path / "results.csv")


def test_curves_are_grouped_and_summarised():
    def point(algo, seed, steps, value):
        cpu_seconds = steps / 10 if algo == "ppo" else steps / 5
        return Evaluation(algo, "Env-v0", seed, steps, 4 * steps, steps, cpu_seconds, value, 0.0)

    evaluations = [
        point("ppo", 0, 0, 1.0),
        point("ppo", 0, 50, 5.0),
        point("hybrid_grpo", 0, 0, 1.0),
        point("hybrid_grpo", 0, 50, 10.0),
        point("hybrid_grpo", 1, 0, 3.0),
        point("hybrid_grpo", 1, 50, 14.0),
    ]
    curves = report.curves_by_algorithm(evaluations)
    assert list(curves) == ["hybrid_grpo", "ppo"]
    np.testing.assert_array_equal(curves["hybrid_grpo"].returns, [[1, 10], [3, 14]])
    np.testing.assert_array_equal(curves["ppo"].seconds, [[0, 5]])

    console = Console(record=True, width=80, file=io.StringIO())
    console.print(report.summary_table(curves, "Env-v0", ["a note [with brackets]"]))
    lines = console.export_text().splitlines()
    assert "at 5 s" in " ".join(lines)
    rows = [line.split() for line in lines if "hybrid_grpo" in line or "ppo" in line]
    assert rows[0] == "hybrid_grpo 2 12.0 ± 2.8 7.0 ± 2.1 50 200 10.0".split()
    assert rows[1] == "ppo 1 5.0 5.0 50 200 5.0".split()
    assert lines[-1].strip() == "a note [with brackets]"


def test_table_of_large_numbers_fits_a_terminal():
    returns, steps = np.array([[0, 1234.5], [0, 5234.5]]), np.array([[0, 10_000_352], [0, 10_000_352]])
    curve = report.Curves(steps, 8 * steps, np.array([[0, 100.4], [0, 104.4]]), returns)
    console = Console(record=True, width=80, file=io.StringIO())
    console.print(report.summary_table({"hybrid_grpo": curve}, "Env-v0"))
    text = console.export_text()
    assert "…" not in text
    assert set("hybrid_grpo 2 3,234 ± 2,828 3,184 2,758 10,000,352 80,002,816 102 3".split()) <= set(text.split())


def test_table_of_the_committed_run_fits_a_terminal():
    path = Path(__file__).parents[2] / "benchmarks" / "results" / "first_run.csv"
    curves = report.curves_by_algorithm(read_evaluations(path))
    console = Console(record=True, width=80, file=io.StringIO())
    console.print(report.summary_table(curves, "HalfCheetah-v5"))
    assert "…" not in console.export_text()


def test_seconds_are_those_on_the_clock_where_a_process_does_not_see_its_workers():
    evaluations = [Evaluation("ppo", "Env-v0", 0, 9, 9, seconds, seconds / 10, 1.0, 0.0) for seconds in (0.0, 7.0)]
    console = Console(record=True, width=80, file=io.StringIO())
    for is_by_clock, seconds, label in (False, 0.7, "CPU"), (True, 7.0, "clock"):
        curves = report.curves_by_algorithm(evaluations, is_by_clock)
        assert curves["ppo"].seconds[0, -1] == seconds
        console.print(report.summary_table(curves, "Env-v0"))
        assert label in console.export_text()
        right = report.draw_curves(curves, "Env-v0").axes[1]
        assert right.get_xlabel() == ("seconds of training" if is_by_clock else "processor seconds of training")


def test_algorithms_have_their_own_numbers_of_samples_by_default():
    def samples(algo):
        return build_model(make_settings(n_samples=None), Run(algo, 0), make_vec_env("CartPole-v1", 2)).n_samples

    assert (samples("hybrid_grpo"), samples("grpo")) == (2, 4)


def test_normalisation_is_that_of_the_training(tmp_path):
    hyperparams = {
        "normalize": True,
        "n_steps": 16,
        "batch_size": 16,
        "gamma": 0.5,
        "policy_kwargs": {"activation_fn": "ReLU"},
    }
    settings = make_settings(hyperparams=hyperparams, timesteps=32)
    env, eval_env = make_envs(settings, 0)
    assert env.gamma == 0.5 and env.training and not eval_env.training and not eval_env.norm_reward
    model, evaluations = training.train(settings, Run("ppo", 0), lambda steps, last_return: None)
    assert isinstance(model.policy.mlp_extractor.policy_net[1], th.nn.ReLU)
    folder = ResultsFolder(tmp_path, settings)
    folder.save(Run("ppo", 0), model, evaluations)
    statistics = VecNormalize.load(tmp_path / "ppo_0_vecnormalize.pkl", make_vec_env("CartPole-v1", 1))
    assert statistics.obs_rms.count == pytest.approx(32 + 1, abs=1)


def test_help_fits_a_screen(monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "80")
    with pytest.raises(SystemExit):
        cli.main(["--help"])
    assert len(capsys.readouterr().out.splitlines()) <= 40


@pytest.mark.filterwarnings("default")
def test_what_a_run_prints_goes_to_its_log(tmp_path, capfd, monkeypatch):
    log = tmp_path / "run.log"
    for name, stream in (("stdout", 1), ("stderr", 2)):
        monkeypatch.setattr(sys, name, open(stream, "w", closefd=False))
    with pytest.raises(ZeroDivisionError), run_log.printing_to(log):
        print("of Python")
        os.write(2, b"of a library\n")
        warnings.warn("it is\ngetting warm: open a window", UserWarning, stacklevel=1)
        gym.logger.warn("not that warm")
        raise ZeroDivisionError
    os.write(1, b"after it")
    assert capfd.readouterr() == ("after it", "")
    assert {"of Python", "of a library"} < set(log.read_text().splitlines())
    assert run_log.warnings_in(log) == ["it is getting warm: open a window", "not that warm"]
    assert run_log.warnings_in(tmp_path / "none.log") == []


def test_warnings_of_runs_are_one_line_of_the_table(tmp_path):
    folder = ResultsFolder(tmp_path, make_settings())
    for seed in range(3):
        folder.log(Run("grpo", seed)).write_text("Warning: it diverges: do less\nWarning: again\n" if seed else "loading\n")
    evaluations = [
        Evaluation(algo, "CartPole-v1", seed, 0, 0, 0.0, 0.0, 0.0, 0.0) for algo in ("ppo", "grpo") for seed in range(3)
    ]
    assert cli._notes(evaluations, folder) == [f"grpo: 2 of 3 runs warned (it diverges); see {tmp_path / 'runs'}"]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    out = tmp_path_factory.mktemp("finished")
    assert cli.main([*TINY, "--algos", "hybrid_grpo,ppo", "--seeds", "1", "--jobs", "2", "--out", str(out)]) == 0
    return out


def test_main_job_writes_curves_results_and_checkpoints(finished):
    rows = read_rows(finished / "results.csv")
    assert list(rows[0]) == list(Evaluation._fields)
    assert {(row["algo"], row["env"], row["seed"]) for row in rows} == {
        ("hybrid_grpo", "CartPole-v1", "0"),
        ("ppo", "CartPole-v1", "0"),
    }
    steps = {algo: [int(row["committed_steps"]) for row in rows if row["algo"] == algo] for algo in ("hybrid_grpo", "ppo")}
    assert steps["hybrid_grpo"] == steps["ppo"] == [0, 32, 64, 96, 128]
    last = next(row for row in rows if row["algo"] == "hybrid_grpo" and row["committed_steps"] == "128")
    assert int(last["simulator_steps"]) > 128
    assert (finished / "curves.png").read_bytes().startswith(b"\x89PNG")
    assert PPO.load(finished / "ppo_0.zip").num_timesteps == 128
    assert HybridGRPO.load(finished / "hybrid_grpo_0.zip").num_timesteps == 128


@pytest.mark.usefixtures("quick_processes")
def test_rerun_trains_only_what_is_missing(finished, capsys):
    kept = (finished / "ppo_0.zip").stat().st_mtime_ns
    (finished / "hybrid_grpo_0.zip").unlink()
    assert cli.main([*TINY, "--algos", "hybrid_grpo,ppo", "--seeds", "1", "--out", str(finished)]) == 0
    assert "1 runs to do, 1 finished before" in capsys.readouterr().out
    assert (finished / "hybrid_grpo_0.zip").exists()
    assert (finished / "ppo_0.zip").stat().st_mtime_ns == kept

    assert cli.main([*TINY, "--algos", "ppo", "--seeds", "1", "--out", str(finished)]) == 0
    assert {row["algo"] for row in read_rows(finished / "results.csv")} == {"hybrid_grpo", "ppo"}


def test_folder_of_other_settings_is_refused(finished, capsys):
    results = (finished / "results.csv").read_bytes()
    with pytest.raises(SystemExit) as exit_info:
        cli.main([*TINY, "gamma=0.5", "--out", str(finished)])
    assert exit_info.value.code == 2
    assert "other settings (hyperparams is" in capsys.readouterr().err
    assert (finished / "results.csv").read_bytes() == results


@pytest.fixture
def fragile_env(tmp_path, monkeypatch):
    source = """
        import os

        import gymnasium as gym
        from gymnasium.envs.classic_control import CartPoleEnv


        class Fragile(CartPoleEnv):
            def reset(self, *, seed=None, options=None):
                if seed == 1:
                    raise RuntimeError("the [env] is broken")
                if seed == 2:
                    os._exit(3)
                return super().reset(seed=seed, options=options)


        gym.register("Fragile-v0", Fragile, max_episode_steps=20)
    """
    (tmp_path / "fragile.py").write_text(textwrap.dedent(source))
    monkeypatch.syspath_prepend(tmp_path)
    return "fragile:Fragile-v0"


@pytest.mark.usefixtures("quick_processes")
def test_failing_runs_are_named_and_take_nothing_with_them(fragile_env, tmp_path, capsys):
    out = tmp_path / "out"
    argv = [
        "--env",
        fragile_env,
        "--algos",
        "ppo",
        "--out",
        str(out),
        "--seeds",
        "3",
        "--timesteps",
        "16",
        "--eval-episodes",
        "1",
    ]
    assert cli.main([*argv, "--hyperparams", "n_steps=16", "batch_size=16"]) == 1
    output = " ".join(capsys.readouterr().out.split())
    assert "ppo_1 failed: RuntimeError: the [env] is broken" in output
    assert "ppo_2 failed: its process ended with exit code 3" in output
    assert "2 of 3 runs failed: ppo_1, ppo_2" in output
    assert 'raise RuntimeError("the [env] is broken")' in (out / "runs" / "ppo_1.traceback.txt").read_text()
    assert {row["seed"] for row in read_rows(out / "results.csv")} == {"0"}
    assert sorted(path.name for path in out.glob("*.zip")) == ["ppo_0.zip"]


def test_ctrl_c_ends_the_processes(tmp_path, monkeypatch, capsys):
    def interrupted(updates, *args):
        next(updates)
        raise KeyboardInterrupt

    monkeypatch.setattr(display, "follow", interrupted)
    assert cli.main([*TINY, "--algos", "ppo", "--jobs", "1", "--out", str(tmp_path)]) == 130
    assert "the same command goes on" in capsys.readouterr().out
    assert multiprocessing.active_children() == []


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--env", "NoSuchEnv-v0"], "NoSuchEnv"),
        (["--env", "no_such_module:Env-v0"], "no_such_module"),
        (["--algos", "ppo,dqn"], "unknown algorithms: 'dqn'; valid ones: hybrid_grpo, ppo, grpo, paper"),
        (["--timesteps", "0"], "'0' is not a positive integer"),
        (["--seeds", "-1"], "'-1' is not a positive integer"),
        (["--n-samples", "2.5"], "'2.5' is not a positive integer"),
        (["--hyperparams", "gama=1"], "unknown hyperparameter 'gama'"),
    ],
)
def test_bad_input_is_explained(argv, message, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["sb3_hybrid_grpo", *argv, "--out", str(tmp_path / "out")])
    with pytest.raises(SystemExit) as exit_info:
        runpy.run_module("sb3_hybrid_grpo", run_name="__main__")
    assert exit_info.value.code == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("options", "jobs"), [([], os.cpu_count()), (["--engine", "process"], 1), (["--workers", "2"], 1), (["--jobs", "3"], 3)]
)
def test_runs_with_workers_are_made_one_at_a_time(options, jobs):
    assert cli._jobs(cli._parser().parse_args(options)) == jobs


def test_a_file_where_the_folder_should_be(tmp_path, capsys):
    path = tmp_path / "results"
    path.write_text("mine")
    with pytest.raises(SystemExit) as exit_info:
        cli.main([*TINY, "--out", str(path)])
    assert exit_info.value.code == 2 and str(path) in capsys.readouterr().err
    assert path.read_text() == "mine"


@pytest.mark.parametrize("package", ["matplotlib", "rich"])
def test_missing_extra_is_named(package, monkeypatch, capsys):
    class NotInstalled:
        @staticmethod
        def find_spec(name, path=None, target=None):
            if name == package:
                raise ModuleNotFoundError(f"No module named {name!r}", name=name)

    monkeypatch.setattr(sys, "meta_path", [NotInstalled, *sys.meta_path])
    for name in [name for name in sys.modules if name.split(".")[0] == package]:
        monkeypatch.delitem(sys.modules, name)
    for module in ("display", "report"):
        monkeypatch.delitem(sys.modules, f"sb3_hybrid_grpo.compare.{module}")
        monkeypatch.delattr(f"sb3_hybrid_grpo.compare.{module}")
    with pytest.raises(SystemExit) as exit_info:
        cli.main(TINY)
    assert exit_info.value.code == 1
    assert f'{package} is missing: pip install "sb3-hybrid-grpo[main]"' in capsys.readouterr().err
