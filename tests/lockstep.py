"""
Judges of the laws of branching.

``follow`` runs a vectorised environment with or without branching and writes down all there is to see; ``describe`` turns
live objects into plain values, by means of its own and not by those of the package.
"""

import array
import contextlib
import enum
import functools
import random
import types
from collections import deque
from typing import NamedTuple

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3.common.vec_env import SubprocVecEnv, VecEnvWrapper

from sb3_hybrid_grpo.branching import make_brancher
from sb3_hybrid_grpo.common.type_aliases import BranchOutcome

WALL_CLOCK = {"t_start", "episode_times", "episode_start_time", "time_queue", "start_time", "step_time", "t"}
NO_STATE = {"_spec", "spec", "sb3_hybrid_grpo_branches", "reset", "step", "close", "P"}


def describe(obj):
    """Return nested tuples that are equal if and only if two objects are in the same state, wall-clock times apart."""
    return _Description().of(obj)


class _Description:
    def __init__(self):
        self.seen = {}

    def of(self, obj):
        if obj is None or isinstance(obj, bool | int | str | bytes | enum.Enum):
            return repr(obj)
        if isinstance(obj, float | complex | np.generic):
            return type(obj).__name__, np.asarray(obj).tobytes() if not isinstance(obj, np.void) else obj.tobytes()
        if isinstance(obj, type) or (callable(obj) and hasattr(obj, "__qualname__") and not hasattr(obj, "__self__")):
            return obj.__qualname__
        if id(obj) in self.seen:
            return "seen", self.seen[id(obj)][0]
        self.seen[id(obj)] = len(self.seen), obj
        if hasattr(obj, "cloneState"):
            return "ALE", obj.cloneState().serialize()
        return type(obj).__qualname__, *self._parts(obj)

    def _parts(self, obj):  # noqa: C901
        if isinstance(obj, np.random.Generator):
            yield self.of(obj.bit_generator)
        elif isinstance(obj, np.random.BitGenerator):
            yield self.of(obj.state)
        elif isinstance(obj, np.random.RandomState):
            yield self.of(obj.get_state(legacy=False))
        elif isinstance(obj, random.Random):
            yield repr(obj.getstate())
        elif isinstance(obj, th.Generator):
            yield obj.get_state().numpy().tobytes()
        elif isinstance(obj, th.Tensor):
            yield obj.detach().numpy().tobytes()
        elif isinstance(obj, np.ndarray):
            yield from (str(obj.dtype), obj.shape, obj.flags.writeable)
            yield [self.of(item) for item in obj.flat] if obj.dtype.hasobject else obj.tobytes()
        elif type(obj).__name__ == "MjData":
            yield from _mujoco_state(obj)
        elif isinstance(obj, set | frozenset):
            yield sorted(repr(describe(item)) for item in obj)
        elif isinstance(obj, bytearray | array.array):
            yield bytes(obj)
        elif isinstance(obj, list | tuple | deque | type({}.keys()) | type({}.values())):
            yield [self.of(item) for item in obj]
        elif isinstance(obj, functools.partial):
            yield self.of([obj.func, obj.args, obj.keywords])
        elif isinstance(obj, dict | types.MappingProxyType):
            yield [(self.of(key), self.of(value)) for key, value in obj.items() if key not in WALL_CLOCK]
        elif isinstance(obj, spaces.Space):
            yield self.of(obj._np_random)
            yield self.of(getattr(obj, "spaces", None))
        elif hasattr(obj, "__self__"):
            yield obj.__name__, self.of(obj.__self__)
        for name, value in sorted(getattr(obj, "__dict__", {}).items()):
            if name not in WALL_CLOCK | NO_STATE and not isinstance(obj, spaces.Space):
                yield name, self.of(value)
        for cls in type(obj).__mro__:
            for name in getattr(cls, "__slots__", ()):
                if hasattr(obj, name) and not isinstance(obj, np.random.Generator):
                    yield name, self.of(getattr(obj, name))


@functools.cache
def _mujoco_fields(cls):
    # What MuJoCo keeps of constraints and islands is not set where there are none: it is the memory of others.
    names = [name for name in dir(cls) if not name.startswith(("_", "efc_", "efm_", "i", "map_"))]
    return [name for name in names if not name.endswith("_island")]


def _mujoco_state(data):
    """Every array and number of an ``MjData``: the state, and all that is derived from it."""
    for name in _mujoco_fields(type(data)):
        value = getattr(data, name)
        if isinstance(value, np.ndarray | float | int):
            yield name, np.asarray(value).tobytes()


def describe_global_generators():
    # As text, for the hundreds of numbers in it would take longer to describe than the whole of most environments.
    return describe((np.random.get_state(legacy=False), repr(random.getstate()), th.get_rng_state()))


class Reporter(gym.Wrapper):
    """Outermost wrapper through which a ``SubprocVecEnv`` can be asked about the state of its environments."""

    def seed_everything(self, seed):
        np.random.seed(seed)
        random.seed(seed)
        th.manual_seed(seed)
        layer = self
        while True:
            for space in (layer.action_space, layer.observation_space):
                space.seed(seed)
            if not isinstance(layer, gym.Wrapper):
                return
            layer = layer.env

    def report(self):
        return describe((self, self.unwrapped.action_space, self.unwrapped.observation_space)), describe_global_generators()


def reporting(make_env, **kwargs):
    """Return a function that makes an environment that can be asked about its state."""
    return lambda: Reporter(make_env(**kwargs))


def make_installed(package, make, env_id):
    """Return a function that makes an environment of another package; skip the test where that is not possible."""
    gym.register_envs(pytest.importorskip(package))
    try:
        make(env_id).close()
    except Exception as error:
        pytest.skip(f"{env_id} cannot be made with the installed packages: {error}")
    return lambda: make(env_id)


def branch(brancher, actions):
    """Evaluate actions [E, n, ...] in the present state, one step each."""
    outcome = brancher.open(actions, np.ones(actions.shape[:2], dtype=bool), horizon=1)
    brancher.close()
    return outcome


class Step(NamedTuple):
    """What is seen of one committed step."""

    observations: object
    rewards: np.ndarray
    dones: np.ndarray
    infos: list
    state: object


class Ends(NamedTuple):
    """How many episodes ended, and how."""

    terminated: int
    truncated: int


def layers(venv):
    found = [venv]
    while isinstance(found[-1], VecEnvWrapper):
        found.append(found[-1].venv)
    return found


def state_of(venv):
    """Describe the wrappers of a vectorised environment, the state of its environments and all global generators."""
    *wrappers, base = layers(venv)
    hidden = ("venv", "remotes", "work_remotes", "processes")
    wrapper_states = [describe({k: v for k, v in vars(wrapper).items() if k not in hidden}) for wrapper in wrappers]
    return wrapper_states, base.env_method("report"), describe_global_generators()


def sample_actions(space, rng, shape):
    """Sample actions [E, n, ...] of any fixed-shape space."""
    if isinstance(space, spaces.Discrete):
        return space.start + rng.integers(space.n, size=shape)
    if isinstance(space, spaces.MultiDiscrete):
        return rng.integers(space.nvec, size=(*shape, *space.shape))
    if isinstance(space, spaces.MultiBinary):
        return rng.integers(2, size=(*shape, *space.shape)).astype(space.dtype)
    low, high = np.maximum(space.low, -10), np.minimum(space.high, 10)
    return rng.uniform(low, high, size=(*shape, *space.shape)).astype(space.dtype)


def follow(venv, n_steps, n_branches=3, branched=True, seed=0, check_state=True, brancher_name="snapshot", n_judged=None):
    """
    Step an environment with random actions and close it.

    When it is branched, n actions are evaluated before each step. The first of them is the one that is then committed:
    what its branch returned must be what the step returns, in the first ``n_judged`` environments or in all of them, and
    nothing may have changed in between.
    """
    rng = np.random.default_rng(seed)
    ends = np.zeros(2, dtype=int)
    with contextlib.closing(venv):
        venv.env_method("seed_everything", seed)
        seed_global_generators(seed)
        venv.seed(seed)
        venv.reset()
        brancher = None
        if branched:
            before = state_of(venv)
            brancher = make_brancher(brancher_name, venv)
            assert state_of(venv) == before, "the probe changed the environment"
        steps = [venv.reset()]
        for _ in range(n_steps):
            actions = sample_actions(venv.action_space, rng, (venv.num_envs, n_branches))
            if brancher is not None:
                before = state_of(venv) if check_state else None
                kept = actions.copy()
                outcome = branch(brancher, actions)
                assert_same(actions, kept, "actions")
                if check_state:
                    assert state_of(venv) == before, "branching changed the environment"
            obs, rewards, dones, infos = venv.step(actions[:, 0])
            ends += [sum(dones) - truncations(infos), truncations(infos)]
            if brancher is not None:
                judged = range(venv.num_envs if n_judged is None else n_judged)
                assert_committed_outcome(brancher.observed(outcome), obs, rewards, dones, infos, judged)
            steps.append(Step(obs, rewards, dones, infos, state_of(venv) if check_state else None))
    return steps, Ends(*ends)


def seed_global_generators(seed):
    np.random.seed(seed)
    random.seed(seed)
    th.manual_seed(seed)


def truncations(infos):
    return sum(info.get("TimeLimit.truncated", False) for info in infos)


def assert_committed_outcome(outcome, obs, rewards, dones, infos, env_idxs=None):
    """Law 2: the first branch of each environment, or of some, is what the committed step returned."""
    for env_idx in range(len(infos)) if env_idxs is None else env_idxs:
        info = infos[env_idx]
        truncated = info["TimeLimit.truncated"]
        terminated = dones[env_idx] and not truncated
        assert (outcome.terminated[env_idx, 0], outcome.terminated[env_idx, 0] | outcome.truncated[env_idx, 0]) == (
            terminated,
            dones[env_idx],
        )
        assert_same(outcome.rewards[env_idx, 0], rewards[env_idx], "reward")
        if dones[env_idx]:
            assert_same(pick(outcome.observations, (env_idx, 0)), info["terminal_observation"], "terminal observation")
        else:
            assert_same(pick(outcome.observations, (env_idx, 0)), pick(obs, env_idx), "observation")


def pick(observations, index):
    if isinstance(observations, dict):
        return {key: part[index] for key, part in observations.items()}
    if isinstance(observations, tuple):
        return tuple(part[index] for part in observations)
    return observations[index]


def assert_same(actual, expected, name):
    """Compare bit for bit, in the more precise of the two data types."""
    if isinstance(expected, dict):
        assert sorted(actual) == sorted(expected)
        for key in expected:
            assert_same(actual[key], expected[key], f"{name} {key!r}")
    elif isinstance(actual, tuple):
        assert len(actual) == len(expected)
        for idx, (part, expected_part) in enumerate(zip(actual, expected, strict=True)):
            assert_same(part, expected_part, f"{name} {idx}")
    else:
        dtype = np.result_type(actual, expected)
        actual, expected = np.asarray(actual, dtype=dtype), np.asarray(expected, dtype=dtype)
        assert actual.shape == expected.shape
        assert actual.tobytes() == expected.tobytes(), f"{name}: {actual} instead of {expected}"


def assert_laws(make_venv, n_steps, brancher_name="snapshot", make_reference=None, **kwargs):
    """
    Laws 1 and 2, for one way of making a vectorised environment; returns how its episodes ended.

    The trajectory without branching is that of ``make_reference``, or of the same way.
    """
    plain, _ = follow((make_reference or make_venv)(), n_steps, branched=False, **kwargs)
    branched, ends = follow(make_venv(), n_steps, brancher_name=brancher_name, **kwargs)
    assert describe(branched[0]) == describe(plain[0])
    for expected, actual in zip(plain[1:], branched[1:], strict=True):
        for name in ("observations", "rewards", "dones", "infos"):
            assert describe(getattr(actual, name)) == describe(getattr(expected, name)), name
        assert actual.state == expected.state
    return ends


def follow_plan(venv, plan, horizons, name="fork"):
    """
    Commit the actions of a plan [T, E, ...], and in some steps open branches.

    The first branch goes the way of the plan: it must see what is then committed. The others go elsewhere.
    """
    rng = np.random.default_rng(1)
    venv.env_method("seed_everything", 0)
    seed_global_generators(0)
    venv.seed(0)
    venv.reset()
    before = state_of(venv)
    brancher = make_brancher(name, venv) if name else None
    assert state_of(venv) == before, "the probe changed the environment"
    seen = [venv.reset()]
    expected = {}
    for t, committed in enumerate(plan):
        if t in horizons:
            before = state_of(venv)
            alive = np.ones((venv.num_envs, 2), dtype=bool)
            for k, action in enumerate(plan[t : t + horizons[t]]):
                actions = np.stack([action, sample_actions(venv.action_space, rng, (venv.num_envs,))], axis=1)
                if k == 0:
                    outcome = brancher.open(actions, alive, horizon=horizons[t])
                else:
                    outcome = brancher.advance(actions, alive)
                for env_idx in np.flatnonzero(alive[:, 0]):
                    expected.setdefault(t + k, []).append((env_idx, outcome))
                alive = alive & ~(outcome.terminated | outcome.truncated)
                if not alive.any():
                    break
            brancher.close()
            assert state_of(venv) == before, "branching changed the environment"
        obs, rewards, dones, infos = venv.step(committed)
        for env_idx, outcome in expected.pop(t, []):
            row = [env_idx]
            outcome = BranchOutcome(pick(outcome.observations, row), *(part[row] for part in outcome[1:4]))
            assert_committed_outcome(outcome, pick(obs, row), rewards[row], dones[row], [infos[env_idx]])
        seen.append((obs, rewards, dones, infos))
    seen.append(state_of(venv))
    venv.close()
    return seen


def assert_laws_of_paths(make_venv, n_steps, horizons, name="fork"):
    """Laws 1 and 2, also around the first end of an episode, which is returned."""
    venv = make_venv()
    plan = sample_actions(venv.action_space, np.random.default_rng(0), (n_steps, venv.num_envs))
    plain = follow_plan(venv, plan, {}, name=None)
    first_end = next(t for t, (_, _, dones, _) in enumerate(plain[1:-1]) if dones.any())
    horizons = {**horizons, max(first_end - 2, 0): 5, first_end: 1}
    assert describe(follow_plan(make_venv(), plan, horizons, name)) == describe(plain)
    return plain[1 + first_end]


def subproc(start_method="fork"):
    """Return a class of vectorised environments with a start method, as ``make_vec_env`` takes it."""
    return lambda env_fns: SubprocVecEnv(env_fns, start_method=start_method)
