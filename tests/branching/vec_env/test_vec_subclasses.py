"""Subclasses of SB3's vectorised environments: those that record are branched, those that change steps are refused."""

import copy

import numpy as np
import pytest
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv

from sb3_hybrid_grpo import HybridGRPO, UnbranchableEnvError
from sb3_hybrid_grpo.branching.copies.child import CAN_FORK
from tests.envs import limited

SETTINGS = {"n_steps": 16, "batch_size": 16, "n_epochs": 1, "device": "cpu", "seed": 0}


class Recording:
    def step_async(self, actions):
        self.recorded = [*getattr(self, "recorded", []), actions.copy()]
        super().step_async(actions)

    def step_wait(self):
        returned = super().step_wait()
        self.recorded.append(returned[1].copy())
        return returned


class RecordingDummy(Recording, DummyVecEnv):
    pass


class RecordingSubproc(Recording, SubprocVecEnv):
    pass


class OtherRewards(DummyVecEnv):
    def step_wait(self):
        obs, rewards, dones, infos = super().step_wait()
        return obs, 2 * rewards, dones, infos


class OtherRewardsInPlace(DummyVecEnv):
    def step_wait(self):
        returned = super().step_wait()
        returned[1][:] *= 2
        return returned


class OtherActions(DummyVecEnv):
    def step_async(self, actions):
        super().step_async(actions / 2)


class OwnSteps(DummyVecEnv):
    def step_wait(self):
        return self.reset(), np.zeros(self.num_envs, dtype=np.float32), np.zeros(self.num_envs, dtype=bool), [{}]


class OwnObservations(DummyVecEnv):
    def _save_obs(self, env_idx, obs):
        super()._save_obs(env_idx, obs + 1)


class OwnStep(DummyVecEnv):
    def step(self, actions):
        return super().step(actions)


@pytest.mark.parametrize("observation", ["box", "dict"])
@pytest.mark.parametrize("cls", [RecordingDummy, RecordingSubproc])
def test_recording(cls, observation):
    arguments = ("fork",) if cls is RecordingSubproc and CAN_FORK else ()
    venv = cls([limited(5, observation=observation)] * 2, *arguments)
    try:
        model = HybridGRPO("MultiInputPolicy" if observation == "dict" else "MlpPolicy", venv, **SETTINGS)
        model.train = lambda: None
        model.learn(32)
        assert model.rollout_buffer.branch_alive[..., 1, 0].all()
        np.testing.assert_array_equal(np.array(venv.recorded[1::2], dtype=np.float32), model.rollout_buffer.rewards[..., 0])
        assert DummyVecEnv.step_wait.__qualname__ == "DummyVecEnv.step_wait"
    finally:
        venv.close()


@pytest.mark.parametrize(
    "cls, message",
    [
        (OtherRewards, r"OtherRewards\.step_wait returns other observations, rewards"),
        (OtherRewardsInPlace, r"OtherRewardsInPlace\.step_wait returns other observations, rewards"),
        (OtherActions, r"OtherActions\.step_async gives other actions to"),
        (OwnSteps, r"OwnSteps\.step_wait does not call"),
        (OwnObservations, "OwnObservations overrides _save_obs"),
        (OwnStep, "OwnStep overrides step of"),
    ],
)
def test_changing(cls, message):
    with pytest.raises(UnbranchableEnvError, match=message):
        HybridGRPO("MlpPolicy", cls([limited(5)]), **SETTINGS).learn(16)


def test_nothing_is_compared_when_nobody_branches_any_more():
    venv = OtherRewards([limited(5)])
    model = HybridGRPO("MlpPolicy", venv, **SETTINGS)
    twin = copy.deepcopy(venv)
    del model
    for each in (venv, twin):
        each.reset()
        each.step(np.zeros((1, 2)))


def test_without_branches_everything_goes():
    HybridGRPO("MlpPolicy", OtherRewards([limited(5)]), n_samples=1, **SETTINGS).learn(16)
