"""Checks branches of functional environments."""

import copy
import time
from collections.abc import Sequence
from typing import Any

import numpy as np

from sb3_hybrid_grpo.branching import make_brancher
from sb3_hybrid_grpo.branching.functional import FunctionalVecEnv
from sb3_hybrid_grpo.branching.simulator import sample
from sb3_hybrid_grpo.check.laws import same
from sb3_hybrid_grpo.check.report import BranchReport, Costs
from sb3_hybrid_grpo.common import BranchError, FunctionalEnvError, InvalidArgumentError, MissingExtraError

_N_BRANCHES = 3
_HORIZON = 5
_N_STEPS = 100
_SEED = 0


def check_functional(env: FunctionalVecEnv | str, wrappers: Sequence[Any], n_envs: int, n_steps: int | None) -> BranchReport:
    """
    Take random steps with and without branches, compare them bit for bit, and measure what branches cost.

    :param env: an id, or environments
    :param wrappers: none: a wrapper has a state that is no value
    :param n_envs: number of environments to make
    :param n_steps: number of steps, 100 by default
    :return: the report
    :raises InvalidArgumentError: if the environment cannot be made
    """
    n_steps = _N_STEPS if n_steps is None else n_steps
    if wrappers:
        raise InvalidArgumentError("Functional environments have no wrappers of Gymnasium.")
    name = env if isinstance(env, str) else type(env.env).__name__
    try:
        venv = env if isinstance(env, FunctionalVecEnv) else FunctionalVecEnv(env, n_envs, _SEED)
    except MissingExtraError as error:
        raise InvalidArgumentError(str(error)) from error
    except FunctionalEnvError as error:
        return _refused(name, str(error))
    try:
        finding = _difference(venv, n_steps)
    except BranchError as error:
        finding = str(error)
    if finding is not None:
        return _refused(name, finding)
    notes = [
        f"{n_steps} steps with {venv.num_envs} environment(s); branches of {_HORIZON} steps told what the steps returned and "
        "left no trace",
        f"its steps are functions of {venv.arrays}: the same arguments gave the same results, and no global "
        "generator was used",
    ]
    return BranchReport(name, "functional", [], [], notes, {}, {}, _costs(venv), None)


def _refused(name: str, finding: str) -> BranchReport:
    return BranchReport(name, None, [finding], [], [], {}, {}, None, None)


def _difference(venv: FunctionalVecEnv, n_steps: int) -> str | None:
    """Return in what branches differ from steps, or steps after branches from those without."""
    actions = _actions(venv, n_steps + _HORIZON)
    expected = _committed(venv, actions)
    brancher: Any = make_brancher("auto", venv)
    venv.seed(_SEED)
    venv.reset()
    alive = np.ones((venv.num_envs, _N_BRANCHES), dtype=bool)
    for step in range(n_steps):
        goes_on = alive
        outcome = None
        for k in range(_HORIZON):
            tried = np.repeat(actions[step + k][:, None], _N_BRANCHES, axis=1)
            outcome = brancher.open(tried, goes_on, _HORIZON) if outcome is None else brancher.advance(tried, goes_on)
            observations, rewards, dones, infos = expected[step + k]
            for env_idx in np.flatnonzero(goes_on[:, 0]):
                seen = infos[env_idx].get("terminal_observation", _pick(observations, env_idx))
                ended = outcome.terminated[env_idx, 0] | outcome.truncated[env_idx, 0]
                pairs = (_pick(outcome.observations, (env_idx, 0)), outcome.rewards[env_idx, 0], ended)
                if not same(pairs, (seen, rewards[env_idx], dones[env_idx])):
                    return (
                        f"step {k + 1} of a branch of the committed actions showed something else than the environment's step"
                    )
            goes_on = goes_on & ~(outcome.terminated | outcome.truncated)
        brancher.close()
        if not same(venv.step(actions[step])[:3], expected[step][:3]):
            return "a step returned something else after branching than without"
    return None


def _committed(venv: FunctionalVecEnv, actions: np.ndarray) -> list[Any]:
    venv.seed(_SEED)
    venv.reset()
    return [venv.step(each) for each in actions]


def _actions(venv: FunctionalVecEnv, n_steps: int) -> np.ndarray:
    """Sample actions that are valid, for environments that tell which are, in the states that they lead to."""
    space = copy.deepcopy(venv.action_space)
    space.seed(_SEED)
    venv.seed(_SEED)
    venv.reset()
    actions = []
    for _ in range(n_steps):
        masks = venv.action_masks() if venv.n_masks else [None] * venv.num_envs
        actions.append(np.stack([sample(space, valid) for valid in masks]))
        venv.step(actions[-1])
    return np.stack(actions)


def _pick(observations: Any, index: Any) -> Any:
    if isinstance(observations, dict):
        return {key: part[index] for key, part in observations.items()}
    return observations[index]


def _costs(venv: FunctionalVecEnv) -> Costs:
    (actions,) = _actions(venv, 1)
    brancher: Any = make_brancher("auto", venv)
    tried, alive = np.repeat(actions[:, None], _N_BRANCHES, axis=1), np.ones((venv.num_envs, _N_BRANCHES), dtype=bool)
    brancher.open(tried, alive, 1)
    seconds = []
    for function in (lambda: venv.step(actions), lambda: brancher.open(tried, alive, 1)):
        start = time.perf_counter()
        function()
        seconds.append(time.perf_counter() - start)
    raw_step, branch_step = 1e6 * seconds[0] / venv.num_envs, 1e6 * seconds[1] / alive.size
    return Costs(raw_step, None, branch_step)
