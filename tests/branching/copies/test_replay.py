"""Branching by playing an episode again in a copy: the same laws, and a clear error where a copy plays another episode."""

import copy
import gc
import pickle
import time

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces, wrappers
from gymnasium.utils import EzPickle
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize

from sb3_hybrid_grpo import BranchError, BranchTimeoutError, HybridGRPO, UnbranchableEnvError
from sb3_hybrid_grpo.branching import choice as local
from sb3_hybrid_grpo.branching import make_brancher
from sb3_hybrid_grpo.branching.copies import fork
from sb3_hybrid_grpo.branching.copies.replay import ReplayBrancher
from tests.envs import Walk, far_library, limited
from tests.lockstep import (
    Reporter,
    assert_laws,
    assert_laws_of_paths,
    branch,
    describe,
    describe_global_generators,
    reporting,
    subproc,
)

VEC_ENVS = pytest.mark.parametrize("vec_env_cls", [DummyVecEnv, subproc()], ids=["DummyVecEnv", "SubprocVecEnv"])
ACTION = np.zeros((1, 2, 2), dtype=np.float32)


class Reconstructed(Walk, EzPickle):
    """A walk of which a copy is a new one."""

    def __init__(self, **kwargs):
        EzPickle.__init__(self, **kwargs)
        super().__init__(**kwargs)


def lunar_lander(**kwargs):
    pytest.importorskip("Box2D")
    return Monitor(gym.make("LunarLander-v3", max_episode_steps=120, **kwargs))


ENVIRONMENTS = {
    "LunarLander": (lunar_lander, 150),
    "LunarLander, continuous": (lambda: lunar_lander(continuous=True), 150),
    "copied": (limited(9), 25),
    "constructed anew": (lambda: wrappers.TimeLimit(Reconstructed(), 9), 25),
    "dict": (limited(9, observation="dict"), 25),
    "discrete": (limited(9, observation="discrete"), 25),
    "running statistics": (lambda: wrappers.NormalizeReward(wrappers.NormalizeObservation(limited(9)())), 25),
    "stacked frames": (lambda: wrappers.FrameStackObservation(limited(9)(), 3), 25),
    "MuJoCo": (lambda: gym.make("Hopper-v5", max_episode_steps=12), 25),
}


@VEC_ENVS
@pytest.mark.parametrize("case", ENVIRONMENTS)
def test_laws(case, vec_env_cls):
    make_env, n_steps = ENVIRONMENTS[case]
    assert_laws_of_paths(
        lambda: make_vec_env(reporting(make_env), 2, vec_env_cls=vec_env_cls), n_steps, {0: 1, 1: 5, 4: 2}, name="replay"
    )


def test_laws_behind_vectorised_wrappers():
    ends = assert_laws(lambda: VecNormalize(make_vec_env(reporting(limited(9)), 2)), 30, brancher_name="replay")
    assert ends.truncated


def test_resets_with_arguments():
    """An episode is played again with the seed and the options that it was asked for with."""

    class Placed(Walk):
        def reset(self, *, seed=None, options=None):
            obs, info = super().reset(seed=seed)
            self.position += (options or {}).get("offset", 0)
            return obs, info

    venv = DummyVecEnv([Placed])
    brancher = make_brancher("replay", venv)
    venv.seed(5)
    venv.set_options({"offset": 2})
    venv.reset()
    outcome = branch(brancher, ACTION)
    obs, *_ = venv.step(ACTION[:, 0])
    np.testing.assert_array_equal(outcome.observations[:, 0], obs)


def test_what_others_set_or_replace_is_found_out():
    venv = DummyVecEnv([Reconstructed])
    brancher = make_brancher("replay", venv)
    venv.reset()
    branch(brancher, ACTION)
    venv.envs[0].velocity = 1.0
    before = describe(venv.envs[0])
    with pytest.raises(BranchError, match=r"Environment 0, .*another state when 0 steps were.*attributes set(?s:.*)'fork'"):
        branch(brancher, ACTION)
    assert describe(venv.envs[0]) == before
    venv.step(ACTION[:, 0])
    with pytest.raises(BranchError, match="another state when 1 steps"):
        branch(brancher, ACTION)
    venv.reset()
    branch(brancher, ACTION)


def test_random_generators_are_compared_even_if_nothing_shows_them():
    venv = DummyVecEnv([Walk])
    brancher = make_brancher("replay", venv)
    venv.reset()
    venv.envs[0].np_random.normal()
    with pytest.raises(BranchError, match="another state"):
        branch(brancher, ACTION)


def test_branches_begin_with_the_next_reset():
    venv = DummyVecEnv([Walk])
    venv.reset()
    brancher = make_brancher("replay", venv)
    with pytest.raises(BranchError, match=r"Environment 0.*has not been reset since.*reset it"):
        branch(brancher, ACTION)
    venv.reset()
    assert branch(brancher, ACTION).rewards.all()


def test_environment_that_cannot_be_copied_any_more():
    """That is no reason to fail in a committed reset."""
    venv = DummyVecEnv([Walk])
    brancher = make_brancher("replay", venv)
    venv.reset()
    venv.envs[0].window = (step for step in "abc")
    branch(brancher, ACTION)
    venv.reset()
    with pytest.raises(BranchError, match=r"Environment 0.*could not be copied.*copy\.deepcopy raised TypeError(?s:.*)'fork'"):
        branch(brancher, ACTION)
    del venv.envs[0].window
    venv.reset()
    branch(brancher, ACTION)


def test_recording_goes_on_with_another_brancher_and_ends_with_the_last():
    venv = DummyVecEnv([Walk])
    first = make_brancher("replay", venv)
    venv.reset()
    second = make_brancher("replay", venv)
    assert (branch(first, ACTION).rewards == branch(second, ACTION).rewards).all()
    del first
    gc.collect()
    venv.reset()
    assert branch(second, ACTION).rewards.all()
    del second
    gc.collect()
    venv.reset()
    assert not {"reset", "step"} & vars(venv.envs[0]).keys()
    venv.step(ACTION[:, 0])


class Keeps(Walk):
    """Has an attribute on which copies depend."""

    def __init__(self, kept=None):
        super().__init__()
        self.kept = kept


class HistoryMatters(Reconstructed):
    """Remembers, through resets, how often it was stepped, where a copy does not see it."""

    n_steps = 0

    def step(self, action):
        self.n_steps += 1
        obs, *rest = super().step(action)
        return obs + np.float32(self.n_steps), *rest


class Counts(Reconstructed):
    """Counts all of its steps, and shows nobody."""

    n_steps = 0

    def step(self, action):
        self.n_steps += 1
        return super().step(action)


class DrawsFromNumpy(Walk):
    def step(self, action):
        self.position += np.random.normal()
        return super().step(action)


class Throws(Walk):
    def step(self, action):
        raise ArithmeticError("the simulation exploded")


def bipedal_walker():
    pytest.importorskip("Box2D")
    env = gym.make("BipedalWalker-v3")
    env.reset(seed=1)
    return env


REFUSED = {
    "cannot be copied": (
        lambda: Keeps(step for step in "abc"),
        UnbranchableEnvError,
        r"Keeps.*copy\.deepcopy raised TypeError",
    ),
    "attribute": (Counts, UnbranchableEnvError, r"Counts.*attributes of a new copy.*outlive a reset"),
    "history": (HistoryMatters, UnbranchableEnvError, r"HistoryMatters.*other observations.*outlives a reset(?s:.*)'fork'"),
    "BipedalWalker": (bipedal_walker, UnbranchableEnvError, r"BipedalWalker.*outlives a reset"),
    "shared generator": (DrawsFromNumpy, UnbranchableEnvError, r"DrawsFromNumpy.*np\.random.*self\.np_random"),
    "raises": (Throws, BranchError, r"Throws.*raised ArithmeticError.*exploded"),
}


@VEC_ENVS
@pytest.mark.parametrize("case", REFUSED)
def test_refusals(case, vec_env_cls):
    make_env, error_class, message = REFUSED[case]
    venv = make_vec_env(make_env, 1, vec_env_cls=vec_env_cls)
    before = describe_global_generators()
    with pytest.raises(error_class, match=message):
        make_brancher("replay", venv)
    assert describe_global_generators() == before
    venv.close()


def test_shared_generator_that_is_used_late():
    class Late(Walk):
        def step(self, action):
            if action[0] > 2:
                np.random.normal()
            return super().step(action)

    venv = DummyVecEnv([Late])
    brancher = make_brancher("replay", venv)
    venv.reset()
    before = describe_global_generators()
    with pytest.raises(UnbranchableEnvError, match=r"Late.*np\.random"):
        branch(brancher, np.full_like(ACTION, 3))
    assert describe_global_generators() == before


def test_training_is_that_of_forks():
    if not local.CAN_FORK:
        pytest.skip("the platform cannot fork")

    def trained(brancher):
        env = make_vec_env(lambda: wrappers.TimeLimit(Reconstructed(), 9), 2, seed=0)
        model = HybridGRPO("MlpPolicy", env, n_steps=16, batch_size=8, brancher=brancher, seed=0)
        model.learn(64)
        return model.num_simulator_steps, pickle.dumps([p.detach().numpy() for p in model.policy.parameters()])

    assert trained("replay") == trained("fork")


def test_platform_without_fork(monkeypatch):
    for module in (fork, local):
        monkeypatch.setattr(module, "CAN_FORK", False)

    def hidden_walk():
        handle = far_library().connect()

        class HidesItsState(Walk):
            def reset(self, **kwargs):
                far_library().worlds[handle] = 0
                return super().reset(**kwargs)

            def step(self, action):
                obs, _, *rest = super().step(action)
                return obs, far_library().step(handle) % 1000, *rest

        return HidesItsState()

    with pytest.raises(
        UnbranchableEnvError, match=r"hidden(?s:.*)cannot fork(?s:.*)Nor does brancher='replay': .*other rewards"
    ):
        make_brancher("auto", make_vec_env(hidden_walk))
    if pytest.importorskip("Box2D"):
        with pytest.warns(UserWarning, match=r"LunarLander.*last resort.*steps of the episode again.*brancher='replay'"):
            choice = make_brancher("auto", make_vec_env("LunarLander-v3"))
    assert isinstance(choice._simulators, ReplayBrancher)


def test_faults_in_branches():
    class Fragile(Reconstructed):
        def step(self, action):
            if action[0] > 4:
                time.sleep(60)
            if action[0] > 2:
                raise ArithmeticError("the simulation exploded")
            return super().step(action)

    venv = DummyVecEnv([Fragile])
    brancher = make_brancher("replay", venv, timeout=0.5)
    venv.reset()
    before = describe(venv.envs[0])
    for action, error_class, message in (
        (3, BranchError, "raised ArithmeticError.*exploded"),
        (5, BranchTimeoutError, "0.5 s"),
    ):
        with pytest.raises(error_class, match=f"Environment 0.*{message}(?s:.*)Action.*is as it was"):
            branch(brancher, np.full_like(ACTION, action))
        assert describe(venv.envs[0]) == before
    with pytest.raises(ArithmeticError):
        venv.step(np.full((1, 2), 3))
    venv.reset()
    assert branch(brancher, ACTION).rewards.all()


def test_recorders_and_renderers_see_no_branch(monkeypatch):
    """Neither a wrapper that only watches, nor a window of a copy."""
    seen = []
    monkeypatch.setattr(far_library(), "windows", seen, raising=False)

    class Window(Reconstructed):
        def step(self, action):
            far_library().windows.append((id(self), self.render_mode))
            return super().step(action)

    venv = DummyVecEnv([lambda: Reporter(wrappers.RecordEpisodeStatistics(Window(render_mode="human")))])
    brancher = make_brancher("replay", venv)
    venv.reset()
    venv.step(ACTION[:, 0])
    before = describe(venv.envs[0])
    branch(brancher, ACTION)
    assert describe(venv.envs[0]) == before
    own = id(venv.envs[0].unwrapped)
    assert {mode for env, mode in seen if env != own} == {None}
    assert [mode for env, mode in seen if env == own] == ["human"]


def test_masks():
    class Masked(Walk):
        def __init__(self):
            super().__init__(action_space=spaces.Discrete(3))

        def action_masks(self):
            return np.array([True, self.position > 0, self.position <= 0])

    venv = DummyVecEnv([Masked])
    brancher = make_brancher("replay", venv)
    brancher.include_masks()
    venv.reset()
    outcome = brancher.open(np.zeros((1, 2), dtype=int), np.ones((1, 2), dtype=bool), horizon=2)
    venv.step([0])
    np.testing.assert_array_equal(outcome.action_masks[0, 0], venv.envs[0].action_masks())


def test_copies_of_a_recorded_environment_are_environments_of_their_own():
    venv = DummyVecEnv([Walk])
    brancher = make_brancher("replay", venv)
    venv.reset()
    other = copy.deepcopy(venv.envs[0])
    before = describe(venv.envs[0])
    other.step(ACTION[0, 0])
    assert describe(venv.envs[0]) == before
    branch(brancher, ACTION)


def test_workers_do_not_copy_their_brancher(monkeypatch):
    """It is an attribute of an environment that nothing is wrapped around."""

    def refuse(self, memo):
        raise AssertionError("copied")

    monkeypatch.setattr(ReplayBrancher, "__deepcopy__", refuse, raising=False)
    venv = subproc()([Walk])
    brancher = make_brancher("replay", venv)
    venv.reset()
    assert branch(brancher, ACTION).rewards.all()
    venv.close()


def test_snapshots_of_a_recorded_environment():
    """They are exact, and leave no episode that could be taken for the environment's."""
    venv = DummyVecEnv([Walk])
    brancher = make_brancher("replay", venv)
    venv.reset()
    expected = branch(brancher, ACTION)
    snapshots = make_brancher("snapshot", venv)
    np.testing.assert_array_equal(branch(snapshots, ACTION).observations, expected.observations)
    with pytest.raises(BranchError, match="another state"):
        branch(brancher, ACTION)


class Shared(Walk):
    """Another object draws from its random generator, since the first reset."""

    def reset(self, *, seed=None, options=None):
        returned = super().reset(seed=seed)
        if seed is not None:
            self.others = [self.np_random]
        return returned

    def step(self, action):
        obs, reward, *rest = super().step(action)
        return obs, reward + self.others[0].normal(), *rest


def test_what_shares_the_generator_shares_it_in_copies():
    def make():
        env = reporting(lambda: wrappers.TimeLimit(Shared(), 4))()
        env.reset(seed=0)
        return env

    assert_laws(lambda: DummyVecEnv([make]), n_steps=12, brancher_name="replay")


class NeedsLevel(Walk):
    level = None

    def reset(self, *, seed=None, options=None):
        self.level = (options or {}).get("level", self.level)
        if self.level is None:
            raise ValueError("no level")
        return super().reset(seed=seed)


def test_copies_are_reset_with_the_options_of_the_first_reset():
    venv = DummyVecEnv([lambda: wrappers.TimeLimit(NeedsLevel(), 9)])
    with pytest.raises(BranchError, match=r"reset with no options"):
        make_brancher("replay", venv)
    venv.set_options({"level": 3})
    brancher = make_brancher("replay", venv)
    venv.seed(0)
    venv.reset()
    outcome = brancher.open(ACTION, np.ones((1, 2), dtype=bool), 1)
    np.testing.assert_array_equal(outcome.rewards[0, 0], venv.step(ACTION[:, 0])[1][0])
