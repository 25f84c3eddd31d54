"""What cannot be branched exactly is refused before training, and left untouched; what draws from global generators is not."""

import random

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv, VecEnv, VecEnvWrapper, VecNormalize

from sb3_hybrid_grpo import BranchError, HybridGRPO, InvalidArgumentError, UnbranchableEnvError
from sb3_hybrid_grpo.branching import VecEnvBrancher, make_brancher, register_vec_wrapper
from sb3_hybrid_grpo.branching.vec_env import views as vec_wrappers_module
from sb3_hybrid_grpo.common.type_aliases import BranchOutcome
from tests.envs import Walk, far_library, limited
from tests.lockstep import (
    Reporter,
    assert_laws,
    assert_same,
    branch,
    describe,
    describe_global_generators,
    follow,
    reporting,
    sample_actions,
    seed_global_generators,
    state_of,
    subproc,
)

pytestmark = pytest.mark.filterwarnings("ignore:.*use of fork:DeprecationWarning")

SMALL = {"branch_horizon": 1, "n_steps": 16, "batch_size": 8, "n_epochs": 1, "device": "cpu"}


class Hidden(Walk):
    """Its reward counts steps in a place that no attribute leads to."""

    def count(self):
        raise NotImplementedError

    def step(self, action):
        obs, _, *rest = super().step(action)
        return obs, float(self.count()), *rest


class BehindHandle(Hidden):
    def __init__(self):
        super().__init__()
        self.handle = far_library().connect()

    def count(self):
        return far_library().step(self.handle)


class HiddenObservation(Hidden):
    def __init__(self):
        super().__init__()
        self.handle = far_library().connect()

    def step(self, action):
        obs, *rest = Walk.step(self, action)
        return obs + far_library().step(self.handle), *rest


class HiddenEnd(Hidden):
    def __init__(self):
        super().__init__()
        self.handle = far_library().connect()

    def step(self, action):
        obs, reward, terminated, _, info = Walk.step(self, action)
        return obs, reward, terminated, far_library().step(self.handle) % 7 == 0, info


class HiddenInWrapper(gym.Wrapper):
    def __init__(self):
        super().__init__(Walk())
        self.handle = far_library().connect()

    def step(self, action):
        obs, reward, *rest = self.env.step(action)
        return obs, reward * far_library().step(self.handle), *rest


HIDDEN = {
    "library": (BehindHandle, "BehindHandle", "rewards"),
    "observation": (HiddenObservation, "HiddenObservation", "observations"),
    "end of episode": (HiddenEnd, "HiddenEnd", "terminated|truncated|observations|rewards"),
    "wrapper": (HiddenInWrapper, "HiddenInWrapper", "rewards"),
}
WAYS_OUT = r".*Ways out: \(1\).*register_codec.*\(2\).*fork.*\(3\).*n_samples=1"


@pytest.mark.parametrize("make_env, name, what", [pytest.param(*case, id=key) for key, case in HIDDEN.items()])
def test_hidden_state(make_env, name, what):
    """Refused by name, with what differed and what to do; what can be restored is, and training without branches goes on."""
    env = make_env()
    env.reset(seed=0)
    env.action_space.seed(0)
    seed_global_generators(0)
    before, generators = describe(env), describe_global_generators()
    with pytest.raises(UnbranchableEnvError):
        make_brancher("snapshot", DummyVecEnv([lambda: env]))
    assert describe(env) == before
    assert describe_global_generators() == generators
    with pytest.raises(UnbranchableEnvError, match=rf"(?s){name}.* cannot be branched: .*other ({what})\..*hidden{WAYS_OUT}"):
        HybridGRPO("MlpPolicy", env, brancher="snapshot", **SMALL)
    assert describe(env) == before
    model = HybridGRPO("MlpPolicy", env, brancher="snapshot", n_samples=1, **SMALL)
    model.learn(32)
    assert model.num_timesteps == 32


def test_hidden_state_in_a_worker():
    venv = SubprocVecEnv([reporting(BehindHandle)] * 2, start_method="fork")
    venv.env_method("seed_everything", 0)
    venv.seed(0)
    venv.reset()
    before = state_of(venv)
    with pytest.raises(UnbranchableEnvError, match=rf"(?s)environment 0.*BehindHandle.*other rewards.*hidden{WAYS_OUT}"):
        make_brancher("snapshot", venv)
    assert state_of(venv) == before
    HybridGRPO("MlpPolicy", venv, n_samples=1, **SMALL).learn(32)
    venv.close()


def test_only_one_of_the_environments_is_at_fault():
    venv = DummyVecEnv([reporting(Walk), reporting(BehindHandle)])
    venv.env_method("seed_everything", 0)
    venv.reset()
    before = state_of(venv)
    with pytest.raises(UnbranchableEnvError, match=rf"(?s)BehindHandle{WAYS_OUT}"):
        make_brancher("snapshot", venv)
    assert state_of(venv) == before


def test_refusal_is_no_value_error():
    """Which hyperparameter tuners would take for a bad trial."""
    with pytest.raises(UnbranchableEnvError) as error:
        make_brancher("snapshot", DummyVecEnv([BehindHandle]))
    assert not isinstance(error.value, ValueError | AssertionError)


def test_state_that_does_not_matter_may_be_hidden():
    class Counts(Walk):
        n_steps = 0

        def step(self, action):
            type(self).n_steps += 1
            return super().step(action)

    assert sum(assert_laws(lambda: DummyVecEnv([reporting(lambda: gym.wrappers.TimeLimit(Counts(), 9))]), 30)) > 0


def test_environment_that_fails_when_it_is_tried_out():
    """Its error is not taken for hidden state, and it is left as it was."""

    class Picky(Walk):
        def step(self, action):
            result = super().step(action)
            if action[0] < 0:
                raise LookupError("no such move")
            return result

    env = Picky()
    env.reset(seed=0)
    before, generators = describe(env), describe_global_generators()
    with pytest.raises(BranchError, match=r"(?s)Picky.*LookupError.*no such move") as error:
        make_brancher("snapshot", DummyVecEnv([lambda: env]))
    assert isinstance(error.value.__cause__, LookupError)
    assert (describe(env), describe_global_generators()) == (before, generators)


DRAWS = {
    "np.random": lambda: np.random.normal(),
    "np.random, one of a pair": lambda: np.random.randn(1)[0],
    "random": lambda: random.random(),
    "random, one of a pair": lambda: random.gauss(0, 1),
    "torch": lambda: th.randn(1).item(),
    "torch, many": lambda: th.randn(17).sum().item(),
    "all": lambda: np.random.normal() + random.gauss(0, 1) + th.rand(1).item(),
}


class Global(Walk):
    """Draws from a global generator, from some step on."""

    def __init__(self, source, start=0):
        super().__init__()
        self.source, self.start, self.n_steps = source, start, 0

    def step(self, action):
        obs, reward, *rest = super().step(action)
        self.n_steps += 1
        if self.n_steps > self.start:
            reward += DRAWS[self.source]()
        return obs, reward, *rest


def global_env(**kwargs):
    return gym.wrappers.TimeLimit(Global(**kwargs), 12)


@pytest.mark.parametrize("source", DRAWS)
def test_global_generators(source):
    """Branches of an environment that uses them are exact, and the committed trajectory has the numbers that it would have."""
    make_env = reporting(global_env, source=source)
    assert sum(assert_laws(lambda: DummyVecEnv([make_env]), 30)) > 0
    assert sum(assert_laws(lambda: DummyVecEnv([make_env] * 2), 30, n_judged=1)) > 0


def test_global_generators_of_workers():
    make_env = reporting(global_env, source="all")
    assert sum(assert_laws(lambda: make_vec_env(make_env, 2, vec_env_cls=subproc()), 30)) > 0


@pytest.mark.parametrize("n_used_before", [0, 1], ids=["fresh", "in the middle of a pair"])
@pytest.mark.parametrize("n_branches", [1, 3])
@pytest.mark.parametrize("source", DRAWS)
def test_global_generators_that_are_used_late(source, n_branches, n_used_before):
    """Announced once, in the step in which it begins; that step is exact too, and so are all others."""

    def run(branched):
        venv = DummyVecEnv([reporting(global_env, source=source, start=24)])
        venv.env_method("seed_everything", 1)
        brancher = make_brancher("snapshot", venv) if branched else None
        seed_global_generators(0)
        venv.seed(0)
        seen, announcements = [venv.reset()], []
        rng = np.random.default_rng(0)
        for _ in range(n_used_before):
            DRAWS[source]()
        for step in range(30):
            actions = sample_actions(venv.action_space, rng, (1, n_branches))
            if branched:
                with warnings_as_list() as caught:
                    outcome = branch(brancher, actions)
                announcements += [(step, str(warning.message)) for warning in caught]
            obs, rewards, dones, infos = venv.step(actions[:, 0])
            if branched:
                assert_same(outcome.rewards[:, 0], rewards, "reward")
            seen.append((obs, rewards, dones, infos, state_of(venv)))
        return describe(seen), announcements

    # The probe takes steps too, but undoes them: 24 committed steps are without.
    plain, _ = run(branched=False)
    branched, announcements = run(branched=True)
    assert branched == plain
    assert [step for step, _ in announcements] == [24]
    assert "shares" in announcements[0][1]


def warnings_as_list():
    import warnings

    context = warnings.catch_warnings(record=True)
    warnings.simplefilter("always")
    return context


def test_global_generator_that_is_first_used_by_a_branch_that_raises():
    class Raises(Global):
        def step(self, action):
            result = super().step(action)
            if self.n_steps > self.start:
                raise ArithmeticError("too late")
            return result

    venv = DummyVecEnv([lambda: Reporter(gym.wrappers.TimeLimit(Raises("all", start=200), 10**6))])
    brancher = make_brancher("snapshot", venv)
    venv.seed(0)
    venv.reset()
    venv.envs[0].unwrapped.n_steps = 200
    seed_global_generators(0)
    np.random.randn(1)
    random.gauss(0, 1)
    before = state_of(venv)
    with pytest.raises(BranchError, match="too late"):
        branch(brancher, np.zeros((1, 3, 2), dtype=np.float32))
    assert state_of(venv) == before


def test_other_users_of_global_generators_are_left_alone():
    """Their numbers are the same with and without branches in between, and are no reason to warn."""
    venv = make_vec_env(limited(9), 2, seed=0)
    brancher = make_brancher("snapshot", venv)
    venv.reset()

    def draw(between):
        seed_global_generators(0)
        numbers = []
        for _ in range(10):
            numbers.append((np.random.randn(1)[0], random.gauss(0, 1), th.randn(1).item()))
            between()
        return numbers

    assert draw(lambda: branch(brancher, np.zeros((2, 3, 2), dtype=np.float32))) == draw(lambda: None)


class Doubles(VecEnvWrapper):
    """Shows everything twice as large, and counts."""

    n_steps = 0

    def reset(self):
        return 2 * self.venv.reset()

    def step_wait(self):
        self.n_steps += 1
        obs, rewards, dones, infos = self.venv.step_wait()
        for info in infos:
            if "terminal_observation" in info:
                info["terminal_observation"] = 2 * info["terminal_observation"]
        return 2 * obs, 2 * rewards, dones, infos


class DoublesView:
    has_memory = False

    def __init__(self, wrapper):
        self.wrapper = wrapper

    def before_step(self):
        self.n_steps = self.wrapper.n_steps

    def __call__(self, path):
        assert self.wrapper.n_steps == self.n_steps + 1
        return [step._replace(observations=2 * step.observations, rewards=2 * step.rewards) for step in path]


def test_unknown_vec_env_wrapper():
    venv = VecNormalize(Doubles(make_vec_env(limited(9), 2, seed=0)))
    with pytest.raises(UnbranchableEnvError, match=r"(?s)Doubles.*register_vec_wrapper.*n_samples=1"):
        HybridGRPO("MlpPolicy", venv, **SMALL)
    model = HybridGRPO("MlpPolicy", venv, n_samples=1, **SMALL).learn(32)
    assert model.num_timesteps == 32


def test_subclass_of_a_known_vec_env_wrapper():
    """It may do anything."""

    class MyNormalize(VecNormalize):
        pass

    with pytest.raises(UnbranchableEnvError, match="MyNormalize"):
        HybridGRPO("MlpPolicy", MyNormalize(make_vec_env(limited(9), 1)), **SMALL)


def test_registered_vec_env_wrapper(monkeypatch):
    monkeypatch.setattr(vec_wrappers_module, "_views", dict(vec_wrappers_module._views))
    register_vec_wrapper(Doubles, DoublesView)
    make_env = reporting(limited(9))
    assert sum(assert_laws(lambda: VecNormalize(Doubles(make_vec_env(make_env, 2))), 30)) > 0
    HybridGRPO("MlpPolicy", Doubles(make_vec_env(limited(9), 2)), **SMALL).learn(32)


class Remote(VecEnv):
    """Has its environments somewhere else."""

    def __init__(self):
        self.inner = DummyVecEnv([Walk])
        super().__init__(1, self.inner.observation_space, self.inner.action_space)

    def reset(self):
        return self.inner.reset()

    def step_async(self, actions):
        self.inner.step_async(actions)

    def step_wait(self):
        return self.inner.step_wait()

    def close(self):
        self.inner.close()

    def get_attr(self, attr_name, indices=None):
        return self.inner.get_attr(attr_name, indices)

    def set_attr(self, attr_name, value, indices=None):
        self.inner.set_attr(attr_name, value, indices)

    def env_method(self, method_name, *method_args, indices=None, **method_kwargs):
        return self.inner.env_method(method_name, *method_args, indices=indices, **method_kwargs)

    def env_is_wrapped(self, wrapper_class, indices=None):
        return self.inner.env_is_wrapped(wrapper_class, indices)


def test_unknown_vec_env():
    venv = Remote()
    message = r"(?s)Remote is none of.*DummyVecEnv.*SubprocVecEnv.*FunctionalVecEnv.*make_vec_env.*brancher=.*n_samples=1"
    with pytest.raises(UnbranchableEnvError, match=message):
        HybridGRPO("MlpPolicy", venv, **SMALL)
    model = HybridGRPO("MlpPolicy", venv, n_samples=1, **SMALL).learn(32)
    assert model.num_timesteps == 32


def test_subclass_of_dummy_vec_env_that_steps_like_it():
    class Named(DummyVecEnv):
        name = "mine"

    follow(Named([reporting(limited(9))] * 2), 20)


@pytest.mark.parametrize("name", ["exact", "", "Auto"])
def test_unknown_brancher(name):
    with pytest.raises(InvalidArgumentError, match=rf"{name!r}: choose one of 'auto'.*or pass a callable"):
        make_brancher(name, DummyVecEnv([Walk]))


class Counting:
    """A brancher of the user's own, here around the package's."""

    uses_simulator = True

    def __init__(self, venv):
        self.venv, self.inner, self.calls = venv, VecEnvBrancher(venv), []

    def open(self, actions, alive, horizon, obs=None):
        self.calls.append(("open", actions.shape, horizon))
        return self.inner.open(actions, alive, horizon)

    def advance(self, actions, alive):
        self.calls.append(("advance", actions.shape))
        return self.inner.advance(actions, alive)

    def close(self):
        self.inner.close()

    def observed(self, outcome, earlier=(), committed=None):
        return self.inner.observed(outcome, earlier)


def test_brancher_of_the_users_own():
    venv = make_vec_env(limited(9), 2, seed=0)
    made = []

    def make(env):
        made.append(Counting(env))
        return made[-1]

    model = HybridGRPO("MlpPolicy", venv, brancher=make, n_samples=3, seed=0, **SMALL).learn(32)
    (brancher,) = made
    assert brancher.venv is model.env
    assert brancher.calls == [("open", (2, 2, 2), 1)] * 16
    reference = HybridGRPO("MlpPolicy", make_vec_env(limited(9), 2, seed=0), n_samples=3, seed=0, **SMALL).learn(32)
    for ours, theirs in zip(model.policy.parameters(), reference.policy.parameters(), strict=True):
        assert th.equal(ours, theirs)


def test_brancher_of_the_users_own_reaches_any_vec_env():
    """Such as a learned model, which needs no simulator at all."""

    class Constant(Counting):
        def __init__(self, venv):
            self.venv = venv

        def open(self, actions, alive, horizon, obs=None):
            shape = alive.shape
            nothing = np.zeros(shape, dtype=bool)
            return BranchOutcome(np.zeros((*shape, 2), dtype=np.float32), np.ones(shape), nothing, nothing)

        def close(self):
            pass

        def observed(self, outcome, earlier=(), committed=None):
            return outcome

    model = HybridGRPO("MlpPolicy", Remote(), brancher=Constant, **SMALL).learn(32)
    assert model.num_timesteps == 32
    assert isinstance(model._brancher, Constant)


def test_observation_space_is_no_place_to_hide():
    """Spaces of the class are saved as those of the instance are."""

    class SamplesFromClass(gym.Env):
        observation_space = spaces.Box(-np.inf, np.inf, (1,))
        action_space = spaces.Discrete(1000)

        def reset(self, *, seed=None, options=None):
            super().reset(seed=seed)
            return np.zeros(1, dtype=np.float32), {}

        def step(self, action):
            return self.observation_space.sample(), float(self.action_space.sample()), False, False, {}

    assert_laws(lambda: DummyVecEnv([lambda: Reporter(gym.wrappers.TimeLimit(SamplesFromClass(), 7))]), 20)
