"""The same seed and the same policy fill the same rollout buffer, bit for bit, whatever carries the environments."""

import numpy as np
import pytest
from gymnasium import spaces
from gymnasium.wrappers import TimeLimit
from sb3_contrib.common.maskable.policies import MaskableActorCriticPolicy
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv, VecFrameStack, VecNormalize

from sb3_hybrid_grpo import GroupedSubprocVecEnv, HybridGRPO
from sb3_hybrid_grpo.branching.copies.child import CAN_FORK
from tests.envs import Walk

QUICK = "fork" if CAN_FORK else None
VEC_ENVS = {
    "subproc": lambda env_fns: SubprocVecEnv(env_fns, QUICK),
    "grouped": lambda env_fns: GroupedSubprocVecEnv(env_fns, 2, QUICK),
}


# NumPy 1 divides numbers of 32 bits by one of 64 bits in 32 bits, so that VecNormalize returns other rewards behind a
# DummyVecEnv than behind a SubprocVecEnv, without branches, too.
TOLERANCE = 0 if np.lib.NumpyVersion(np.__version__) >= "2.0.0" else 1e-5


class Rounded(Walk):
    """Has rewards of 32 bits: a ``DummyVecEnv`` rounds those of 64 bits for ``VecNormalize``, a ``SubprocVecEnv`` does not."""

    def step(self, action):
        obs, reward, *others = super().step(action)
        return obs, float(np.float32(reward)), *others


def rounded(**kwargs):
    return lambda: TimeLimit(Rounded(**kwargs), 6)


class Masked(Rounded):
    def action_masks(self):
        return np.array([True, self.position < 0, self.position > 0])


KINDS = {
    "box": ("MlpPolicy", rounded(), lambda venv: venv, {}),
    "normalised": ("MlpPolicy", rounded(), VecNormalize, {}),
    "stacked": ("MlpPolicy", rounded(), lambda venv: VecFrameStack(VecNormalize(venv), 3), {}),
    "dict": ("MultiInputPolicy", rounded(observation="dict"), lambda venv: venv, {}),
    "masked": (
        MaskableActorCriticPolicy,
        lambda: TimeLimit(Masked(action_space=spaces.Discrete(3)), 6),
        lambda venv: venv,
        {},
    ),
    "gsde": ("MlpPolicy", rounded(), lambda venv: venv, {"use_sde": True, "sde_sample_freq": 3}),
}


def fill(make, kind, **kwargs):
    policy, env_fn, wrap, arguments = KINDS[kind]
    venv = wrap(make([env_fn] * 3))
    settings = {"n_steps": 8, "batch_size": 8, "n_epochs": 1, "seed": 0, "device": "cpu", "brancher": "snapshot"}
    model = HybridGRPO(policy, venv, **settings, **arguments, **kwargs)
    model.train = lambda: None
    model.learn(24)
    buffer = {name: value for name, value in vars(model.rollout_buffer).items() if isinstance(value, np.ndarray | dict)}
    venv.close()
    return {**buffer, "simulator steps": np.array(model.num_simulator_steps)}


def assert_identical(found, expected):
    assert found.keys() == expected.keys()
    for name, array in expected.items():
        if isinstance(array, dict):
            assert_identical(found[name], array)
        else:
            np.testing.assert_allclose(found[name], array, rtol=TOLERANCE, atol=TOLERANCE, err_msg=name)


@pytest.fixture(scope="module", params=[(2, 1), (2, 8), (4, 8)], ids=["N=2 K=1", "N=2 K=8", "N=4 K=8"])
def sizes(request):
    return dict(zip(("n_samples", "branch_horizon"), request.param, strict=True))


@pytest.fixture(scope="module", params=KINDS)
def kind(request):
    return request.param


@pytest.fixture(scope="module")
def expected(kind, sizes):
    return fill(DummyVecEnv, kind, **sizes)


@pytest.mark.parametrize("name", VEC_ENVS)
def test_buffers_are_those_of_a_dummy_vec_env(name, kind, sizes, expected):
    assert expected["branch_alive"].sum() > 24
    assert_identical(fill(VEC_ENVS[name], kind, **sizes), expected)
