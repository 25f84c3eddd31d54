"""Environments of other packages, where these are installed: each is branched exactly from snapshots."""

import gymnasium as gym
import pytest
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import DummyVecEnv

from sb3_hybrid_grpo import HybridGRPO, UnbranchableEnvError, check_branchable
from tests.lockstep import assert_laws, make_installed, reporting, subproc

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*use of fork:DeprecationWarning"),
    # What those packages say to their own users.
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning"),
    pytest.mark.filterwarnings("ignore::RuntimeWarning"),
]


def make_minigrid(env_id):
    from minigrid.wrappers import ImgObsWrapper

    return ImgObsWrapper(gym.make(env_id, max_steps=25))


def make_flat(env_id):
    return gym.wrappers.FlattenObservation(gym.make(env_id, max_episode_steps=15))


def make_short(env_id, **kwargs):
    return gym.make(env_id, max_episode_steps=10, **kwargs)


CASES = {
    "minigrid": [(make_minigrid, "MiniGrid-DoorKey-5x5-v0"), (make_minigrid, "MiniGrid-Dynamic-Obstacles-6x6-v0")],
    "gymnasium_robotics": [
        (make_short, "PointMaze_UMaze-v3"),
        (make_short, "AntMaze_UMaze-v5"),
        (make_short, "AdroitHandDoor-v1"),
    ],
    "highway_env": [(make_short, "parking-v0")],
    "shimmy": [(make_flat, "dm_control/cartpole-balance-v0"), (make_flat, "dm_control/walker-walk-v0")],
}


@pytest.mark.parametrize("vec_env_cls", [DummyVecEnv, subproc()], ids=["DummyVecEnv", "SubprocVecEnv"])
@pytest.mark.parametrize(
    "package, make, env_id",
    [pytest.param(package, *case, id=case[1]) for package, cases in CASES.items() for case in cases],
)
def test_laws(package, make, env_id, vec_env_cls):
    make_env = make_installed(package, make, env_id)
    ends = assert_laws(
        lambda: make_vec_env(reporting(make_env), 2, vec_env_cls=vec_env_cls), n_steps=30, n_branches=2, check_state=False
    )
    assert sum(ends) > 0


@pytest.mark.parametrize("package, make, env_id", [(package, *cases[0]) for package, cases in CASES.items()])
def test_check(package, make, env_id):
    assert check_branchable(make_installed(package, make, env_id), n_steps=10).brancher == "snapshot"


def test_vec_envs_of_other_packages_are_refused_by_name():
    """Agents that share a simulator are no environments that can be branched one by one."""
    supersuit = pytest.importorskip("supersuit")
    multiwalker = pytest.importorskip("pettingzoo.sisl.multiwalker_v9")
    vec_env = supersuit.pettingzoo_env_to_vec_env_v1(multiwalker.parallel_env())
    venv = supersuit.concat_vec_envs_v1(vec_env, 1, base_class="stable_baselines3")
    settings = {"n_steps": 8, "batch_size": 8, "n_epochs": 1}
    with pytest.raises(UnbranchableEnvError, match="SB3VecEnvWrapper"):
        HybridGRPO("MlpPolicy", venv, **settings)
    HybridGRPO("MlpPolicy", venv, n_samples=1, **settings).learn(24)
