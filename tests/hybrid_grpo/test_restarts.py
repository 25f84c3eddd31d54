"""A run goes on when a worker is lost: without the rollout, from where that began."""

import os

import gymnasium as gym
import numpy as np
import pytest
from stable_baselines3.common.callbacks import BaseCallback, CheckpointCallback
from stable_baselines3.common.vec_env import VecFrameStack, VecNormalize

from sb3_hybrid_grpo import GRPO, GroupedSubprocVecEnv, HybridGRPO, WorkerLostError
from sb3_hybrid_grpo.branching.copies.child import CAN_FORK
from tests.envs import Walk

QUICK = "fork" if CAN_FORK else None
SETTINGS = {"n_steps": 8, "batch_size": 8, "n_epochs": 1, "seed": 0, "device": "cpu", "brancher": "snapshot"}


class Deadly(Walk):
    fault = False

    def break_by(self, fault):
        self.fault = fault

    def step(self, action):
        if self.fault:
            os._exit(3)
        return super().step(action)


class Cursed(Walk):
    def step(self, action):
        if os.path.exists("curse"):
            os._exit(3)
        return super().step(action)


class BreakAt(BaseCallback):
    def __init__(self, steps):
        super().__init__()
        self.steps = steps
        self.seen = []

    def _on_step(self):
        self.seen.append(self.num_timesteps)
        if self.num_timesteps == self.steps and self.seen.count(self.steps) == 1:
            self.training_env.env_method("break_by", True, indices=2)
        return True


def make(env_class=Deadly, restart_workers=True):
    return GroupedSubprocVecEnv([lambda: gym.wrappers.TimeLimit(env_class(), 6)] * 3, 2, QUICK, None, restart_workers)


@pytest.mark.parametrize("algorithm", [HybridGRPO, GRPO])
def test_run_goes_on(algorithm):
    venv = VecFrameStack(VecNormalize(make()), 2)
    kwargs = {"branch_horizon": 4} if algorithm is HybridGRPO else {}
    model = algorithm("MlpPolicy", venv, **kwargs, **SETTINGS)
    callback = BreakAt(33)
    with pytest.warns(
        UserWarning, match=r"environment 2 \(process \d+, exit code 3\).*restart_workers.* 9 committed steps are"
    ):
        model.learn(72, callback=callback)
    assert callback.seen == [*range(3, 34, 3), *range(27, 73, 3)]
    assert model.num_timesteps == 72
    # The statistics have the first observation of each start of the environments, and all steps that count.
    assert venv.venv.obs_rms.count == pytest.approx(72 + 2 * 3, abs=0.01)
    assert not venv.unwrapped.is_lost
    venv.close()


def test_new_environments_have_seeds_of_their_own():
    venv = make()
    venv.seed(3)
    first = venv.reset()
    venv.restart()
    second = venv.reset()
    venv.restart()
    third = venv.reset()
    assert len(np.unique(np.concatenate((first, second, third))[:, 0])) == 9
    again = make()
    again.seed(3 + 3)
    np.testing.assert_array_equal(again.reset(), second)
    venv.close(), again.close()


def test_run_that_is_not_to_go_on(tmp_path):
    venv = make(restart_workers=False)
    model = HybridGRPO("MlpPolicy", venv, **SETTINGS)
    with pytest.raises(WorkerLostError, match=r"environment 2 \(process \d+, exit code 3\).*last checkpoint"):
        model.learn(72, callback=[CheckpointCallback(8, str(tmp_path)), BreakAt(33)])
    assert venv.is_lost

    def go_on():
        venv = make()
        model = HybridGRPO.load(tmp_path / "rl_model_24_steps", env=venv)
        model.set_random_seed(5)
        model.learn(24, reset_num_timesteps=False)
        venv.close()
        return np.concatenate([parameter.detach().numpy().ravel() for parameter in model.policy.parameters()])

    np.testing.assert_array_equal(go_on(), go_on())


def test_too_many_restarts(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    model = HybridGRPO("MlpPolicy", make(Cursed), **SETTINGS)
    (tmp_path / "curse").touch()
    with pytest.warns(UserWarning, match="thrown away"), pytest.raises(WorkerLostError):
        model.learn(24)
    assert model.num_timesteps == 0


def test_another_environment_that_is_lost_ends_the_run():
    venv, other = make(), make()

    class Break(BaseCallback):
        def _on_step(self):
            other.env_method("break_by", True)
            other.step(np.zeros((3, 2)))

    other.reset()
    with pytest.raises(WorkerLostError, match="environments 0 to 1"):
        HybridGRPO("MlpPolicy", venv, **SETTINGS).learn(24, callback=Break())
    assert other.is_lost and not venv.is_lost
    venv.close(), other.close()
