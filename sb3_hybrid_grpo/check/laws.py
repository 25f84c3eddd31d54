"""Runs an environment with and without branching, and compares."""

import copy
import pickle
import random
from collections import defaultdict
from collections.abc import Sequence
from typing import Any, NamedTuple, cast

import gymnasium as gym
import numpy as np
import torch as th
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv

from sb3_hybrid_grpo.branching.masks import masks_of, sample
from sb3_hybrid_grpo.common.type_aliases import Brancher, BranchError, BranchOutcome, MaskingBrancher

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

    :param results: observations of the reset, then what each committed step returned
    :param n_episodes: number of episodes that ended
    :param next_random: what the environments' random generators draw next
    :param global_generators: names of the random generators of the whole process that were used
    """

    results: list[Any]
    n_episodes: int
    next_random: list[float]
    global_generators: list[str]


def run(venv: DummyVecEnv, n_steps: int, brancher: Brancher | None = None) -> Run:
    """
    Take random steps that are the same each time.

    :param venv: a vectorised environment that was just reset with a seed
    :param n_steps: number of steps
    :param brancher: its brancher, to evaluate actions before each step, and to raise in some
    :return: what was seen
    :raises LawBrokenError: if a branch of the committed action did not tell what the step returned
    """
    action_space, later_space = copy.deepcopy(venv.action_space), copy.deepcopy(venv.action_space)
    action_space.seed(0)
    later_space.seed(1)
    results: list[Any] = []
    n_episodes = 0
    generators = _global_generators()
    foretold: dict[int, list[BranchOutcome]] = defaultdict(list)
    for step in range(n_steps):
        masks = [masks_of(env) for env in venv.envs]
        if brancher is not None and masks[0] is not None:
            cast(MaskingBrancher, brancher).include_masks()
        # The branches of the committed actions take the actions that the environments will take.
        actions_ahead = copy.deepcopy(action_space)
        actions = _sample_actions(action_space, masks)
        if brancher is not None:
            _sample_actions(actions_ahead, masks)
            outcomes = _branch(brancher, actions, _HORIZON if step % 4 == 0 else 1, later_space, actions_ahead)
            for n_ahead, outcome in enumerate(outcomes):
                foretold[step + n_ahead].append(outcome)
            if step % 5 == 2:
                _sabotage(venv, brancher, actions)
        result = venv.step(actions[:, 0])
        for outcome in foretold.pop(step, ()):
            _compare(outcome, result)
        results.append(copy.deepcopy(result[:3]))
        n_episodes += int(np.sum(result[2]))
    next_random = [generator.random() for generator in venv.get_attr("np_random")]
    used = [name for name, state in _global_generators().items() if state != generators[name]]
    return Run(results, n_episodes, next_random, used)


def _global_generators() -> dict[str, Any]:
    return {
        "np.random": pickle.dumps(np.random.get_state(legacy=False)),
        "random": random.getstate(),
        "torch": th.get_rng_state().numpy().tobytes(),
    }


def _sample_actions(action_space: gym.Space[Any], masks: Sequence[Any]) -> np.ndarray:
    return np.array([[sample(action_space, valid) for _ in range(_N_BRANCHES)] for valid in masks])


def _branch(
    brancher: Brancher,
    actions: np.ndarray,
    horizon: int,
    later_space: gym.Space[Any],
    actions_ahead: gym.Space[Any],
) -> list[BranchOutcome]:
    """
    Take branches of several steps.

    :param brancher: the brancher
    :param actions: the first actions; of those of each environment the first is to be committed
    :param horizon: number of steps
    :param later_space: samples the later actions of all other branches
    :param actions_ahead: samples those that will be committed
    :return: the outcomes of each step, as long as no branch of an action to be committed has ended
    """
    alive = np.ones(actions.shape[:2], dtype=bool)
    outcome = brancher.open(actions, alive, horizon)
    path = [outcome]
    goes_on = True
    for _ in range(1, horizon):
        ended = outcome.terminated | outcome.truncated
        alive = alive & ~ended
        goes_on = goes_on and not ended[:, 0].any()
        if not alive.any():
            break
        masks = outcome.action_masks
        actions = actions.copy()
        for at in zip(*np.nonzero(alive), strict=True):
            actions[at] = sample(later_space, None if masks is None else masks[at])
        if goes_on:
            valid = [None] * len(actions) if masks is None else list(masks[:, 0])
            actions[:, 0] = _sample_actions(actions_ahead, valid)[:, 0]
        outcome = brancher.advance(actions, alive)
        if goes_on:
            path.append(outcome)
    brancher.close()
    return [brancher.observed(outcome, path[:n_earlier]) for n_earlier, outcome in enumerate(path)]


def _sabotage(venv: VecEnv, brancher: Brancher, actions: np.ndarray) -> None:
    venv.set_attr("is_armed", True)
    try:
        brancher.open(actions, np.ones(actions.shape[:2], dtype=bool), 1)
    except BranchError:
        brancher.close()
    finally:
        venv.set_attr("is_armed", False)


def _compare(outcome: BranchOutcome, result: Any) -> None:
    observations, rewards, dones, infos = result
    for env_idx, info in enumerate(infos):
        at = env_idx, 0
        observation = info["terminal_observation"] if dones[env_idx] else _pick(observations, env_idx)
        pairs = {
            "observation": (_pick(outcome.observations, at), observation),
            "reward": (outcome.rewards[at], rewards[env_idx]),
            "end of the episode": (outcome.terminated[at] or outcome.truncated[at], dones[env_idx]),
        }
        for name, (branched, committed) in pairs.items():
            if not same(branched, committed):
                raise LawBrokenError(f"a branch showed another {name} than the steps with the same actions that followed")


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
