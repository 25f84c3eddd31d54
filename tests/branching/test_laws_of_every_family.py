"""The laws of branching as properties of every family of environments: for any actions, in any state, across any end."""

import contextlib
import os
import types
from collections import defaultdict
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np
import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from stable_baselines3.common.env_util import make_atari_env, make_vec_env
from stable_baselines3.common.vec_env import DummyVecEnv, VecFrameStack, VecTransposeImage

from sb3_hybrid_grpo import BranchError
from sb3_hybrid_grpo.branching import make_brancher
from sb3_hybrid_grpo.common.type_aliases import BranchOutcome
from tests.lockstep import (
    Reporter,
    assert_committed_outcome,
    describe,
    make_installed,
    pick,
    sample_actions,
    seed_global_generators,
    state_of,
    subproc,
)

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*use of fork:DeprecationWarning"),
    # What other packages say to their own users.
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning"),
    pytest.mark.filterwarnings("ignore::RuntimeWarning"),
]

N_BRANCHES = 2


class Trap(gym.Wrapper):
    """Raises on request, when the environment inside has made its step."""

    def __init__(self, env):
        super().__init__(env)
        self.trapped = None

    def set_trap(self, action):
        self.trapped = action

    def step(self, action):
        result = self.env.step(action)
        if self.trapped is not None and np.array_equal(action, self.trapped):
            raise ArithmeticError("caught in the trap")
        return result


def make_limited(env_id, **kwargs):
    return gym.make(env_id, **{"max_episode_steps": 9, **kwargs})


def make_minigrid(env_id):
    from minigrid.wrappers import ImgObsWrapper

    return ImgObsWrapper(gym.make(env_id, max_steps=9))


def make_flat(env_id):
    return gym.wrappers.FlattenObservation(make_limited(env_id))


def make_stacked_frames(make_env, n_envs, vec_env_cls):
    pytest.importorskip("cv2")
    wrapper_kwargs = {"noop_max": 5, "action_repeat_probability": 0.25}
    venv = make_atari_env(make_env, n_envs, wrapper_kwargs=wrapper_kwargs, vec_env_cls=vec_env_cls)
    return VecTransposeImage(VecFrameStack(venv, 4))


class Case(NamedTuple):
    """
    An environment of a family that ends an episode within ``n_steps``.

    Up to ``max_branched`` drawn states are branched, and one close to the end of the first episode.
    """

    package: str
    env_id: str
    make_env: Callable[..., gym.Env] = make_limited
    n_steps: int = 14
    max_branched: int = 4
    n_envs: int = 2
    brancher: str = "snapshot"
    make_venv: Callable[..., Any] = make_vec_env


def atari(env_id, n_envs):
    make_env = partial(gym.make, frameskip=1, repeat_action_probability=0.25, max_episode_steps=30)
    return Case("ale_py", env_id, make_env, n_steps=10, max_branched=2, n_envs=n_envs, make_venv=make_stacked_frames)


def forked(env_id, max_episode_steps=100, max_branched=1, n_envs=1, **kwargs):
    make_env = partial(make_limited, max_episode_steps=max_episode_steps, **kwargs)
    return Case("Box2D", env_id, make_env, max_episode_steps, max_branched, n_envs, brancher="fork")


def highway(env_id, **kwargs):
    make_env = partial(make_limited, max_episode_steps=5, **kwargs)
    return Case("highway_env", env_id, make_env, n_steps=8, max_branched=1, n_envs=1)


CASES = {
    "CartPole": Case("gymnasium", "CartPole-v1"),
    "Pendulum": Case("gymnasium", "Pendulum-v1"),
    "FrozenLake": Case("gymnasium", "FrozenLake-v1"),
    "Blackjack": Case("gymnasium", "Blackjack-v1"),
    "Hopper": Case("mujoco", "Hopper-v5", partial(make_limited, max_episode_steps=35), n_steps=40),
    "Ant": Case("mujoco", "Ant-v5"),
    "Breakout": atari("ALE/Breakout-v5", n_envs=2),
    "Qbert": atari("ALE/Qbert-v5", n_envs=1),
    "LunarLander": forked("LunarLander-v3", n_envs=2),
    "LunarLander, continuous": forked("LunarLander-v3", continuous=True),
    "BipedalWalker": forked("BipedalWalker-v3"),
    "CarRacing": forked("CarRacing-v3", max_episode_steps=2, max_branched=0),
    "DoorKey": Case("minigrid", "MiniGrid-DoorKey-5x5-v0", make_minigrid),
    "Dynamic-Obstacles": Case("minigrid", "MiniGrid-Dynamic-Obstacles-6x6-v0", make_minigrid),
    "parking": highway("parking-v0"),
    "highway": highway("highway-fast-v0", config={"vehicles_count": 4}),
    "PointMaze": Case("gymnasium_robotics", "PointMaze_UMaze-v3"),
    "AdroitHandDoor": Case("gymnasium_robotics", "AdroitHandDoor-v1"),
    "dm_control, cartpole": Case("shimmy", "dm_control/cartpole-balance-v0", make_flat),
    "dm_control, walker": Case("shimmy", "dm_control/walker-walk-v0", make_flat),
}
VEC_ENVS = {"DummyVecEnv": DummyVecEnv, "SubprocVecEnv": subproc()}


@pytest.fixture(scope="module")
def branchable(request):
    """Two equal vectorised environments, and a brancher of the second."""
    case, vec_env_cls = request.param
    if case.brancher == "fork" and not hasattr(os, "fork"):
        pytest.skip("the platform cannot fork")
    make_env = make_installed(case.package, case.make_env, case.env_id)

    def make_venv():
        return case.make_venv(
            make_env,
            case.n_envs,
            vec_env_cls=lambda env_fns: vec_env_cls([lambda env_fn=env_fn: Reporter(Trap(env_fn())) for env_fn in env_fns]),
        )

    with contextlib.closing(make_venv()) as reference, contextlib.closing(make_venv()) as venv:
        yield case, reference, venv, make_brancher(case.brancher, venv)


def walk(brancher, actions):
    """Let branches take the actions [K, E, n, ...]; return the outcomes, and which branches took each step."""
    outcomes, alive = [], [np.ones(actions.shape[1:3], dtype=bool)]
    while len(outcomes) < len(actions) and alive[-1].any():
        step = actions[len(outcomes)]
        outcomes.append(brancher.advance(step, alive[-1]) if outcomes else brancher.open(step, alive[-1], len(actions)))
        alive.append(alive[-1] & ~(outcomes[-1].terminated | outcomes[-1].truncated))
    brancher.close()
    return outcomes, np.array(alive[: len(outcomes)])


def walk_into_trap(venv, brancher, actions, alive, env_idx, branch_idx, depth):
    """Let the environment raise in a step of a branch, or in an earlier one that takes the same action."""
    depth = min(depth, alive[:, env_idx, branch_idx].sum() - 1)
    venv.env_method("set_trap", actions[depth, env_idx, branch_idx], indices=env_idx)
    with pytest.raises(BranchError, match="caught in the trap"):
        walk(brancher, actions)
    venv.env_method("set_trap", None, indices=env_idx)


def only(outcome, branch_idx):
    """Return what one branch of each environment led to."""
    columns = np.s_[:, [branch_idx]]
    return BranchOutcome(pick(outcome.observations, columns), *(part[columns] for part in outcome[1:4]))


def play(venv, seed, plan, n_steps, horizon, committed, brancher=None, traps=types.MappingProxyType({})):
    """
    Commit the actions of one column of a plan [T, E, n, ...].

    In states with a trap all columns are branched before: the committed one must see what then happens.
    """
    venv.env_method("set_trap", None)
    venv.env_method("seed_everything", seed)
    seed_global_generators(seed)
    venv.seed(seed)
    seen, expected = [venv.reset()], defaultdict(list)
    for t in range(n_steps):
        outcomes = []
        if t in traps:
            before, actions = state_of(venv), plan[t : t + horizon]
            outcomes, alive = walk(brancher, actions)
            assert state_of(venv) == before, "branching changed the environment"
            walk_into_trap(venv, brancher, actions, alive, *traps[t])
            assert state_of(venv) == before, "a branch that raised changed the environment"
        seen.append(venv.step(plan[t, :, committed]))
        for k, outcome in enumerate(outcomes):
            observed = brancher.observed(outcome, outcomes[:k])
            expected[t + k].append((only(observed, committed), np.flatnonzero(alive[k, :, committed])))
        for outcome, env_idxs in expected[t]:
            assert_committed_outcome(outcome, *seen[-1], env_idxs)
    return seen


@pytest.mark.parametrize("horizon", [1, 5])
@pytest.mark.parametrize(
    "branchable",
    [
        pytest.param((case, vec_env_cls), id=f"{name}, {vec_env_name}")
        for name, case in CASES.items()
        for vec_env_name, vec_env_cls in VEC_ENVS.items()
    ],
    indirect=True,
)
@settings(max_examples=2, derandomize=True, deadline=None, database=None, phases=[Phase.generate])
@given(data=st.data())
def test_laws(branchable, horizon, data):
    case, reference, venv, brancher = branchable
    n_seeds = 1 + case.n_steps + horizon
    seed, *action_seeds = data.draw(st.lists(st.integers(0, 2**16), min_size=n_seeds, max_size=n_seeds), label="seeds")
    shape = (case.n_envs, N_BRANCHES)
    plan = np.array([sample_actions(venv.action_space, np.random.default_rng(each), shape) for each in action_seeds])
    committed = data.draw(st.sampled_from([1, 0]), label="committed branch")
    play_plan = partial(play, seed=seed, plan=plan, n_steps=case.n_steps, horizon=horizon, committed=committed)
    plain = play_plan(reference)
    first_end = next(t for t, (_, _, dones, _) in enumerate(plain[1:]) if dones.any())

    states = st.integers(0, case.n_steps - 1)
    trap = st.tuples(*(st.integers(0, n - 1) for n in (*shape, horizon)))
    traps = data.draw(st.dictionaries(states, trap, max_size=case.max_branched), label="traps of branched states")
    close_to_end = max(first_end - data.draw(st.integers(0, horizon - 1), label="steps before the end"), 0)
    traps.setdefault(close_to_end, data.draw(trap, label="trap close to the end"))
    assert describe(play_plan(venv, brancher=brancher, traps=traps)) == describe(plain)
