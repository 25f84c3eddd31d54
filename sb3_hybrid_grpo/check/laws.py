"""Runs an environment with and without branching, and compares."""

import contextlib
import copy
import pickle
import random
from typing import Any, NamedTuple, Protocol, cast

import gymnasium as gym
import numpy as np
import torch as th
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv

from sb3_hybrid_grpo.branching.simulator import Simulator, copy_of_space, masks_of, sample
from sb3_hybrid_grpo.branching.surroundings import HiddenState
from sb3_hybrid_grpo.common import Brancher, BranchError, BranchOutcome, MaskingBrancher, UnbranchableEnvError

_N_BRANCHES = 3
_HORIZON = 5


class Saboteur(gym.Wrapper[Any, Any, Any, Any]):
    """Outermost wrapper that raises on demand, after the environment has made its step."""

    def __init__(self, env: gym.Env[Any, Any]) -> None:
        super().__init__(env)
        self.is_armed = False

    def __str__(self) -> str:
        return str(self.env)

    def step(self, action: Any) -> Any:
        """Step the environment, then raise if armed."""
        result = self.env.step(action)
        if self.is_armed:
            raise Sabotage
        return result


class Sabotage(Exception):
    """What a ``Saboteur`` raises."""


class LawBrokenError(Exception):
    """Branching was not exact; the message says in which way."""


class Run(NamedTuple):
    """
    What was seen.

    :param results: what each committed step returned, without its infos
    :param ends: steps with which an episode ended
    :param n_branched: number of steps before which branches were tried
    :param next_random: what the environments' random generators draw next
    :param global_generators: names of the random generators of the whole process that were used
    :param variables: what is in the variables beside the environments' attributes, by name
    """

    results: list[Any]
    ends: list[int]
    n_branched: int
    next_random: list[float]
    global_generators: list[str]
    variables: dict[str, Any]


class Pace(Protocol):
    """How long a run lasts, and where it is branched."""

    def goes_on(self, step: int, n_ends: int) -> bool:
        """
        Decide whether another step is taken.

        :param step: number of steps so far
        :param n_ends: number of ends of episodes so far
        """

    def is_branched(self, step: int) -> bool:
        """
        Decide whether branches are tried before a step.

        :param step: its number
        """


def run(venv: DummyVecEnv, pace: Pace, brancher: Brancher | None = None) -> Run:
    """
    Take random steps that are the same each time.

    :param venv: a vectorised environment that was just reset with a seed
    :param pace: how many steps, and before which of them branches are tried
    :param brancher: its brancher, to evaluate actions before steps, and to raise in some
    :return: what was seen
    :raises LawBrokenError: if a branch of committed actions did not tell what the steps returned
    """
    tried = _Tried(venv, brancher)
    results: list[Any] = []
    ends: list[int] = []
    n_branched = 0
    generators = _global_generators()
    while pace.goes_on(step := len(results), len(ends)):
        tried.plan()
        if brancher is not None and pace.is_branched(step):
            tried.branch(step, _HORIZON if n_branched % 4 == 0 else 1)
            if n_branched % 5 == 2:
                _sabotage(venv, brancher, tried.actions)
            n_branched += 1
        result = venv.step(tried.commit())
        tried.compare(step, result)
        results.append(copy.deepcopy(result[:3]))
        ends += [step] * int(np.sum(result[2]))
    next_random = [generator.random() for generator in venv.get_attr("np_random")]
    used = [name for name, state in _global_generators().items() if state != generators[name]]
    return Run(results, ends, n_branched, next_random, used, _variables(venv))


class _Tried:
    """
    Actions that are about to be committed, and what branches say of them.

    :param venv: the environments
    :param brancher: their brancher
    """

    def __init__(self, venv: DummyVecEnv, brancher: Brancher | None) -> None:
        self._envs = venv.envs
        self._brancher = brancher
        # One for each environment: a branch looks further ahead in one than in another.
        self._spaces = [copy_of_space(venv.action_space) for _ in venv.envs]
        self._other_space = copy_of_space(venv.action_space)
        self._other_space.seed(0)
        for seed, space in enumerate(self._spaces):
            space.seed(1 + seed)
        self._plans: list[list[Any]] = [[] for _ in venv.envs]
        self._foretold: dict[tuple[int, int], list[tuple[int, Any]]] = {}
        self.actions = np.zeros(0)

    def plan(self) -> None:
        """Choose the actions of the next step, those that are only tried included."""
        masks = [masks_of(env) for env in self._envs]
        for plan, space, valid in zip(self._plans, self._spaces, masks, strict=True):
            if not plan:
                plan.append(sample(space, valid))
        others = [[sample(self._other_space, valid) for _ in range(1, _N_BRANCHES)] for valid in masks]
        self.actions = np.array([[plan[0], *row] for plan, row in zip(self._plans, others, strict=True)])
        if self._brancher is not None and masks[0] is not None:
            cast(MaskingBrancher, self._brancher).include_masks()

    def branch(self, step: int, horizon: int) -> None:
        """Try the actions, and in the first branches those that will be committed after them."""
        brancher = self._brancher
        assert brancher is not None
        actions, alive = self.actions, np.ones(self.actions.shape[:2], dtype=bool)
        path = [brancher.open(actions, alive, horizon)]
        for depth in range(horizon):
            observed = brancher.observed(path[-1], path[:-1])
            for env_idx in np.flatnonzero(alive[:, 0]).tolist():
                self._foretold.setdefault((step + depth, env_idx), []).append((depth, _row(observed, env_idx)))
            alive = alive & ~(path[-1].terminated | path[-1].truncated)
            if depth == horizon - 1 or not alive.any():
                break
            actions = actions.copy()
            for env_idx, idx in zip(*np.nonzero(alive), strict=True):
                masks = path[-1].action_masks
                valid = None if masks is None else masks[env_idx, idx]
                actions[env_idx, idx] = self._next_action(env_idx, idx, depth + 1, valid)
            path.append(brancher.advance(actions, alive))
        brancher.close()

    def _next_action(self, env_idx: int, idx: int, depth: int, valid: np.ndarray | None) -> Any:
        if idx:
            return sample(self._other_space, valid)
        plan = self._plans[env_idx]
        if len(plan) == depth:
            plan.append(sample(self._spaces[env_idx], valid))
        return plan[depth]

    def commit(self) -> np.ndarray:
        """Return the actions that are committed."""
        return np.array([plan.pop(0) for plan in self._plans])

    def compare(self, step: int, result: Any) -> None:
        """
        Compare what was foretold of a step with what it returned.

        :param step: its number
        :param result: what it returned
        :raises LawBrokenError: if that is something else
        """
        observations, rewards, dones, infos = result
        for env_idx, info in enumerate(infos):
            observation = info["terminal_observation"] if dones[env_idx] else _pick(observations, env_idx)
            for depth, foretold in self._foretold.pop((step, env_idx), ()):
                committed = (observation, rewards[env_idx], dones[env_idx])
                for name, ours, theirs in zip(_RETURNED, foretold, committed, strict=True):
                    if not same(ours, theirs):
                        raise LawBrokenError(
                            f"the branch of an action showed another {name} than the step with the same action that "
                            f"followed (step {step}, number {depth + 1} of the branch)"
                        )


_RETURNED = ("observation", "reward", "end of the episode")


def _row(outcome: BranchOutcome, env_idx: int) -> tuple[Any, ...]:
    at = env_idx, 0
    return copy.deepcopy(_pick(outcome.observations, at)), outcome.rewards[at], outcome.terminated[at] or outcome.truncated[at]


def _variables(venv: DummyVecEnv) -> dict[str, Any]:
    """Describe what is in the variables beside the attributes."""
    contents: dict[str, Any] = {}
    for simulator in map(Simulator, venv.envs):
        with simulator.unwatched(), contextlib.suppress(UnbranchableEnvError):
            contents |= HiddenState(simulator.root, simulator.attributes).contents
    return contents


def _global_generators() -> dict[str, Any]:
    return {
        "np.random": pickle.dumps(np.random.get_state(legacy=False)),
        "random": random.getstate(),
        "torch": th.get_rng_state().numpy().tobytes(),
    }


def _sabotage(venv: VecEnv, brancher: Brancher, actions: np.ndarray) -> None:
    venv.set_attr("is_armed", True)
    try:
        brancher.open(actions, np.ones(actions.shape[:2], dtype=bool), 1)
    except BranchError:
        brancher.close()
    finally:
        venv.set_attr("is_armed", False)


def _pick(observations: Any, index: Any) -> Any:
    if isinstance(observations, dict):
        return {key: part[index] for key, part in observations.items()}
    if isinstance(observations, tuple):
        return tuple(part[index] for part in observations)
    return observations[index]


def same(first: Any, second: Any) -> bool:
    """
    Compare bit for bit, in the data type of the first.

    :param first: an array, or a dict or tuple of such
    :param second: another
    :return: whether they are identical
    """
    if isinstance(first, dict):
        return all(same(part, second[key]) for key, part in first.items())
    if isinstance(first, tuple | list):
        return all(same(part, other) for part, other in zip(first, second, strict=True))
    first = np.asarray(first)
    return bool(first.tobytes() == np.asarray(second).astype(first.dtype).tobytes())
