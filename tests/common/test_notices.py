"""Warnings name the user's line."""

import re
import warnings
from pathlib import Path

import numpy as np
import pytest
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.vec_env import DummyVecEnv

import sb3_hybrid_grpo
from sb3_hybrid_grpo import HybridGRPO
from sb3_hybrid_grpo.common import notices
from tests.envs import Walk

SETTINGS = {"n_steps": 16, "batch_size": 16, "n_epochs": 1, "device": "cpu"}


class OwnValues(ActorCriticPolicy):
    def predict_values(self, obs):
        return super().predict_values(obs)


class LateGlobalDraws(Walk):
    """Draws from a random generator of the whole process, but only after the probe."""

    n_left = 0

    def step(self, action):
        if self.n_left:
            np.random.normal()
        return super().step(action)


def line_of(caught):
    (warning,) = caught
    return Path(warning.filename).name, Path(warning.filename).read_text().splitlines()[warning.lineno - 1]


def test_truncated_minibatch_at_construction():
    with pytest.warns(UserWarning, match="truncated mini-batch") as caught:
        HybridGRPO("MlpPolicy", Walk(), **{**SETTINGS, "batch_size": 3})
    assert line_of(caught)[0] == "test_notices.py" and "HybridGRPO(" in line_of(caught)[1]


def test_other_values_in_a_subclass():
    class Ours(HybridGRPO):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, **kwargs)  # here

    with pytest.warns(UserWarning, match="`refit_critic` has no effect") as caught:
        Ours(OwnValues, Walk(), **SETTINGS)
    assert "# here" in line_of(caught)[1]


def test_symptoms_and_draws_while_learning():
    env = DummyVecEnv([LateGlobalDraws])
    model = HybridGRPO("MlpPolicy", env, **SETTINGS)
    env.set_attr("n_left", 1)
    with pytest.warns(UserWarning, match="random generator that the whole process shares") as caught:
        model.learn(16)  # learn
    assert "# learn" in line_of(caught)[1]
    with pytest.warns(UserWarning, match="20 updates in a row show useless critic") as caught:
        for _ in range(20):
            model._watch.look({"train/explained_variance": -1.0})  # look
    assert "# look" in line_of(caught)[1]


def test_where_no_user_is_the_outermost_line_counts(monkeypatch):
    monkeypatch.setattr(notices, "_PASSED_OVER", ("",))
    with pytest.warns(UserWarning, match="text") as caught:
        notices.warn("text")
    assert Path(caught[0].filename).name not in ("notices.py", "test_notices.py")


def test_filters_by_module_and_once():
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("default")
        for _ in range(2):
            notices.warn("once per line")
        warnings.filterwarnings("ignore", module=re.escape(__name__))
        notices.warn("of this module")
    assert [str(warning.message) for warning in caught] == ["once per line"]


def test_no_warning_goes_another_way():
    package = Path(sb3_hybrid_grpo.__file__).parent
    others = [path.name for path in package.rglob("*.py") if "warnings.warn(" in path.read_text()]
    assert others == []
