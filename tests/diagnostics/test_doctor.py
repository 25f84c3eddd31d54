"""The doctor names the planted cause of broken runs, and calls good ones healthy."""

import importlib.util

import gymnasium as gym
import numpy as np
import pandas as pd
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3 import PPO
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.logger import configure

from sb3_hybrid_grpo import HybridGRPO
from sb3_hybrid_grpo.branching import RewardFunction
from sb3_hybrid_grpo.diagnostics import doctor
from sb3_hybrid_grpo.diagnostics.doctor import draw
from tests.envs import limited


class Deaf(gym.Env):
    """Nothing depends on the action."""

    observation_space = spaces.Box(-1, 1, (1,))
    action_space = spaces.Discrete(2)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.time = 0
        return np.zeros(1, dtype=np.float32), {}

    def step(self, action):
        self.time += 1
        return np.array([self.time % 2], dtype=np.float32), 1.0, False, self.time == 20, {}


def scaled(factor, shift=0.0):
    return lambda: gym.wrappers.TransformReward(gym.make("Pendulum-v1"), lambda reward: factor * reward + shift)


def wrong_function(observations, actions):
    return -np.abs(actions).sum(axis=-1) - 5


def run(folder, env, formats=("csv",), n_updates=6, algorithm=HybridGRPO, value_scale=1.0, **kwargs):
    settings = {"n_steps": 64, "n_epochs": 5, "seed": 0, "device": "cpu", "gamma": 0.9, **kwargs}
    model = algorithm("MlpPolicy", make_vec_env(env, 2, seed=0), **settings)
    logger = configure(str(folder), list(formats))
    model.set_logger(logger)
    with th.no_grad():
        model.policy.value_net.weight.mul_(value_scale)
    model.learn(n_updates * 128)
    logger.close()


BROKEN = {
    "unstable updates": ("Pendulum-v1", {"learning_rate": 3e-3, "n_epochs": 30, "clip_range": 10.0}),
    "saturated rewards": (scaled(10, -50), {"reward_transform": "tanh"}),
    "useless critic": ("Pendulum-v1", {"vf_coef": 0.0, "refit_critic": False, "n_updates": 21, "value_scale": 0.0}),
    "critic wrong about branches": (
        "Pendulum-v1",
        {"vf_coef": 0.0, "refit_critic": False, "n_updates": 12, "value_scale": 300.0},
    ),
    "starved actor": (scaled(1000), {"reward_transform": "identity", "max_actor_grad_norm": None, "n_updates": 21}),
    "runaway learning rate": (Deaf, {"n_samples": 1, "desired_kl": 0.1, "learning_rate": 1e-4, "n_updates": 14}),
    "steps that fail": ("Pendulum-v1", {"trust_region": 0.5, "clip_range": 1e-4}),
    "collapsed policy": ("Pendulum-v1", {"policy_kwargs": {"log_std_init": -8.0}}),
    "groups without signal": (Deaf, {"n_steps": 128, "n_updates": 12}),
    "branches disagree": (limited(), {"brancher": RewardFunction(wrong_function), "branch_horizon": 1}),
    "noisy advantages": ("Pendulum-v1", {"branch_horizon": 1, "tail_coef": 3.0}),
}


@pytest.fixture(autouse=True)
def drawn(monkeypatch):
    """Do without figures, which take longer than the runs."""
    drawn = []
    monkeypatch.setattr(doctor, "draw", lambda log, path: drawn.append(path))
    return drawn


@pytest.mark.filterwarnings("ignore:.* updates in a row")
@pytest.mark.parametrize("cause", BROKEN)
def test_broken_runs(cause, tmp_path, capsys, drawn):
    env, kwargs = BROKEN[cause]
    run(tmp_path, env, **kwargs)
    assert doctor.main([str(tmp_path)]) == 1
    printed = capsys.readouterr().out
    first = printed.splitlines()[0]
    assert cause in printed, printed
    assert "until the end" in first or "then it passed" in first
    assert drawn == [tmp_path / "doctor.png"]


def test_a_folder_that_cannot_be_written(tmp_path, capsys, monkeypatch):
    def refuse(log, path):
        raise PermissionError(f"{path} is read-only")

    run(tmp_path, "Pendulum-v1")
    monkeypatch.setattr(doctor, "draw", refuse)
    assert doctor.main([str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    assert "Healthy" in printed and "cannot be drawn" in printed and "read-only" in printed


@pytest.mark.parametrize("formats", [("csv",), ("tensorboard",)])
@pytest.mark.parametrize("env", ["Pendulum-v1", "CartPole-v1", limited()], ids=["pendulum", "cartpole", "walk"])
def test_good_runs(env, formats, tmp_path, capsys):
    run(tmp_path, env, formats)
    assert doctor.main([str(tmp_path)]) == 0
    assert "Healthy: nothing unusual in 6 logged updates." in capsys.readouterr().out


def test_figure(tmp_path):
    log = pd.DataFrame({doctor.STEPS: [100, 200], "train/approx_kl": [0.01, 0.2], "diagnostics/saturated_rewards": [0.5, 0.4]})
    draw(log, tmp_path / "doctor.png")
    assert (tmp_path / "doctor.png").stat().st_size > 1000


def test_symptoms_that_pass_and_that_last():
    steps, kl = np.arange(1, 31) * 100, np.zeros(30)
    kl[3:8] = kl[20:25] = 1.0
    log = pd.DataFrame({doctor.STEPS: steps, "train/approx_kl": kl, "diagnostics/saturated_rewards": 0.5})
    log.loc[0, "train/approx_kl"] = np.nan
    saturated, unstable = sorted(doctor.diagnose(log), key=lambda finding: finding.symptom.name)
    assert (saturated.first, saturated.last, saturated.lasts) == (100, 3000, True)
    assert (unstable.first, unstable.last, unstable.lasts) == (2100, 2500, False)
    assert str(unstable).startswith("From step 2,100 to step 2,500, then it passed: unstable updates (train/approx_kl = 1,")
    kl[20] = kl[3] = 0.0
    assert [finding.symptom.name for finding in doctor.diagnose(log.assign(**{"train/approx_kl": kl}))] == [
        "saturated rewards"
    ]


def test_too_little_to_tell(tmp_path, capsys):
    assert doctor.main([str(tmp_path)]) == 2
    assert "no progress.csv and no TensorBoard file" in capsys.readouterr().out
    (tmp_path / "progress.csv").touch()
    assert doctor.main([str(tmp_path)]) == 2
    assert "is empty" in capsys.readouterr().out
    run(tmp_path / "short", "Pendulum-v1", n_updates=2)
    assert doctor.main([str(tmp_path / "short")]) == 2
    assert "Too early to tell: 2 updates" in capsys.readouterr().out
    (tmp_path / "short" / "progress.csv").write_text("a,b\n1,2\n")
    assert doctor.main([str(tmp_path / "short" / "progress.csv")]) == 2
    assert "none of the metrics of HybridGRPO" in capsys.readouterr().out


def test_a_log_of_ppo_is_read_as_far_as_it_goes(tmp_path, capsys):
    run(tmp_path, "Pendulum-v1", algorithm=PPO, n_updates=21, vf_coef=0.0, value_scale=0.0)
    assert doctor.main([str(tmp_path)]) == 1
    assert "useless critic" in capsys.readouterr().out


@pytest.mark.parametrize("package", ["matplotlib", "pandas"])
def test_missing_extra(package, tmp_path, monkeypatch, capsys):
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == package else find_spec(name))
    with pytest.raises(SystemExit) as exit_info:
        doctor.main([str(tmp_path)])
    assert exit_info.value.code == 2
    assert f'{package} is missing: pip install "sb3-hybrid-grpo[doctor]"' in capsys.readouterr().err
