"""Environments that are others than when the model was made: every branch comes from the one that is there now."""

import itertools

import gymnasium as gym
import numpy as np
import pytest
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import SubprocVecEnv, VecNormalize

from sb3_hybrid_grpo import HybridGRPO, UnbranchableEnvError
from sb3_hybrid_grpo.branching.copies.child import CAN_FORK
from sb3_hybrid_grpo.branching.simulator import Simulator, detours
from sb3_hybrid_grpo.branching.simulator.layers import Composition
from sb3_hybrid_grpo.policies.actors import Samples
from sb3_hybrid_grpo.rollout.action_sampling import ActionSampling
from tests.envs import Walk

needs_fork = pytest.mark.skipif(not CAN_FORK, reason="needs os.fork")


def make_pendulum(gravity=10.0, seed=0):
    env = gym.make("Pendulum-v1", max_episode_steps=7, g=gravity)
    env.reset(seed=seed)
    return env


def make_walk(seed=0):
    env = gym.wrappers.TimeLimit(Walk(), 7)
    env.reset(seed=seed)
    return env


def make_cheetah(seed=0):
    pytest.importorskip("mujoco")
    env = gym.make("HalfCheetah-v5", max_episode_steps=7)
    env.reset(seed=seed)
    return env


MAKERS = {"pendulum": make_pendulum, "walk": make_walk, "cheetah": make_cheetah}


class Tasks(gym.Wrapper):
    """Goes on to the next of its environments at each reset."""

    def __init__(self, envs):
        super().__init__(envs[0])
        self.tasks = envs
        self.n_resets = 0

    def reset(self, **kwargs):
        self.n_resets += 1
        self.env = self.tasks[self.n_resets % len(self.tasks)]
        return self.env.reset(**kwargs)


class TransparentTasks(Tasks):
    """Is told to hand everything through, so that branches go around it."""


class NewTask(gym.Wrapper):
    """Makes another environment at each reset."""

    def __init__(self, make):
        super().__init__(make())
        self.make = make
        self.n_resets = 0

    def reset(self, **kwargs):
        self.n_resets += 1
        self.env = self.make(seed=self.n_resets)
        return self.env.reset(**kwargs)


class Inside(gym.Env):
    """Hides its task in an attribute, and exchanges it."""

    def __init__(self):
        self.task = Walk()
        self.action_space, self.observation_space = self.task.action_space, self.task.observation_space
        self.n_steps = 0

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.task, self.n_steps = Walk(), 0
        return self.task.reset(seed=int(self.np_random.integers(1000)))

    def step(self, action):
        self.n_steps += 1
        obs, reward, terminated, _, info = self.task.step(action)
        return obs, reward, terminated, self.n_steps == 5, info


class Repeated(ActionSampling):
    """All N actions are the committed one: then all outcomes of a state must be the same."""

    def sample(self, actor, obs, noise, action_masks=None):
        committed = actor.sample(obs, 1, noise).actions
        return Samples(committed.repeat(self.group_size, axis=1))


def make_model(venv, **kwargs):
    kwargs = {"n_steps": 24, "batch_size": 24, "n_samples": 2, "branch_horizon": 2, "seed": 0, "device": "cpu", **kwargs}
    model = HybridGRPO("MlpPolicy", venv, **kwargs)
    model._action_sampling = Repeated(2)
    model.train = lambda: None
    return model


def assert_branches_are_right(model, n_missing=0):
    buffer = model.rollout_buffer
    alive = buffer.branch_alive[..., 1, 0]
    assert (~alive).sum() == n_missing
    for name in ("branch_rewards", "branch_terminated"):
        of_branches, committed = getattr(buffer, name)[..., 1, 0], getattr(buffer, name)[..., 0, 0]
        np.testing.assert_array_equal(of_branches[alive], committed[alive], err_msg=name)
    goes_on = alive & ~buffer.terminated[..., 0]
    goes_on[:-1] &= buffer.episode_starts[1:] == 0
    goes_on[-1] = False
    np.testing.assert_allclose(buffer.next_values[..., 1][goes_on], buffer.next_values[..., 0][goes_on], atol=1e-5)
    assert np.ptp(buffer.rewards[..., 0]) > 0.1


def replaced_env(model, make):
    model.env = make_vec_env(lambda: make(seed=5), 2, seed=7)


def monitored(env):
    env = Monitor(env)
    env.reset(seed=5)
    return env


def replaced_in_list(model, make):
    model.env.envs[1] = monitored(make())


def replaced_list(model, make):
    model.env.envs = [monitored(make()), monitored(make())]


def replaced_in_monitor(model, make):
    model.env.envs[1].env = make(seed=5)


def replaced_by_set_attr(model, make):
    model.env.set_attr("env", make(seed=5), indices=[0])


def replaced_core(model, make):
    layer = model.env.envs[0]
    while isinstance(layer.env, gym.Wrapper):
        layer = layer.env
    layer.env = make(seed=5).unwrapped


def patched_step(model, make):
    def negated(action, step=model.env.envs[0].step):
        obs, reward, *rest = step(action)
        return (obs, -reward, *rest)

    model.env.envs[0].step = negated


def wrapped(model, make):
    """States of the new one cannot be remembered."""
    model.env.envs[1] = monitored(gym.wrappers.TransformReward(make(), abs))


CHANGES = (
    replaced_env, replaced_in_list, replaced_list, replaced_in_monitor, replaced_by_set_attr, replaced_core, patched_step,
    wrapped,
)  # fmt: skip


@pytest.mark.parametrize(
    "kind, change",
    [
        *itertools.product(("pendulum", "walk"), CHANGES),
        ("cheetah", replaced_in_list),
        ("cheetah", replaced_core),
        ("cheetah", wrapped),
    ],
)
@pytest.mark.parametrize("is_late", [False, True], ids=["between rollouts", "in a rollout"])
def test_changed_by_hand(kind, change, is_late):
    if is_late and change is replaced_env:
        pytest.skip("counts from the next rollout on")
    make = MAKERS[kind]
    model = make_model(make_vec_env(make, 2, seed=0))

    def change_late(locals_, globals_):
        if is_late and model.num_timesteps == 20:
            change(model, make)
        return True

    model.learn(48, callback=change_late)
    if not is_late:
        change(model, make)
        model.learn(48)
    assert_branches_are_right(model)


@pytest.mark.parametrize("kind", ["pendulum", "walk"])
def test_other_environment_inside_a_wrapper_of_the_vectorised_one(kind):
    make = MAKERS[kind]
    model = make_model(VecNormalize(make_vec_env(make, 1, seed=0)))
    model.learn(24)
    model.env.venv = make_vec_env(lambda: make(seed=5), 1, seed=7)
    model.learn(24)
    assert_branches_are_right(model)


@pytest.fixture
def transparent(monkeypatch):
    monkeypatch.setattr(detours, "_transparent_wrappers", {*detours._transparent_wrappers, TransparentTasks})


@pytest.mark.parametrize(
    "wrap",
    [
        lambda make: Tasks([make(seed=seed) for seed in range(3)]),
        lambda make: TransparentTasks([make(seed=seed) for seed in range(3)]),
        NewTask,
    ],
    ids=["tasks", "transparent", "new"],
)
@pytest.mark.parametrize("kind", MAKERS)
def test_swapped_at_resets(kind, wrap, transparent):
    model = make_model(make_vec_env(lambda: wrap(MAKERS[kind]), 2, seed=0))
    model.learn(96)
    assert_branches_are_right(model)


def test_swapped_inside_an_environment():
    model = make_model(make_vec_env(Inside, 2, seed=0))
    model.learn(48)
    assert_branches_are_right(model)


def test_known_tasks_are_probed_once(monkeypatch):
    probed, probe = [], Simulator.probe
    monkeypatch.setattr(Simulator, "probe", lambda self, watch: (probed.append(self), probe(self, watch))[1])
    model = make_model(make_vec_env(lambda: Tasks([make_walk(seed=seed) for seed in range(3)]), 1), brancher="snapshot")
    model.learn(72)
    assert len(probed) == 3
    assert_branches_are_right(model)


@needs_fork
@pytest.mark.parametrize("brancher", ["fork", "replay", "quickest"])
def test_other_ways_to_branch(brancher):
    model = make_model(make_vec_env(lambda: Tasks([make_walk(seed=seed) for seed in range(2)]), 1), brancher=brancher)
    model.learn(24)
    assert_branches_are_right(model)


class Threaded(Walk):
    """Keeps what nothing can save."""

    def __init__(self):
        super().__init__()
        self.generator = (i for i in range(10))


def make_threaded(seed=0):
    env = gym.wrappers.TimeLimit(Threaded(), 7)
    env.reset(seed=seed)
    return env


def test_what_cannot_be_branched_is_refused_again_and_again():
    venv = make_vec_env(make_walk, 1, seed=0)
    model = make_model(venv, brancher="snapshot")
    venv.envs[0].env = make_threaded()
    for _ in range(2):
        with pytest.raises(UnbranchableEnvError, match=r"Threaded\.generator is a builtins\.generator"):
            model.learn(24)
    venv.envs[0].env = make_walk(seed=3)
    model.learn(24)
    assert_branches_are_right(model)


@needs_fork
def test_another_way_is_found_and_announced():
    venv = make_vec_env(make_walk, 1, seed=0)
    model = make_model(venv)
    venv.envs[0].env = make_threaded()
    with pytest.warns(UserWarning, match="generator.*last resort"):
        model.learn(24)
    assert_branches_are_right(model)


def test_the_comparison_can_fail(monkeypatch):
    monkeypatch.setattr(Composition, "changed", lambda self, envs: [])
    model = make_model(make_vec_env(make_walk, 2, seed=0))
    replaced_in_list(model, make_walk)
    model.learn(48)
    with pytest.raises(AssertionError):
        assert_branches_are_right(model)


@pytest.fixture(params=["pendulum", "walk"])
def workers(request):
    """Workers whose environments change at resets. States of the first kind are remembered."""
    make = MAKERS[request.param]
    venv = SubprocVecEnv(
        [lambda: Monitor(TransparentTasks([make(seed=seed) for seed in range(2)]))] * 2, "fork" if CAN_FORK else None
    )
    yield venv, make
    venv.close()


def test_swapped_at_resets_of_workers(workers, transparent):
    venv, make = workers
    model = make_model(venv)
    model.learn(96)
    # Where states are remembered, a worker notices too late for the first one of an episode.
    n_episodes = int(model.rollout_buffer.episode_starts.sum())
    assert_branches_are_right(model, n_missing=n_episodes if make is make_pendulum else 0)
    assert n_episodes > 2 and model._brancher.can_remember == (make is make_pendulum)


@pytest.mark.parametrize(
    "wrap", [lambda env: env, lambda env: gym.wrappers.TransformReward(env, abs)], ids=["like", "wrapped"]
)
def test_set_attr_in_workers(workers, transparent, wrap):
    """A wrapper makes that states cannot be remembered any more."""
    venv, make = workers
    model = make_model(venv)

    def change_late(locals_, globals_):
        if model.num_timesteps == 20:
            venv.set_attr("env", wrap(make(seed=5)), indices=[1])
        return True

    model.learn(48, callback=change_late)
    starts = model.rollout_buffer.episode_starts
    n_episodes = starts[:11].sum() + (starts[11:, 0].sum() if model._brancher.can_remember else 0)
    assert_branches_are_right(model, n_missing=int(n_episodes) + 1 if make is make_pendulum else 0)


@pytest.mark.parametrize("change", [replaced_env, replaced_in_list])
def test_replays_of_a_new_environment_begin_with_its_reset(change):
    model = make_model(make_vec_env(make_walk, 2, seed=0), brancher="replay")
    change(model, make_walk)
    model.learn(48)
    assert_branches_are_right(model)
