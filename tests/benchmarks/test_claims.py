"""How long methods take to a score, against numbers worked out by hand, and the runner of the claim tasks."""

import json

import gymnasium as gym
import numpy as np
import pytest
from stable_baselines3.common.env_util import make_vec_env

from benchmarks.learning.budgeted.claims.results import ClaimRow, Claims
from benchmarks.learning.budgeted.claims.time_to_score import (
    Scale,
    Times,
    bootstrap,
    common_limit,
    kaplan_meier,
    median_ratio,
    ratio,
    restricted_mean,
    scale_of,
    scores_at,
    times_to,
)
from benchmarks.learning.budgeted.rows import append_row, read_rows
from benchmarks.learning.budgeted.tasks.families import CLAIM_TASKS, FAMILIES, make_envs
from sb3_hybrid_grpo import HybridGRPO


def times(*pairs, end=None):
    at, reached = (np.array(column) for column in zip(*pairs, strict=True))
    return Times(at.astype(float), reached, np.where(reached, end or at, at).astype(float))


CURVE = [(0, 0, 0, -10.0), (1, 100, 900, 5.0), (2, 200, 1800, 4.0), (3, 300, 2700, 8.0)]


@pytest.mark.parametrize(
    "target, axis, at, reached",
    [(-10, 0, 0, True), (4.5, 0, 1, True), (6, 1, 300, True), (6, 2, 2700, True), (9, 0, 3, False), (9, 2, 2700, False)],
)
def test_first_passage(target, axis, at, reached):
    result = times_to([CURVE], target, axis)
    assert (result.at.tolist(), result.reached.tolist(), result.end.tolist()) == ([at], [reached], [CURVE[-1][axis]])


def test_kaplan_meier():
    # Of 5 runs one arrives at 1; one of the other four ends at 2; two of the last three arrive at 3; the last one ends at 9.
    moments, shares = kaplan_meier(times((3, True), (9, False), (1, True), (2, False), (3, True)))
    np.testing.assert_array_equal(moments, [1, 2, 3, 3, 9])
    np.testing.assert_allclose(shares, 4 / 5 * np.array([1, 1, 2 / 3, 1 / 3, 1 / 3]))
    # A run that ends when another arrives was still on its way.
    np.testing.assert_allclose(kaplan_meier(times((2, False), (2, True)))[1], [0.5, 0.5])


@pytest.mark.parametrize(
    "runs, limit, expected",
    [
        ([(1, True), (2, False), (3, True)], 3, 1 + 2 * 2 / 3),
        ([(1, True), (2, False), (3, True)], 10, 1 + 2 * 2 / 3),
        ([(1, True), (3, True)], 2, 1 + 0.5),
        ([(1, True), (3, True)], 5, 2),  # the mean, where nothing is censored
        ([(7, False), (7, False)], 7, 7),
        ([(0, True)], 7, 0),
    ],
)
def test_restricted_mean(runs, limit, expected):
    assert restricted_mean(times(*runs), limit) == pytest.approx(expected)


def test_ratio():
    ours, theirs = times((1, True), (3, True), end=10), times((4, True), (10, False), end=10)
    assert common_limit(ours, theirs) == 10
    assert ratio(ours, theirs) == pytest.approx(2 / (4 + 6 / 2))
    # Theirs are followed to 10 only, ours to 20.
    assert ratio(times((2, True), (20, False)), times((4, True), (10, False))) == pytest.approx((2 + 8 / 2) / (4 + 6 / 2))
    # Where all runs get there, it is the ratio of the means, however long they were followed.
    assert ratio(times((2, True), (4, True), end=5), times((7, True), (20, True), end=100)) == pytest.approx(3 / 13.5)
    assert np.isnan(ratio(times((5, False)), times((5, False))))
    # Untrained policies that are there say nothing.
    assert np.isnan(ratio(times((3, True)), times((0, True))))
    assert ratio(times((0, True)), times((4, True))) == 0


def test_bootstrap_of_runs_that_are_all_alike_has_no_width():
    interval = median_ratio([(times(*[(2, True)] * 4), times(*[(4, True)] * 4))], repetitions=50)
    assert interval == (0.5, 0.5, 0.5)


def test_bootstrap_resamples_each_group_by_itself():
    groups = [times((1, True), (1, True)), times((5, True), (7, True))]
    interval = bootstrap(lambda them: sum(group.at.mean(axis=-1) for group in them), groups, repetitions=400)
    assert interval == (7.0, 6.0, 8.0)
    assert str(interval) == "7.00 [6.00, 8.00]"


def test_median_over_tasks_ignores_those_that_nobody_solves():
    solved = times((1, True), (8, False)), times((4, True), (8, False))
    nobody = times((5, False)), times((5, False))
    assert ratio(*solved) == pytest.approx((1 + 7 / 2) / (4 + 4 / 2))
    assert median_ratio([solved, nobody], repetitions=20).estimate == pytest.approx(ratio(*solved))
    assert np.isnan(median_ratio([nobody], repetitions=2).estimate)


def test_scale():
    scale = scale_of(-20.0, [[[(0, 0, 0, -10.0), (9, 9, 9, 10.0)], [(0, 0, 0, -30.0), (9, 9, 9, 20.0)]], [[(0, 0, 0, 14.0)]]])
    assert scale == Scale(base=-20.0, best=15.0)
    assert scale.target(0.75) == pytest.approx(-20 + 0.75 * 35)
    np.testing.assert_allclose(scale.normalize(np.array([-20.0, 15.0])), [0, 1])


def test_scores_at_budgets():
    np.testing.assert_allclose(scores_at([CURVE], [0, 0.5, 2.5, 99], 0), [[-10, -2.5, 6, 8]])
    np.testing.assert_allclose(scores_at([CURVE], [150], 1), [[4.5]])


def test_claim_tasks_are_not_tuned_on():
    tuned_on = {task.id for tasks in FAMILIES.values() for task in tasks}
    claimed = [task for tasks in CLAIM_TASKS.values() for task in tasks]
    assert len(claimed) == len(set(claimed)) >= 10 and not tuned_on & set(claimed)


# Gymnasium 1.1 has an older version of it.
has_taxi = pytest.mark.skipif("Taxi-v4" not in gym.registry, reason="this Gymnasium has no Taxi-v4")


@has_taxi
def test_all_tasks_end():
    """A deterministic policy may walk in circles, and its evaluation would never end. MiniGrid counts its own steps."""
    tasks = [
        *(task.id for tasks in FAMILIES.values() for task in tasks),
        *(task for tasks in CLAIM_TASKS.values() for task in tasks),
    ]
    assert all(gym.spec(task).max_episode_steps for task in tasks if not task.startswith("MiniGrid"))


@has_taxi
def test_observations_that_are_no_numbers_are_not_normalised():
    env, eval_env = make_envs("Taxi-v4", 1, True, 0.99, seed=0)
    assert (env.norm_obs, env.norm_reward, eval_env.norm_obs) == (False, True, False)


def test_minigrid():
    pytest.importorskip("minigrid")
    env = gym.make("MiniGridFlat/DoorKey-5x5-v0")
    observation, _ = env.reset(seed=0)
    assert observation.shape == (147,) and env.observation_space.contains(observation)
    vec_env = make_vec_env("MiniGridFlat/Empty-Random-6x6-v0", 1)
    model = HybridGRPO("MlpPolicy", vec_env, n_steps=8, batch_size=8, n_epochs=1, branch_horizon=2, device="cpu")
    assert model.learn(8).num_simulator_steps > 8


def claim_row(task, method, seed, *seconds_and_scores, seconds=9.0):
    curve = [(time, int(100 * time), int(200 * time), score) for time, score in seconds_and_scores]
    return ClaimRow("continuous", task, method, seed, seconds, curve, "", {}, 1.0, {})


ROWS = [
    *[claim_row("A-v0", "hybrid_grpo", seed, (0, 0), (3, 75), (9, 100)) for seed in (0, 1)],
    *[claim_row("A-v0", "ppo", seed, (0, 0), (3, 20), (6, 80), (9, 50)) for seed in (0, 1)],
    *[claim_row("A-v0", "ppo_8", seed, (0, 0), (9, 20)) for seed in (0, 1)],
    *[claim_row("B-v0", "hybrid_grpo", seed, (0, 0), (8, 40), (9, 40)) for seed in (0, 1)],
    *[claim_row("B-v0", "ppo", seed, (0, 0), (9, 0)) for seed in (0, 1)],
    *[claim_row("B-v0", "ppo_8", seed, (0, 0), (2, 80), (9, 40)) for seed in (0, 1)],
    claim_row("A-v0", "hybrid_grpo", 0, (0, 0), (3, 1000), seconds=300.0),
]


class TestClaims:
    claims = Claims(ROWS, 9.0, ("ppo", "ppo_8"), {"A-v0": 0.0, "B-v0": 0.0})

    def test_strongest_opponent_of_each_task(self):
        assert self.claims.best_baseline("A-v0", 0.75, 0) == "ppo"
        assert self.claims.best_baseline("B-v0", 0.75, 0) == "ppo_8"
        by_task, median = self.claims.ratios("hybrid_grpo", 0.75, 0)
        # Ours arrive at 3 and 8, and the best of theirs at 6 and 2.
        assert by_task == pytest.approx({"A-v0": 3 / 6, "B-v0": 8 / 2})
        assert median == pytest.approx((2.25, 2.25, 2.25))

    def test_scores_of_untrained_policies_say_nothing(self):
        standing = [claim_row("C-v0", method, 0, (0, 90), (9, 100)) for method in ("hybrid_grpo", "ppo")]
        claims = Claims([*ROWS, *standing], 9.0, ("ppo", "ppo_8"), {"A-v0": 0.0, "B-v0": 0.0, "C-v0": 0.0})
        assert claims.is_hard("C-v0", 0.95) and not claims.is_hard("C-v0", 0.9)
        assert claims.ratios("hybrid_grpo", 0.75, 0) == self.claims.ratios("hybrid_grpo", 0.75, 0)
        alone = Claims(standing, 9.0, ("ppo",), {"C-v0": 0.0})
        by_task, median = alone.ratios("hybrid_grpo", 0.75, 0)
        assert not by_task and np.isnan(median.estimate)

    def test_restricted_means(self):
        means = self.claims.restricted_means("A-v0", 0.75, 0)
        assert {method: interval.estimate for method, interval in means.items()} == {"hybrid_grpo": 3, "ppo": 6, "ppo_8": 9}

    def test_runs_that_diverged_never_get_there(self):
        diverged = claim_row("D-v0", "hybrid_grpo", 1, (0, 0), (1, 20))._replace(error="ValueError: NaN")
        rows = [claim_row("D-v0", "hybrid_grpo", 0, (0, 0), (6, 90), (9, 90)), diverged]
        claims = Claims(rows, 9.0, ("ppo",), {"D-v0": 10.0})
        assert claims.times("D-v0", "hybrid_grpo", 0.75, 0).end.tolist() == [9, 9]
        assert claims.restricted_means("D-v0", 0.75, 0)["hybrid_grpo"].estimate == (6 + 9) / 2
        assert claims.normalized_scores(["hybrid_grpo"], 0, (1.0,))["hybrid_grpo"][1] == 0

    def test_normalized_scores(self):
        scores = self.claims.normalized_scores(["hybrid_grpo", "ppo"], 0, (1 / 3, 1.0))
        np.testing.assert_allclose(scores["hybrid_grpo"], [[[0.75, 1], [15 / 40, 1]]] * 2)
        np.testing.assert_allclose(scores["ppo"], [[[0.2, 0.5], [0, 0]]] * 2)

    def test_scores_after_as_many_steps_as_all_have_taken(self):
        rows = [
            claim_row("D-v0", "hybrid_grpo", 0, (0, 0), (6, 60), (9, 100)),
            claim_row("D-v0", "ppo", 0, (0, 0), (6, 50)),
        ]
        claims = Claims(rows, 9.0, ("ppo",), {"D-v0": 0.0})
        scores = claims.normalized_scores(["hybrid_grpo", "ppo"], 2, (1.0,), ["hybrid_grpo", "ppo"])
        assert {method: of_runs.item() for method, of_runs in scores.items()} == {"hybrid_grpo": 0.6, "ppo": 0.5}

    def test_report(self, tmp_path, capsys):
        pytest.importorskip("rliable")
        from benchmarks.learning.budgeted.claims import report

        report.print_report(self.claims, "hybrid_grpo", tmp_path / "new" / "here")
        text = capsys.readouterr().out
        assert "## A-v0: best final score 100.0, random actions 0.0" in text
        assert "| hybrid_grpo | 100.0 ± 0.0 | 3 [3, 3], 2/2 | 3 [3, 3], 2/2 | 9 [9, 9], 2/2 | 300 [300, 300], 2/2 |" in text
        assert "| 75% | 2.25 [2.25, 2.25] | 0.50 | 4.00 |" in text
        # Final scores: ours 1 and 1, PPO's 0.5 and 0.
        assert "| ppo | 0.25 [0.25, 0.25] | 1.00 [1.00, 1.00] |" in text
        assert "| ppo | 0.25 [0.25, 0.25] | 0.25 [0.25, 0.25] |" in text
        for name in "here_curves.png", "here_tasks.png":
            assert (tmp_path / "new" / name).read_bytes().startswith(b"\x89PNG")

    def test_returns_after_steps_that_others_report(self, capsys):
        pytest.importorskip("rliable")
        from benchmarks.learning.budgeted.claims.report import print_report

        rows = [
            claim_row("D-v0", "own", 0, (0, 0), (9, 10))._replace(curve=[(0, 0, 0, 0.0), (9, 200_000, 200_000, 20.0)]),
            claim_row("D-v0", "own", 1, (0, 0), (9, 10))._replace(curve=[(0, 0, 0, 0.0), (9, 400_000, 400_000, 80.0)]),
        ]
        print_report(Claims(rows, 9.0, (), {"D-v0": 0.0}), "own")
        # One of the two ends before 300,000 steps.
        assert "| D-v0 | own | 15.0 ± 5.0 | |" in capsys.readouterr().out

    @pytest.fixture
    def drawn(self, monkeypatch):
        pytest.importorskip("rliable")
        from benchmarks.learning.budgeted.claims import figures

        drawn = []
        monkeypatch.setattr(figures, "save_png", lambda figure, path: drawn.append(figure))
        return drawn

    def test_curves_end_where_runs_end(self, drawn, tmp_path):
        from benchmarks.learning.budgeted.claims import figures

        rows = [
            claim_row("D-v0", "hybrid_grpo", 0, (0, 0), (9, 90)),
            claim_row("D-v0", "slow", 0, (0, 0), (9, 30)),
            claim_row("E-v0", "hybrid_grpo", 0, (0, 0), (9, 90)),
            claim_row("E-v0", "slow", 0, (0, 0), (9, 30)),
        ]
        rows[1] = rows[1]._replace(curve=[(0, 0, 0, 0.0), (9, 450, 900, 30.0)])
        claims = Claims(rows, 9.0, ("slow",), {"D-v0": 0.0, "E-v0": 0.0})
        assert [claims.followed("slow", "hybrid_grpo", axis) for axis in range(3)] == [1, 0.5, 0.5]
        figures.draw_aggregates(claims, ["hybrid_grpo", "slow"], tmp_path)
        ends = [[line.get_xdata()[-1] for line in panel.get_lines()] for panel in drawn[0].axes]
        np.testing.assert_allclose(ends, [[1, 1], [1, 0.5], [1, 0.5]])

    def test_curves_of_tasks(self, drawn, tmp_path):
        from benchmarks.learning.budgeted.claims import figures

        rows = [
            claim_row("D-v0", "hybrid_grpo", 0, (0, 0), (9, 90)),
            claim_row("D-v0", "hybrid_grpo", 1, (0, 0), (9, 30)),
            claim_row("D-v0", "own", 0, (0, 0), (6, 60)),
        ]
        figures.draw_tasks(Claims(rows, 9.0, ("own",), {"D-v0": 0.0}), ["hybrid_grpo", "own"], tmp_path)
        panel, *empty = drawn[0].axes
        assert panel.get_title(loc="left") == "D-v0" and not any(each.axison for each in empty)
        ours, own = panel.get_lines()
        assert (ours.get_label(), own.get_label()) == ("HybridGRPO (2 seeds)", "own (1 seeds)")
        middle = len(ours.get_xdata()) // 2
        assert (ours.get_xdata()[middle], ours.get_ydata()[middle]) == (4.5, 30)
        # A run that was followed for less keeps its last score.
        assert (own.get_ydata()[middle], own.get_ydata()[-1]) == (45, 60)

    def test_report_of_machines(self, capsys):
        pytest.importorskip("scipy")
        from benchmarks.learning.budgeted.claims.report import print_report

        rows = [row._replace(provenance={"work_seconds": f"{0.05 + 0.01 * row.seed:.4f}"}) for row in ROWS[:5]]
        print_report(Claims([*rows, *ROWS[5:6]], 9.0, ("ppo",), {"A-v0": 0.0}), "nobody")
        text = capsys.readouterr().out
        assert "| hybrid_grpo | 0.0550 [0.0500, 0.0600] | 0 |" in text
        assert "| ppo_8 | 0.0500 [0.0500, 0.0500] | 1 |" in text


class TestRunner:
    @pytest.fixture
    def claims(self, tmp_path):
        pytest.importorskip("optuna")
        pytest.importorskip("scipy")
        from benchmarks.learning import claims
        from benchmarks.learning.budgeted.tuning.known_good import first_trials

        self.tuned = {
            family: {algorithm: first_trials(family, algorithm)[0] for algorithm in ("ppo", "hybrid_grpo")}
            for family in FAMILIES
        }
        (tmp_path / "tuned.json").write_text(json.dumps(self.tuned))
        self.arguments = ["--folder", str(tmp_path), "--tuned", str(tmp_path / "tuned.json"), "--seconds", "9"]
        return claims

    def test_methods(self, claims):
        from benchmarks.learning.budgeted.claims.methods import methods_of

        for family, task in ("continuous", "Pendulum-v1"), ("discrete", "CartPole-v1"):
            methods = methods_of(family, self.tuned[family])
            assert {"hybrid_grpo", "no_branches", "two_actions", "ppo", "ppo_1", "ppo_8", "ppo_16", "trpo"} < methods.keys()
            settings = {name: method.settings for name, method in methods.items()}
            for name, numbers in ("no_branches", (1, 1)), ("two_actions", (2, 2)):
                arguments = {key: settings[name].arguments[key] for key in settings["ppo"].arguments}
                assert str(arguments) == str(settings["ppo"].arguments)
                assert tuple(settings[name].arguments[key] for key in ("n_samples", "branch_horizon")) == numbers
            n_envs = {name: each.n_envs for name, each in settings.items() if each.n_envs > 1}
            assert n_envs == {"ppo_8": 8, "ppo_16": 16}
            for method in methods.values():
                env, _ = make_envs(task, method.settings.n_envs, method.settings.normalize, method.gamma, seed=0)
                model = method.algorithm("MlpPolicy", env, device="cpu", **method.settings.arguments)
                assert model.gamma == method.gamma
        rollouts = {
            name: settings[name].arguments["n_steps"] * settings[name].n_envs for name in ("ppo", "ppo_1", "ppo_8", "ppo_16")
        }
        assert rollouts == {"ppo": 128, "ppo_1": 128, "ppo_8": 128, "ppo_16": 256}

    def test_natural_steps_are_compared_with_those_of_trpo(self, claims):
        from sb3_contrib import TRPO

        from benchmarks.learning.budgeted.claims.methods import methods_of

        tuned = self.tuned["continuous"]
        assert "trpo_tuned" not in methods_of("continuous", tuned)
        natural = {**tuned["hybrid_grpo"], "natural": True, "kl": 0.03, "kl_control": "none"}
        assert "trpo_tuned" not in methods_of("continuous", {**tuned, "hybrid_grpo": {**natural, "schedule": "linear"}})
        methods = methods_of("continuous", {**tuned, "hybrid_grpo": natural})
        assert methods["trpo_tuned"].algorithm is TRPO
        ours, one, two, trpo = (methods[name].settings for name in ("hybrid_grpo", "natural_one", "natural_two", "trpo_tuned"))
        assert trpo.arguments["target_kl"] == 0.03
        assert [settings.arguments["n_samples"] for settings in (ours, one, two)] == [4, 1, 2]
        for other in (one, two, trpo):
            assert (other.n_envs, other.normalize) == (ours.n_envs, ours.normalize)
            for name in ("learning_rate", "n_steps", "batch_size", "gamma", "gae_lambda", "policy_kwargs"):
                assert str(other.arguments[name]) == str(ours.arguments[name])
        env, _ = make_envs("Pendulum-v1", trpo.n_envs, trpo.normalize, methods["trpo_tuned"].gamma, seed=0)
        assert TRPO("MlpPolicy", env, device="cpu", **trpo.arguments).n_critic_updates == ours.arguments["n_epochs"]

    def test_settings_are_not_mixed(self, claims, tmp_path, monkeypatch, capsys):
        rows = [ROWS[0], ROWS[0]._replace(seed=9, settings={"n_envs": 9})]
        monkeypatch.setattr(claims, "read_rows", lambda path, kind: rows)
        with pytest.raises(SystemExit):
            claims.main(["--report", "--seconds", "9", "--tasks", ROWS[0].task, "--folder", str(tmp_path)])
        assert f"{ROWS[0].method} with several settings" in capsys.readouterr().err

    def test_runs_are_made_once(self, claims, tmp_path, monkeypatch, capsys):
        made = []

        def make_run(run, method):
            made.append(run)
            row = claim_row(run.task, run.method, run.seed, (0, 0), (9, 1))
            return row._replace(family=run.family, settings=claims.settings_row(method.settings))

        monkeypatch.setattr(claims, "make_run", make_run)
        monkeypatch.setattr(claims.th, "set_num_threads", lambda n: None)
        tasks = ["--tasks", "Reacher-v5", "CartPole-v1", "--methods", "hybrid_grpo", "ppo", "sac"]
        claims.main([*self.arguments, *tasks, "--seeds", "1"])
        assert [(run.task, run.method) for run in made] == [
            *[("Reacher-v5", method) for method in ("hybrid_grpo", "ppo", "sac")],
            *[("CartPole-v1", method) for method in ("hybrid_grpo", "ppo")],
        ]
        claims.main([*self.arguments, *tasks, "--seeds", "2"])
        assert [run.seed for run in made] == [0] * 5 + [1] * 5
        monkeypatch.setattr(claims, "print_report", lambda found, ours, folder: print(sorted(found.curves["CartPole-v1"])))
        capsys.readouterr()
        claims.main([*self.arguments, *tasks, "--seeds", "2", "--report"])
        assert len(made) == 10 and capsys.readouterr().out == "['hybrid_grpo', 'ppo']\n"

    def test_a_run(self, claims, tmp_path):
        from benchmarks.learning.budgeted.claims.methods import methods_of

        run = claims.Run("discrete", "CartPole-v1", "hybrid_grpo", 0, 0.3)
        row = claims.make_run(run, methods_of("discrete", self.tuned["discrete"])["hybrid_grpo"])
        assert row[:5] == run and not row.error and row.curve[0][1] == 0 < row.curve[-1][1] < row.curve[-1][2]
        append_row(tmp_path / "claims.csv", row)
        (again,) = read_rows(tmp_path / "claims.csv", ClaimRow)
        assert again == row._replace(curve=[list(point) for point in row.curve])
        assert again.settings["arguments"]["n_samples"] == 4 and 0 < float(again.provenance["work_seconds"]) < 10

    def test_a_run_that_shares_its_noise(self, claims, monkeypatch):
        from benchmarks.learning.budgeted.claims.methods import methods_of
        from benchmarks.learning.budgeted.training import Curve

        def train(make_model, env, budget):
            log_std_init.append(make_model(env).policy.log_std_init)
            cut.extend(each._steps_left for each in env.envs)
            return Curve([])

        log_std_init, cut = [], []
        monkeypatch.setattr(claims, "train", train)
        params = {**self.tuned["continuous"]["hybrid_grpo"], "log_std_init": -1.0, "noise_together": True, "staggered": True}
        method = methods_of("continuous", {**self.tuned["continuous"], "hybrid_grpo": params})["hybrid_grpo"]
        for task in "Pendulum-v1", "Reacher-v5":
            row = claims.make_run(claims.Run("continuous", task, "hybrid_grpo", 0, 0.3), method)
            assert row.settings["noise_together"] and row.settings["staggered"]
            assert "-1.0" in row.settings["arguments"]["policy_kwargs"]
        assert log_std_init == pytest.approx([-1.0, -1.3465736]) and cut == [200, 50]

    def test_runs_of_one_name_have_one_set_of_settings(self, claims, tmp_path, monkeypatch, capsys):
        monkeypatch.setattr(claims, "make_run", lambda run, method: pytest.fail("trained"))
        former = claim_row("Reacher-v5", "ppo", 0, (0, 0), (9, 1))._replace(family="continuous", settings={"n_envs": 9})
        monkeypatch.setattr(claims, "read_rows", lambda path, kind: [former])
        with pytest.raises(SystemExit):
            claims.main([*self.arguments, "--seeds", "1", "--tasks", "Ant-v5", "--methods", "ppo"])
        assert "has ppo with other settings" in capsys.readouterr().err
