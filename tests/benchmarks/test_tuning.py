"""Trainings with a budget of processor seconds, and studies that are made again from rows."""

import itertools
from functools import cache

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3 import PPO
from stable_baselines3.common.env_util import make_vec_env

from benchmarks.learning.budgeted.adaptive_ppo import AdaptivePPO
from benchmarks.learning.budgeted.tasks.families import FAMILIES, Task, make_envs
from benchmarks.learning.budgeted.training import Curve, Point
from sb3_hybrid_grpo import HybridGRPO
from tests.envs import limited

SMALL = {"n_steps": 16, "batch_size": 16, "n_epochs": 1, "seed": 0, "device": "cpu"}


def test_adaptive_ppo():
    weights = []
    for algorithm in (PPO, AdaptivePPO):
        model = algorithm("MlpPolicy", limited()(), learning_rate=1e-3, **SMALL).learn(64)
        weights.append(model.policy.action_net.weight.detach())
    assert th.equal(*weights)

    model = AdaptivePPO("MlpPolicy", limited()(), learning_rate=1e-6, desired_kl=0.1, **SMALL).learn(64)
    assert model.learning_rate_factor == pytest.approx(1.5**4)
    assert model.policy.optimizer.param_groups[0]["lr"] == pytest.approx(1e-6 * 1.5**3)
    with pytest.raises(ValueError, match="desired_kl"):
        AdaptivePPO("MlpPolicy", limited()(), desired_kl=0.0, **SMALL)


def test_scores():
    assert Task("X-v0", -100.0, 300.0).normalize(100.0) == 0.5


def test_minatar():
    pytest.importorskip("minatar")
    returns = []
    for _ in range(2):
        env = gym.make("MinAtarFlat/breakout-v0")
        env.reset(seed=3)
        rewards = [env.step(action)[1:3] for action in itertools.islice(itertools.cycle((0, 1, 2, 2, 1)), 8)]
        returns.append((rewards, env.reset()[0]))
    assert returns[0][0] == returns[1][0]
    np.testing.assert_array_equal(returns[0][1], returns[1][1])
    assert env.observation_space.contains(returns[0][1])
    model = HybridGRPO("MlpPolicy", "MinAtarFlat/breakout-v0", **SMALL)
    assert model.learn(16).num_simulator_steps > 16


def test_staggered_episodes_end_one_after_the_other():
    env, _ = make_envs("Pendulum-v1", 4, False, 0.99, 0, staggered=True)
    env.reset()
    ends = [[] for _ in range(4)]
    for step in range(1, 451):
        _, _, dones, infos = env.step(np.zeros((4, 1)))
        for i in np.flatnonzero(dones):
            ends[i].append(step)
            assert infos[i]["TimeLimit.truncated"]
    assert ends == [[50, 250, 450], [100, 300], [150, 350], [200, 400]]


def test_a_task_is_trained_with_its_noise_and_its_environments(monkeypatch):
    pytest.importorskip("optuna")
    from benchmarks.learning.budgeted.tuning import trial
    from benchmarks.learning.budgeted.tuning.known_good import first_trials

    def train(make_model, env, budget):
        cut = [each._steps_left for each in env.envs]
        return make_model(env).policy.log_std_init, cut

    monkeypatch.setattr(trial, "train", train)
    params = {**first_trials("continuous", "ppo")[0], "log_std_init": -1.0, "n_envs": 2}
    params |= {"noise_together": True, "staggered": True}
    task = Task("Reacher-v5", 0.0, 1.0)
    assert trial.train_task("ppo", task, params, 0, 1.0) == (pytest.approx(-1.3465736), [25, 50])


class TestStudies:
    @pytest.fixture(autouse=True)
    def optuna(self):
        self.optuna = pytest.importorskip("optuna")
        self.optuna.logging.set_verbosity(self.optuna.logging.WARNING)

    @pytest.fixture
    def tune(self, monkeypatch):
        """The command with trainings of no time, whose score is their seed, but -10 for PPO's late ones, and quick storage."""
        from benchmarks.learning import tune
        from benchmarks.learning.budgeted.tuning import trial

        def train_task(algorithm, task, params, seed, seconds):
            score = -10 if algorithm == "ppo" and seed > 8 else seed
            mean_return = task.low + score * (task.high - task.low)
            return Curve([Point(0, 0, 0, mean_return), Point(seconds, 9, 9, mean_return)])

        self.storage_in = tune.storage_in
        monkeypatch.setattr(trial, "train_task", train_task)
        monkeypatch.setattr(trial, "provenance", lambda work_seconds: {"commit": "abc"})
        monkeypatch.setattr(tune, "storage_in", cache(lambda folder: self.optuna.storages.InMemoryStorage()))
        monkeypatch.setattr(tune.th, "set_num_threads", lambda n: None)
        return tune

    @pytest.mark.parametrize("family", list(FAMILIES))
    def test_both_algorithms_have_the_same_space_and_begin_alike(self, family):
        from benchmarks.learning.budgeted.tuning.known_good import first_trials
        from benchmarks.learning.budgeted.tuning.search_space import OWN, search_space, settings_of

        ppo, hybrid = (search_space(family, algorithm) for algorithm in ("ppo", "hybrid_grpo"))
        assert hybrid == {**ppo, **OWN} and ("log_std_init" in ppo) == (family == "continuous")
        firsts = first_trials(family, "ppo"), first_trials(family, "hybrid_grpo")
        for of_ppo, of_hybrid in zip(*firsts, strict=True):
            assert of_hybrid.keys() == hybrid.keys()
            assert of_ppo == {name: of_hybrid[name] for name in ppo}
            for name, value in of_hybrid.items():
                assert hybrid[name]._contains(hybrid[name].to_internal_repr(value)), name
            settings = settings_of(of_hybrid)
            assert settings.arguments["n_steps"] * settings.n_envs == of_hybrid["rollout"]
            env = make_vec_env("CartPole-v1", settings.n_envs)
            model = HybridGRPO("MlpPolicy", env, **settings.arguments)
            assert (model.max_actor_grad_norm, model.n_samples) == (0.005, of_hybrid["n_samples"])
            AdaptivePPO("MlpPolicy", env, **settings_of(of_ppo).arguments)

    @pytest.mark.parametrize(("family", "n_natural"), [("continuous", 7), ("discrete", 12)])
    @pytest.mark.parametrize("algorithm", ["ppo", "hybrid_grpo"])
    def test_trials_of_minutes_are_in_the_space(self, algorithm, family, n_natural):
        from benchmarks.learning.budgeted.tuning.known_good import first_trials
        from benchmarks.learning.budgeted.tuning.search_space import search_space, settings_of

        space, trials = search_space(family, algorithm), first_trials(family, algorithm, in_minutes=True)
        for params in trials:
            assert params.keys() == space.keys()
            for name, value in params.items():
                assert space[name]._contains(space[name].to_internal_repr(value)), name
        are_natural = ["trust_region" in settings_of(params).arguments for params in trials]
        n_natural *= algorithm == "hybrid_grpo"
        assert all(are_natural[:n_natural]) and not are_natural[n_natural]

    def test_settings(self):
        from benchmarks.learning.budgeted.tuning.known_good import first_trials
        from benchmarks.learning.budgeted.tuning.search_space import settings_of

        params = first_trials("continuous", "hybrid_grpo")[0]
        arguments = settings_of({**params, "kl_control": "desired", "kl": 0.03, "actor_limit": "none"}).arguments
        assert (arguments["desired_kl"], arguments["max_actor_grad_norm"], "target_kl" in arguments) == (0.03, None, False)
        natural = {**params, "natural": True, "kl": 0.03}
        regions = [settings_of({**natural, "schedule": name}).arguments["trust_region"] for name in ("constant", "linear")]
        assert regions == [0.03, "lin_0.03"]
        together = settings_of({**params, "log_std_init": -1.0, "noise_together": True})
        for space, log_std_init in (spaces.Box(-1, 1, (4, 1)), -1.6931472), (spaces.Box(-1, 1, (1,)), -1.0):
            assert together.for_actions(space)["policy_kwargs"]["log_std_init"] == pytest.approx(log_std_init)
        assert together.arguments["policy_kwargs"]["log_std_init"] == -1.0
        assert settings_of(params).for_actions(space) == settings_of(params).arguments
        arguments = settings_of({**params, "kl_control": "none", "schedule": "linear", "learning_rate": 0.5}).arguments
        assert not {"target_kl", "desired_kl"} & arguments.keys() and arguments["learning_rate"](0.5) == 0.25
        arguments = settings_of({**params, "rollout": 64, "n_envs": 16, "batch_size": 256}).arguments
        assert (arguments["n_steps"], arguments["batch_size"]) == (4, 64)

    def test_turns_seeds_and_pruning(self, tune, tmp_path, capsys):
        tune.main(["--family", "discrete", "--trials", "10", "--folder", str(tmp_path), "--seconds", "1"])
        rows = tune.finished_trials(tmp_path)
        assert [row.algorithm for row in rows] == ["hybrid_grpo", "ppo"] * 10
        assert [row.seed for row in rows] == [row.number for row in rows] == [i // 2 for i in range(20)]
        assert rows[5].value == 2 and rows[5].scores == dict.fromkeys((task.id for task in FAMILIES["discrete"]), 2)
        assert [row.state for row in rows[:-1]] == ["complete"] * 19
        assert rows[-1].state == "pruned" and rows[-1].scores == {"Acrobot-v1": -10}
        assert capsys.readouterr().out.count("\n") == 20

    def test_a_study_is_made_again_from_its_rows(self, tune, tmp_path):
        arguments = ["--family", "discrete", "--folder", str(tmp_path), "--trials"]
        tune.main([*arguments, "10"])
        tune.storage_in.cache_clear()
        study = tune.open_study(tmp_path, "discrete", "ppo")
        rows = list(tune.rows_of(tune.finished_trials(tmp_path), "discrete", "ppo"))
        assert [trial.params for trial in study.trials if trial.state.is_finished()] == [row.params for row in rows]
        assert study.best_trial.number == 8 and study.trials[9].state.name == "PRUNED"
        assert study.trials[9].intermediate_values == {0: -10}
        assert study.trials[8].intermediate_values == dict.fromkeys(range(4), 8)
        assert len(tune.open_study(tmp_path, "discrete", "ppo").trials) == len(study.trials)
        tune.main([*arguments, "11"])
        assert [row.number for row in tune.finished_trials(tmp_path)[-2:]] == [10, 10]

    def test_first_trials_that_are_missing_are_tried_next(self, tune, tmp_path):
        arguments = ["--family", "discrete", "--folder", str(tmp_path), "--trials"]
        tune.main([*arguments, "2"])
        tune.storage_in.cache_clear()
        tune.main([*arguments, "7"])
        rows = list(tune.rows_of(tune.finished_trials(tmp_path), "discrete", "ppo"))
        assert [row.params for row in rows] == tune.first_trials("discrete", "ppo")

    def test_each_algorithm_tries_what_the_other_has_found(self, tune, tmp_path):
        arguments = ["--family", "discrete", "--folder", str(tmp_path), "--trials"]
        tune.main([*arguments, "10"])
        rows = tune.finished_trials(tmp_path)
        best = {
            name: max((row for row in rows if row.algorithm == name and row.state == "complete"), key=lambda row: row.value)
            for name in ("ppo", "hybrid_grpo")
        }
        for algorithm, other, own_starts in (("ppo", "hybrid_grpo", ()), ("hybrid_grpo", "ppo", tune.CHEAP)):
            borrowed = tune.borrowed_params(rows, "discrete", algorithm, own_starts)
            common = {name: value for name, value in best[other].params.items() if name in borrowed[0]}
            assert borrowed[0] == {**best[algorithm].params, **common}
            assert borrowed[1:] == [{**borrowed[0], **start} for start in own_starts]
            trials = tune.open_study(tmp_path, "discrete", algorithm).trials
            waiting = [trial.system_attrs.get("fixed_params") for trial in trials]
            assert all(params in waiting for params in borrowed)
        assert tune.borrowed_params(rows[:11], "discrete", "ppo") == []
        again = [row._replace(state="repeated", value=value) for row, value in ((rows[1], 5.0), (best["ppo"], 4.0))]
        borrowed = tune.borrowed_params([*rows, *again], "discrete", "hybrid_grpo")
        assert borrowed[0]["learning_rate"] == rows[1].params["learning_rate"] != best["ppo"].params["learning_rate"]

    def test_what_is_borrowed_is_not_pruned(self, tune, tmp_path, monkeypatch):
        arguments = ["--family", "discrete", "--folder", str(tmp_path), "--trials"]
        tune.main([*arguments, "10"])
        monkeypatch.setattr(tune.optuna.pruners.MedianPruner, "prune", lambda self, study, trial: True)
        tune.main([*arguments, "20"])
        rows = tune.finished_trials(tmp_path)
        for row in rows[20:]:
            borrowed = tune.borrowed_params(rows[:20], "discrete", row.algorithm, tune.CHEAP)
            assert row.state == ("complete" if row.params in borrowed else "pruned")
        assert {row.state for row in rows[20:]} == {"complete", "pruned"}

    @pytest.mark.parametrize(("seconds", "states"), [("60", {"complete"}), ("25", {"complete", "pruned"})])
    def test_first_trials_of_minutes_are_not_pruned(self, tune, tmp_path, seconds, states):
        arguments = ["--family", "discrete", "--algorithms", "ppo", "--folder", str(tmp_path), "--seconds", seconds]
        tune.main([*arguments, "--trials", "12"])
        assert {row.state for row in tune.finished_trials(tmp_path)} == states

    @pytest.mark.parametrize("folder", ["tuning", "tuning_minutes", "tuning_held", "tuning_minutes_discrete"])
    def test_trials_that_were_made_lack_no_choice_of_today(self, tune, folder):
        from benchmarks.learning.budgeted.tuning.search_space import search_space

        rows = tune.finished_trials(tune.FOLDER.parent / folder)
        assert rows
        for row in rows:
            assert row.params.keys() == search_space(row.family, row.algorithm).keys()

    def test_trials_that_knew_no_natural_steps_go_on(self, tune, tmp_path):
        pytest.importorskip("sklearn")
        arguments = ["--family", "discrete", "--folder", str(tmp_path), "--trials"]
        tune.main([*arguments, "10"])
        path = tmp_path / "trials.csv"
        text = path.read_text()
        assert text.count(', ""natural"": false') >= 7
        path.write_text(text.replace(', ""natural"": false', ""))
        (tmp_path / "studies.db").unlink(missing_ok=True)
        tune.main([*arguments, "11", "--report"])
        rows = [row for row in tune.finished_trials(tmp_path) if row.algorithm == "hybrid_grpo"]
        assert len(rows) == 11 and all("natural" in row.params for row in rows)
        assert len({str(row.params) for row in rows}) == 11

    def test_a_killed_tuning_goes_on(self, tune, tmp_path, monkeypatch):
        monkeypatch.setattr(tune, "storage_in", self.storage_in)
        arguments = ["--family", "discrete", "--folder", str(tmp_path), "--trials"]
        tune.main([*arguments, "1"])

        def killed(*args):
            raise KeyboardInterrupt

        with monkeypatch.context() as context:
            context.setattr(tune, "run_trial", killed)
            with pytest.raises(KeyboardInterrupt):
                tune.main([*arguments, "2"])
        # The next one is killed between its row and what its study is told.
        with monkeypatch.context() as context:
            context.setattr(tune, "tell", killed)
            with pytest.raises(KeyboardInterrupt):
                tune.main([*arguments, "2"])
        rows = tune.finished_trials(tmp_path)
        assert len(rows) == 3 and rows[-1].number == 1
        study = tune.open_study(tmp_path, "discrete", "hybrid_grpo")
        assert [trial.state.name for trial in study.trials] == ["COMPLETE", "FAIL", "COMPLETE", *["WAITING"] * 5]
        waiting = [trial.system_attrs["fixed_params"] for trial in study.trials[3:]]
        done = [row.params for row in tune.rows_of(rows, "discrete", "hybrid_grpo")]
        first = tune.first_trials("discrete", "hybrid_grpo")
        assert sorted(map(str, done + waiting)) == sorted(map(str, first))

    def test_the_best_are_repeated_once_and_reported(self, tune, tmp_path, capsys):
        pytest.importorskip("sklearn")
        arguments = ["--family", "discrete", "--folder", str(tmp_path), "--trials", "10"]
        tune.main([*arguments, "--repeat", "1"])
        rows = tune.finished_trials(tmp_path)
        repeated = [(row.algorithm, row.number, row.seed) for row in rows if row.state == "repeated"]
        assert sorted(repeated) == [
            (name, number, seed) for name, number in (("hybrid_grpo", 9), ("ppo", 8)) for seed in (1000, 1001, 1002)
        ]
        capsys.readouterr()
        settings = tmp_path / "tuned.json"
        tune.main([*arguments, "--repeat", "1", "--report", "--settings", str(settings)])
        assert len(tune.finished_trials(tmp_path)) == len(rows)
        text = capsys.readouterr().out
        assert "## discrete, hybrid_grpo: 10 trials, 10 complete" in text and "| 9 | 9.000 | 1001.000 (1000.00," in text
        assert text.count("Importance: ") == 1
        tuned = tune.json.loads(settings.read_text())
        assert tuned["discrete"]["hybrid_grpo"] == next(row.params for row in rows if row.number == 9)
        tune.main([*arguments, "--finalists", "1"])
        final = tune.finished_trials(tmp_path)[len(rows) :]
        assert [(row.algorithm, row.number, row.seed, row.state) for row in final] == [
            (*study, seed, "repeated") for seed in (1003, 1004, 1005, 1006) for study in (("hybrid_grpo", 9), ("ppo", 8))
        ]
