"""The reference gradient and the rows of the tool, in a linear-quadratic environment whose gradient is known."""

import csv
from typing import ClassVar

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces
from stable_baselines3 import PPO

from benchmarks.gradients import quality as gradient_quality
from benchmarks.gradients import reference as gradient_reference
from benchmarks.gradients.estimators import IDEAS, Estimator
from benchmarks.gradients.measurement import reference_of
from benchmarks.gradients.reference import cosine
from benchmarks.gradients.report import TABLE
from benchmarks.gradients.statistics import cosines_at_equal_cost, gradient_statistics, variance_decomposition
from benchmarks.provenance import provenance

GAMMA, SLOPE, REACH, PRICE = 0.9, 0.9, 0.3, 0.1
MEAN_SLOPE, MEAN_BIAS, LOG_STD = 0.3, 0.5, -0.5
SETTINGS = (
    "--envs LinearQuadratic-v0 --n-batches 4 --batch-states 128 --n-samples 2 4 --horizons 1 4 --branch-lambdas 0.9 "
    "--gae-lambdas 0.5 0.95 --tail-lambdas 0.95 --timing-states 16 "
    "--reference-horizons 40 5 --reference-states 256 --reference-fraction 0.2"
).split()


class Linear(gym.Env):
    """s' = SLOPE · s + REACH · u + noise, r = -s² - PRICE · u²"""

    metadata: ClassVar = {"render_modes": ["rgb_array"]}
    observation_space = spaces.Box(-np.inf, np.inf, (1,))
    action_space = spaces.Box(-100, 100, (1,))

    def __init__(self, render_mode=None):
        self.render_mode = render_mode

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.position = self.np_random.normal()
        return np.float32([self.position]), {}

    def step(self, action):
        reward = -(self.position**2) - PRICE * float(action[0]) ** 2
        self.position = SLOPE * self.position + REACH * float(action[0]) + 0.1 * self.np_random.normal()
        return np.float32([self.position]), reward, False, False, {}


def analytic_gradient(n_states=200_000):
    """
    Return E_s[∇_u Q · ∇μ] for the policy N(w s + b, σ²), with respect to log σ, w and b.

    V(s) = -p s² - q s + const, where p = 1 + ρw² + γ p m² and q = 2ρwb + γ (2 p m n + q m); s' = m s + n + noise
    """
    m, n, std = SLOPE + REACH * MEAN_SLOPE, REACH * MEAN_BIAS, np.exp(LOG_STD)
    p = (1 + PRICE * MEAN_SLOPE**2) / (1 - GAMMA * m**2)
    q = (2 * PRICE * MEAN_SLOPE * MEAN_BIAS + 2 * GAMMA * p * m * n) / (1 - GAMMA * m)
    noise = np.random.default_rng(0).normal(size=n_states) * np.hypot(0.1, REACH * std)
    states = np.zeros(n_states)
    for t in range(1, n_states):
        states[t] = m * states[t - 1] + n + noise[t]
    by_action = -2 * PRICE * (MEAN_SLOPE * states + MEAN_BIAS) - GAMMA * REACH * (2 * p * (m * states + n) + q)
    return np.array([-2 * (PRICE + GAMMA * p * REACH**2) * std**2, (by_action * states).mean(), by_action.mean()])


@pytest.fixture
def checkpoint(tmp_path):
    gym.register("LinearQuadratic-v0", Linear, max_episode_steps=10_000)
    architecture = {"net_arch": {"pi": [], "vf": [8]}, "log_std_init": LOG_STD}
    model = PPO("MlpPolicy", "LinearQuadratic-v0", gamma=GAMMA, policy_kwargs=architecture, seed=0, device="cpu")
    model.policy.action_net.weight.data.fill_(MEAN_SLOPE)
    model.policy.action_net.bias.data.fill_(MEAN_BIAS)
    model.save(tmp_path / "linear")
    yield tmp_path / "linear.zip"
    gym.registry.pop("LinearQuadratic-v0")


def test_reference_is_the_analytic_gradient(checkpoint):
    options = gradient_quality.parse([*SETTINGS, "--reference-limit", "200000", "--policies", str(checkpoint.parent)])
    reference = reference_of(checkpoint, "LinearQuadratic-v0", options)
    assert reference.horizon == 40
    assert reference.split_half >= 0.95
    assert set(reference.all_split_halves) == {40, 5}
    assert cosine(reference.gradient, analytic_gradient()) > 0.97


def read(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_rows_are_measured_once(checkpoint, tmp_path, capsys, monkeypatch):
    output = tmp_path / "rows.csv"
    arguments = [*SETTINGS, "--checkpoints", str(checkpoint), "--reference-limit", "100000", "--output", str(output)]
    arguments += ["--policies", str(tmp_path)]
    gradient_quality.main(arguments)
    rows = read(output)
    assert {row["name"] for row in rows} == {"gae", *IDEAS}
    assert {row["action_sampling"] for row in rows} == {"iid", "antithetic"}
    assert len({tuple(row[name] for name in Estimator._fields) for row in rows}) == len(rows)
    columns = {"environment", "stage", "seed", *Estimator._fields, *provenance(), "within_state_variance"}
    columns |= set(TABLE.values()) | {"reference_split_half", "between_state_variance", "mean_cosine"}
    for row in rows:
        assert columns <= set(row)
        n, horizon = int(row["n_samples"]), int(row["branch_horizon"])
        assert float(row["simulator_steps"]) == 128 * (1 + (n - 1) * horizon)
        assert -1 <= float(row["cosine"]) <= 1
        assert float(row["seconds"]) > 0
    last = capsys.readouterr().out.splitlines()[-1].split()
    assert last[0] in {part.split()[0] for part in IDEAS}

    monkeypatch.setattr(gradient_reference, "split_half", None)
    gradient_quality.main(arguments)
    assert read(output) == rows
    gradient_quality.main([*arguments, "--gae-lambdas", "0.7"])
    *others, last = read(output)
    assert others == rows
    assert (last["name"], last["gae_lambda"]) == ("gae", "0.7")


def test_statistics_of_gradients_whose_moments_are_known():
    rng = np.random.default_rng(0)
    expectation, reference = np.zeros(100), np.zeros(100)
    expectation[:2], reference[0] = 1.0, 2.0
    gradients = expectation + 0.2 * rng.normal(size=(2000, 100))
    row = gradient_statistics(gradients, reference)
    np.testing.assert_allclose(row["limit_cosine"], np.sqrt(0.5), rtol=0.02)
    np.testing.assert_allclose(row["relative_variance"], 4 / 2, rtol=0.02)
    np.testing.assert_allclose(row["cosine"], 1 / np.sqrt(2 + 4), rtol=0.02)
    averaged = gradients.reshape(250, 8, 100).mean(axis=1)
    predicted = cosines_at_equal_cost(gradients, reference, {"seconds": 3.0}, {"seconds": 3.0})
    np.testing.assert_allclose(predicted["cosine_at_1x_seconds"], row["cosine"], rtol=0.02)
    measured = gradient_statistics(averaged, reference)["cosine"]
    np.testing.assert_allclose(predicted["cosine_at_8x_seconds"], measured, rtol=0.02)


def test_variance_is_split_into_actions_and_states():
    rng = np.random.default_rng(0)
    estimates = 3 * rng.normal(size=(5000, 2, 1)) + 2 * rng.normal(size=(5000, 2, 4))
    parts = variance_decomposition(estimates)
    np.testing.assert_allclose(list(parts.values()), [4, 9], rtol=0.05)
