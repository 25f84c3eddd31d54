"""Environments in actors of Ray, on a cluster of three nodes that all run on this machine."""

import os
import signal
import subprocess
import sys
import time

import gymnasium as gym
import numpy as np
import pytest
from stable_baselines3.common.callbacks import BaseCallback, CheckpointCallback
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv

from sb3_hybrid_grpo import HybridGRPO, MissingExtraError, RayVecEnv, WorkerLostError, make_parallel_env
from sb3_hybrid_grpo.compare.settings import ZOO_HYPERPARAMS
from tests.branching.vec_env import test_same_buffers as buffers
from tests.envs import Walk
from tests.lockstep import describe, sample_actions

SETTINGS = {"n_steps": 8, "batch_size": 8, "n_epochs": 1, "seed": 0, "device": "cpu", "brancher": "snapshot"}
WARNINGS_OF_RAY = ("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::ResourceWarning")


def on_cluster(test):
    return pytest.mark.slow(pytest.mark.filterwarnings(*WARNINGS_OF_RAY)(test))


class Fragile(Walk):
    """Does what its attribute ``fault`` says when the first component of an action is above 0.9."""

    fault = None

    def break_by(self, fault):
        self.fault = fault

    def pid(self):
        return os.getpid()

    def step(self, action):
        if self.fault is not None and action[0] > 0.9:
            if self.fault == "die":
                os.kill(os.getpid(), signal.SIGKILL)
            time.sleep(600)
        return super().step(action)


def fragile():
    return gym.wrappers.TimeLimit(Fragile(), 6)


@pytest.fixture(scope="module")
def cluster():
    pytest.importorskip("ray")
    # By default actors have a niceness of 15, and starve where others use the cores.
    os.environ.update(RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO="0", RAY_worker_niceness="0")
    import ray
    from ray.cluster_utils import Cluster

    arguments = {"num_cpus": 4, "object_store_memory": 80_000_000}
    cluster = Cluster(initialize_head=True, head_node_args={**arguments, "include_dashboard": False})
    cluster.arguments = arguments
    for _ in range(2):
        cluster.add_node(**arguments)
    ray.init(address=cluster.address, log_to_driver=False)
    yield cluster
    ray.shutdown()
    cluster.shutdown()


@pytest.fixture
def doomed(cluster):
    """A further node, which is the only one with room for two of the actors."""
    node = cluster.add_node(**cluster.arguments, resources={"doomed": 2})
    cluster.wait_for_nodes()
    yield node
    if node in cluster.list_all_nodes():
        cluster.remove_node(node)


def assert_nothing_is_left():
    import ray

    end = time.monotonic() + 30
    while time.monotonic() < end:
        # What there is comes a little later than the end of an actor.
        if ray.available_resources().get("CPU") == ray.cluster_resources().get("CPU") and stored_objects() == 0:
            break
        time.sleep(0.2)
    assert ray.available_resources().get("CPU") == ray.cluster_resources().get("CPU")
    assert stored_objects() == 0


def stored_objects():
    from ray._private.internal_api import memory_summary
    from ray._private.worker import global_worker

    summary = memory_summary(global_worker.gcs_client.address, stats_only=True)
    return int(summary.partition("Plasma memory usage")[2].partition("MiB, ")[2].partition(" objects")[0])


@on_cluster
def test_everything_is_as_in_a_dummy_vec_env(cluster):
    def run(venv):
        venv.seed(3)
        venv.set_options([{"number": idx} for idx in range(5)])
        seen = [venv.reset(), venv.observation_space, venv.metadata]
        for actions in sample_actions(venv.action_space, np.random.default_rng(0), (10, 5)):
            seen.append((*venv.step(actions), list(venv.reset_infos)))
        venv.close()
        return seen

    venv = RayVecEnv([fragile] * 5, 3)
    nodes = {whereabouts.rpartition(" ")[2] for whereabouts in venv.transport._whereabouts}
    assert len(nodes) == 3
    assert describe(run(venv)) == describe(run(DummyVecEnv([fragile] * 5)))
    assert_nothing_is_left()


@on_cluster
@pytest.mark.parametrize("sizes", [{"n_samples": 2, "branch_horizon": 1}, {"n_samples": 4, "branch_horizon": 8}], ids=str)
@pytest.mark.parametrize("kind", buffers.KINDS)
def test_buffers_are_those_of_a_dummy_vec_env(cluster, kind, sizes):
    expected = buffers.fill(DummyVecEnv, kind, **sizes)
    buffers.assert_identical(buffers.fill(lambda env_fns: RayVecEnv(env_fns, 2), kind, **sizes), expected)


@on_cluster
@pytest.mark.parametrize("kind", ["box", "dict", "gsde"])
def test_whole_rollouts_in_actors_fill_the_same_buffers(cluster, kind):
    def fill(**kwargs):
        return buffers.fill(lambda env_fns: RayVecEnv(env_fns, 2), kind, n_samples=4, branch_horizon=8, **kwargs)

    buffers.assert_identical(fill(rollout_in_workers=True), fill())


@on_cluster
def test_ids_that_only_this_process_knows(cluster):
    class Local(Walk):
        pass

    gym.register("LocalOnRay-v0", Local, max_episode_steps=5)
    try:
        venv = make_parallel_env("LocalOnRay-v0", 2, 2, engine="ray", env_kwargs={"render_mode": None})
        assert venv.reset().shape == (2, 2)
        venv.close()
    finally:
        del gym.registry["LocalOnRay-v0"]


def step_until_lost(venv):
    """The actors of a node outlive it for a moment."""
    end = time.monotonic() + 60
    while time.monotonic() < end:
        venv.step(np.zeros((venv.num_envs, 2)))


@on_cluster
def test_actor_that_is_killed_between_branches(cluster):
    venv = RayVecEnv([fragile] * 5, 3)
    venv.reset()
    os.kill(venv.env_method("pid", indices=2)[0], signal.SIGKILL)
    with pytest.raises(WorkerLostError, match=r"died in a step.*: environments 2 to 3 \(process \d+ on [\d.]+, node \w+\)"):
        venv.step(np.zeros((5, 2)))
    venv.close()
    assert_nothing_is_left()


@on_cluster
def test_actor_that_is_killed_in_a_branch(cluster):
    venv = RayVecEnv([fragile] * 3, 3)
    model = HybridGRPO("MlpPolicy", venv, branch_horizon=4, **SETTINGS)
    venv.env_method("break_by", "die", indices=1)
    with pytest.raises(WorkerLostError, match=r"died in a branch.*: environment 1 \(process \d+ on [\d.]+, node \w+\)"):
        model.learn(1_000)
    venv.close()
    assert_nothing_is_left()


@on_cluster
def test_actor_that_is_killed_while_weights_are_sent(cluster, monkeypatch):
    venv = RayVecEnv([fragile] * 3, 3)
    model = HybridGRPO("MlpPolicy", venv, branch_horizon=4, **SETTINGS)
    pid, share = venv.env_method("pid", indices=1)[0], venv.transport.share

    def share_and_kill(value):
        shared = share(value)
        os.kill(pid, signal.SIGKILL)
        return shared

    monkeypatch.setattr(venv.transport, "share", share_and_kill)
    with pytest.raises(WorkerLostError, match=r"died in a branch: environment 1 \("):
        model.learn(1_000)
    venv.close()
    assert_nothing_is_left()


@on_cluster
def test_actor_that_hangs(cluster):
    venv = RayVecEnv([fragile] * 2, 2, timeout=2)
    venv.reset()
    venv.env_method("break_by", "hang", indices=1)
    with pytest.raises(WorkerLostError, match=r"did not answer within timeout=2 s: environment 1 \(process"):
        venv.step(np.ones((2, 2)))
    venv.close()
    assert_nothing_is_left()


@on_cluster
def test_node_that_is_killed(cluster, doomed):
    venv = RayVecEnv([fragile] * 4, 2, ray_options={"resources": {"doomed": 1}})
    venv.reset()
    cluster.remove_node(doomed, allow_graceful=False)
    with pytest.raises(WorkerLostError, match=r"died .*: environments 0 to 1 \(process.*; environments 2 to 3 \(process"):
        step_until_lost(venv)
    venv.close()
    assert_nothing_is_left()


@on_cluster
@pytest.mark.filterwarnings("ignore:.* updates in a row show:UserWarning")
def test_run_goes_on_when_a_node_is_killed(cluster, tmp_path):
    node = cluster.add_node(**cluster.arguments)
    cluster.wait_for_nodes()
    venv = RayVecEnv([fragile] * 8, 8, restart_workers=True)
    assert any(whereabouts.endswith(node.node_id) for whereabouts in venv.transport._whereabouts)

    class KillNode(BaseCallback):
        def _on_step(self):
            if self.num_timesteps == 96 and node in cluster.list_all_nodes():
                cluster.remove_node(node, allow_graceful=False)
            return True

    model = HybridGRPO("MlpPolicy", venv, branch_horizon=4, **SETTINGS)
    with pytest.warns(UserWarning, match=r"the rollout's \d+ committed steps are thrown away"):
        model.learn(6_400, callback=[KillNode(), CheckpointCallback(8, str(tmp_path))])
    assert model.num_timesteps == 6_400
    venv.close()
    assert_nothing_is_left()
    loaded = HybridGRPO.load(tmp_path / "rl_model_64_steps", env=DummyVecEnv([fragile] * 8))
    assert loaded.learn(64, reset_num_timesteps=False).num_timesteps == 128


@on_cluster
def test_object_store_that_is_full(cluster, monkeypatch):
    import ray

    venv = RayVecEnv([fragile] * 2, 2)
    model = HybridGRPO("MlpPolicy", venv, branch_horizon=4, **SETTINGS)

    def put(value):
        raise ray.exceptions.ObjectStoreFullError("no room for 80 MB")

    monkeypatch.setattr(ray, "put", put)
    with pytest.raises(WorkerLostError, match=r"object store of Ray is full.*no room(?s:.*)All workers were ended"):
        model.learn(100)
    venv.close()
    assert_nothing_is_left()


@on_cluster
def test_cluster_that_is_smaller_than_asked_for(cluster):
    with pytest.raises(WorkerLostError, match=r"Ray started \d+ of 20 actors in start_timeout=3 s.*12 CPUs on 3 nodes"):
        RayVecEnv([fragile] * 20, 20, start_timeout=3)
    assert_nothing_is_left()


@on_cluster
def test_environment_that_cannot_be_made(cluster):
    def broken():
        raise FileNotFoundError("no model.xml here")

    with pytest.raises(FileNotFoundError, match=r"model\.xml"):
        RayVecEnv([fragile, broken], 2)
    assert_nothing_is_left()


@on_cluster
def test_pendulum(cluster):
    hyperparams = {**ZOO_HYPERPARAMS["Pendulum-v1"], "n_steps": 342, "batch_size": 72}
    del hyperparams["n_envs"]
    venv = make_parallel_env("Pendulum-v1", 12, 6, engine="ray", seed=0)
    model = HybridGRPO("MlpPolicy", venv, seed=0, device="cpu", **hyperparams).learn(19 * 12 * 342)
    assert model.num_timesteps <= 80_000
    assert evaluate_policy(model, Monitor(gym.make("Pendulum-v1")), 20)[0] >= -250
    venv.close()


def test_ray_that_is_missing(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(MissingExtraError, match=r'pip install "sb3-hybrid-grpo\[ray\]"'):
        RayVecEnv([fragile])
    with pytest.raises(MissingExtraError, match='engine="ray"'):
        make_parallel_env("CartPole-v1", 2, engine="ray")


def test_ray_is_imported_by_those_alone_who_ask_for_it():
    code = "import sys, sb3_hybrid_grpo; sys.exit('ray' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
