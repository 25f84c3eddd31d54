"""
Whatever an environment hides: what PPO commits is, replayed, what HybridGRPO commits, or it is refused or announced by name.
"""

import contextlib
import copy
import tempfile
import warnings
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from stable_baselines3.common.vec_env import DummyVecEnv

from sb3_hybrid_grpo import BranchError, UnbranchableEnvError, check_branchable
from sb3_hybrid_grpo.branching import make_brancher
from tests.hiding_places import PLACES, Room, Visit, make_house
from tests.lockstep import describe, seed_global_generators

N_BRANCHES = 3
LATE_STEPS = 8


class Plan(NamedTuple):
    """
    What a run is made of, branched or not.

    :param visits: the places of its environments
    :param n_envs: number of environments
    :param switches: whether resets go on in another room
    :param replacement: what of the first environment is replaced in the middle: nothing, all of it, what is ``"inside"`` of
        the outermost wrapper, or the innermost ``"room"``
    :param n_steps: number of steps
    """

    visits: list[Visit]
    n_envs: int = 1
    switches: bool = False
    replacement: str | None = None
    n_steps: int = 60


class Seen(NamedTuple):
    """
    What was seen of a run.

    :param steps: what each committed step returned; ``None`` if the brancher was refused
    :param levels: the levels of each place, step by step
    :param rows: rows that places have left
    :param messages: warnings and errors
    :param broken: what branches told otherwise than the steps that followed
    """

    steps: list | None
    levels: dict[str, list]
    rows: dict[str, int]
    messages: list[str]
    broken: list[str]


class Branching:
    """Branches before each step, and compares the first branch with what the step returns."""

    def __init__(self, brancher, horizon, is_late, every):
        self.brancher, self.horizon, self.every = brancher, horizon, every
        self.is_late = is_late and getattr(brancher, "can_remember", False)
        self.rng = np.random.default_rng(1)
        self.foretold = None
        self.remembered = []
        self.broken = []

    def before(self, t, committed, obs, steps):
        self.foretold = None
        if getattr(self.brancher, "is_outdated", False):
            self._recall(steps)
            self.brancher.renew()
        if t % self.every:
            return
        actions = self.rng.integers(3, size=(len(committed), N_BRANCHES))
        actions[:, 0] = committed
        if self.is_late:
            self.brancher.remember(obs)
            self.brancher.confirm()
            self.remembered.append((t, actions))
        else:
            self.foretold = self._follow(self.brancher, actions)

    def after(self, t, steps):
        if self.foretold is not None:
            self._judge(t, self.foretold, 0, steps[t])
        if len(self.remembered) == LATE_STEPS:
            self._recall(steps)

    def _recall(self, steps):
        past, self.remembered = self.remembered, []
        if past:
            outcome = self._follow(self.brancher.recall(), np.concatenate([actions for _, actions in past], axis=1))
            for index, (step, _) in enumerate(past):
                self._judge(step, outcome, index * N_BRANCHES, steps[step])

    def _follow(self, brancher, actions):
        """Take branches to their ends; return the outcome of their first steps."""
        alive = np.ones(actions.shape, dtype=bool)
        try:
            first = outcome = brancher.open(actions, alive, self.horizon)
            for _ in range(self.horizon - 1):
                alive = alive & ~(outcome.terminated | outcome.truncated)
                outcome = brancher.advance(self.rng.integers(3, size=actions.shape), alive)
        finally:
            brancher.close()
        return first

    def _judge(self, t, outcome, branch, step):
        """Compare the first environment: the others share what it has changed before it is their turn."""
        obs, rewards, dones, infos = step
        told = (outcome.observations[0, branch], outcome.rewards[0, branch])
        true = (infos[0]["terminal_observation"] if dones[0] else obs[0], rewards[0])
        is_over = outcome.terminated[0, branch] | outcome.truncated[0, branch]
        if describe(told) != describe(true) or is_over != dones[0]:
            self.broken.append(f"step {t}: a branch told {told}, the step returned {true}")


def follow(plan, brancher_name=None, horizon=1, is_late=False):
    """Make the environments of a plan, and step them with and without branches."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as name:
        return _follow_in(Path(name), plan, brancher_name, horizon, is_late)


def _follow_in(folder, plan, brancher_name, horizon, is_late):
    make = make_house(plan.visits, folder, plan.switches)
    seed_global_generators(0)
    venv = DummyVecEnv([make] * plan.n_envs)
    venv.seed(0)
    steps, messages, branching = [], [], None
    with warnings.catch_warnings(record=True) as caught, contextlib.closing(venv):
        warnings.simplefilter("always")
        if brancher_name is not None:
            try:
                brancher = make_brancher(brancher_name, venv)
            except (UnbranchableEnvError, BranchError) as error:
                return Seen(None, {}, {}, [str(error)], [])
            is_slow = any("last resort" in str(warning.message) for warning in caught)
            branching = Branching(brancher, horizon, is_late, every=16 if is_slow else 1)
        is_broken = branching is None
        obs = venv.reset()
        for t, committed in enumerate(np.random.default_rng(0).integers(3, size=(plan.n_steps, plan.n_envs))):
            if t == plan.n_steps // 2 and plan.replacement is not None:
                obs = replace(venv, plan.replacement, make)
            try:
                if not is_broken:
                    branching.before(t, committed, obs, steps)
            except (UnbranchableEnvError, BranchError) as error:
                messages.append(str(error))
                is_broken = True
            steps.append(copy.deepcopy(venv.step(committed)))
            obs = steps[-1][0]
            try:
                if not is_broken:
                    branching.after(t, steps)
            except (UnbranchableEnvError, BranchError) as error:
                messages.append(str(error))
                is_broken = True
    messages += [str(warning.message) for warning in caught]
    labels = [f"{index} {visit.name}" for index, visit in enumerate(plan.visits)]
    levels = {label: [[info["levels"][label] for info in infos] for *_, infos in steps] for label in labels}
    rows = {visit.name: kind.rows(folder) for visit in plan.visits if (kind := PLACES[visit.name]).trace is not None}
    return Seen(steps, levels, rows, messages, branching.broken if branching is not None else [])


def replace(venv, what, make):
    """Put another environment, or parts of it, in the place of the first one, behind the brancher's back."""
    old = venv.envs[0]
    if what == "environment":
        old.close()
        venv.envs[0] = make()
    elif what == "inside":
        old.env.close()
        old.env = make().env
    else:
        room, layer = old.unwrapped, old
        while layer.env is not room:
            layer = layer.env
        layer.env = Room(drift=0.2)
    return venv.reset()


def assert_right_or_told(plan, brancher_name, **kwargs):
    """
    A branched run commits what the same run without branches does, and branches tell what steps return.

    What differs in the level or in the rows of a place must have been announced by the name of that place.
    """
    plain, seen = follow(plan), follow(plan, brancher_name, **kwargs)
    text = "\n".join(seen.messages)
    told = [visit.name for visit in plan.visits if any(name in text for name in PLACES[visit.name].names)]
    if seen.steps is None:
        assert told or (plan.switches and "SwitchAtReset" in text), f"refused for other reasons: {text}"
        return
    wrong = [label for label in plain.levels if seen.levels[label] != plain.levels[label]]
    assert [label for label in wrong if label.split()[1] not in told] == [], f"levels differ in silence: {text}"
    if not wrong:
        first = next((t for t in range(plan.n_steps) if describe(seen.steps[t]) != describe(plain.steps[t])), None)
        assert first is None, f"step {first} returned {seen.steps[first]} instead of {plain.steps[first]}: {text}"
    doubled = [name for name, n_rows in plain.rows.items() if seen.rows[name] != n_rows and name not in told]
    assert doubled == [], f"{seen.rows} rows instead of {plain.rows} in silence: {text}"
    assert told or not seen.broken, f"{seen.broken[0]}: {text}"


PERIODS = (1, 7, 50)
UNHURRIED = {"deadline": None, "suppress_health_check": [HealthCheck.too_slow], "database": None}


@pytest.mark.parametrize("is_held", [False, True], ids=["is_wrapper", "held"])
@pytest.mark.parametrize("name", PLACES)
def test_place(name, is_held):
    """Each place by itself, with levels that rise after the probe has gone."""
    assert_right_or_told(Plan([Visit(name, 50, is_held)]), "snapshot")


@pytest.mark.parametrize("replacement", ["environment", "inside", "room"])
@pytest.mark.parametrize("switches", [False, True])
@pytest.mark.parametrize("brancher_name", ["snapshot", "auto"])
def test_other_environments(brancher_name, switches, replacement):
    plan = Plan([Visit("plain_counter", 7, True)], switches=switches, replacement=replacement)
    assert_right_or_told(plan, brancher_name)


@pytest.mark.slow
@pytest.mark.parametrize("name", PLACES)
def test_check(name, tmp_path):
    """The check names the place, or it leaves no traces, and what is said of it is true of the brancher that is named."""
    visit = Visit(name, 50, False)
    report = check_branchable(make_house([visit], tmp_path))
    if not any(word in str(report) for word in PLACES[name].names):
        assert report.is_exact and PLACES[name].trace is None, str(report)
        assert_right_or_told(Plan([visit]), report.brancher)


visits = st.builds(Visit, st.sampled_from(list(PLACES)), st.sampled_from(PERIODS), st.booleans())
plans = st.builds(
    Plan,
    visits=st.lists(visits, min_size=1, max_size=3, unique_by=lambda visit: visit.name),
    n_envs=st.sampled_from([1, 2]),
    switches=st.booleans(),
    n_steps=st.just(60),
    replacement=st.sampled_from([None, None, None, "environment", "inside", "room"]),
)
runs = {
    "plan": plans,
    # The last resorts are slow.
    "brancher_name": st.sampled_from(["snapshot", "snapshot", "snapshot", "auto"]),
    "horizon": st.integers(1, 3),
    "is_late": st.booleans(),
}


@settings(max_examples=30, derandomize=True, phases=[Phase.generate], **UNHURRIED)
@given(**runs)
def test_places(plan, brancher_name, horizon, is_late):
    assert_right_or_told(plan, brancher_name, horizon=horizon, is_late=is_late)


@pytest.mark.slow
@settings(max_examples=300, **UNHURRIED)
@given(**runs)
def test_many_places(plan, brancher_name, horizon, is_late):
    assert_right_or_told(plan, brancher_name, horizon=horizon, is_late=is_late)
