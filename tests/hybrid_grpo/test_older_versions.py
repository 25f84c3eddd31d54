"""What version 0.1 has written is read today, although the modules have other names."""

import subprocess
import sys
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
from stable_baselines3 import PPO

from sb3_hybrid_grpo import GRPO, HybridGRPO
from sb3_hybrid_grpo.diagnostics.doctor import read_log

# Arrays that NumPy 2 has pickled name its modules.
reads_checkpoints = pytest.mark.skipif(np.__version__ < "2", reason="NumPy 1 does not read what NumPy 2 has pickled")
DATA = Path(__file__).parents[1] / "data"


@reads_checkpoints
@pytest.mark.parametrize(
    "algorithm, name, env_id", [(HybridGRPO, "hybrid_grpo_0_1", "Pendulum-v1"), (GRPO, "grpo_0_1", "CartPole-v1")]
)
def test_checkpoints_load_and_learn(algorithm, name, env_id):
    model = algorithm.load(DATA / name, env=gym.make(env_id))
    assert model.num_timesteps == 64 and model.num_simulator_steps > 64
    model.learn(32, reset_num_timesteps=False)
    assert model.num_timesteps == 96
    assert type(model.reward_transform).__module__ == "sb3_hybrid_grpo.estimation.reward_transforms"


@reads_checkpoints
def test_they_load_into_ppo_in_a_process_that_knows_no_more():
    code = f"from stable_baselines3 import PPO; print(PPO.load({str(DATA / 'hybrid_grpo_0_1')!r}).num_timesteps)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "64\n"
    assert isinstance(PPO.load(DATA / "hybrid_grpo_0_1"), PPO)


def test_tensorboard_logs_are_read(tmp_path):
    (tmp_path / "events.out.tfevents.0").write_bytes((DATA / "tensorboard_0_1").read_bytes())
    log = read_log(tmp_path)
    assert len(log) == 2 and "diagnostics/advantage_variance_ratio" in log
