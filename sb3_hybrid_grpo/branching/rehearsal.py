"""Branchers tried in a copy of the process: what they do not save must not be changed by trying."""

import copy
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np

from sb3_hybrid_grpo.branching.child import PATIENCE, Channel, Child, ChildDied, ChildHangs, Raised, end
from sb3_hybrid_grpo.branching.in_process import InProcessBrancher
from sb3_hybrid_grpo.branching.masks import masks_of, sample
from sb3_hybrid_grpo.branching.simulator import PROBE_STEPS, Simulator
from sb3_hybrid_grpo.common.type_aliases import UnbranchableEnvError

_PATIENCE_WITH_JAX = 10.0
_MOST_TIMES_AS_LONG = 100
_N_TIMED_BRANCHES = 2
_N_TIMINGS = 3


class NoTellingError(Exception):
    """Environments could not be stepped in a copy of the process at all; the message says why not."""


class Verdict(NamedTuple):
    """
    What is known of a way to branch.

    :param obstacle: what stands in its way; ``None`` if nothing does
    :param milliseconds: what a branch of the first environment takes beside its step, at the beginning of an episode
    """

    obstacle: str | None
    milliseconds: float = 0.0


def rehearse(envs: Sequence[gym.Env[Any, Any]], make_brancher: Callable[[], InProcessBrancher]) -> Verdict:
    """
    Step environments in a copy of the process, then make a brancher there, which probes.

    :param envs: its environments, which are stepped without it before, to know what is its fault
    :param make_brancher: makes the brancher
    :return: what stands in its way, and what it costs
    :raises NoTellingError: if the environments cannot be stepped in a copy
    """
    family: set[Child] = set()
    child = Child(partial(_perform, envs, make_brancher), family)
    try:
        start = time.monotonic()
        _hear_of_plain_steps(child)
        patience = max(PATIENCE, _MOST_TIMES_AS_LONG * (time.monotonic() - start))
        answer = child.receive(patience)
    except ChildHangs:
        problem = (
            f"did not end within {patience:.0f} s. They wait for something that is not saved, such as a clock, or a simulator "
            "in another process."
        )
    except ChildDied as error:
        problem = f"did not end: the process {error}."
    else:
        if not isinstance(answer, Raised):
            verdict: Verdict = answer
            return verdict
        problem = f"raised {answer.error_class}: {answer.message}"
    finally:
        end([child], family)
    return Verdict(
        f"{envs[0]} cannot be branched: steps that were undone and taken again, or taken again in a copy, {problem}"
    )


def _hear_of_plain_steps(child: Child) -> None:
    # The threads of XLA are not copied: where an environment uses them, its computations wait for them in vain.
    patience = _PATIENCE_WITH_JAX if "jax" in sys.modules else PATIENCE
    try:
        answer = child.receive(patience)
    except ChildHangs:
        raise NoTellingError(
            f"a few steps in a copy of the process did not end within {patience:g} s. They may wait for threads, such as "
            "those of jax, which a copy does not have."
        ) from None
    except ChildDied as error:
        raise NoTellingError(f"a copy of the process {error} when it took a few steps.") from None
    if isinstance(answer, Raised):
        raise NoTellingError(f"a few steps in a copy of the process raised {answer.error_class}: {answer.message}")


def _perform(envs: Sequence[gym.Env[Any, Any]], make_brancher: Callable[[], InProcessBrancher], channel: Channel) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for simulator in map(Simulator, envs):
            with simulator.unwatched():
                simulator.reset()
                simulator.try_actions(copy.deepcopy(simulator.env.action_space), PROBE_STEPS, seed=0)
    channel.send(None)
    try:
        brancher = make_brancher()
    except UnbranchableEnvError as error:
        channel.send(Verdict(str(error)))
    else:
        channel.send(Verdict(None, _milliseconds_per_branch(envs, brancher)))


def _milliseconds_per_branch(envs: Sequence[gym.Env[Any, Any]], brancher: InProcessBrancher) -> float:
    simulators = [Simulator(env) for env in envs]
    for simulator in simulators:
        with simulator.unwatched():
            simulator.reset()
    action = sample(copy.deepcopy(envs[0].action_space), masks_of(envs[0]))
    alive = np.zeros((len(envs), _N_TIMED_BRANCHES), dtype=bool)
    alive[0] = True
    actions = np.array([[action] * _N_TIMED_BRANCHES] * len(envs))
    seconds = []
    for _ in range(_N_TIMINGS):
        start = time.perf_counter()
        brancher.open(actions, alive, 1)
        brancher.close()
        seconds.append((time.perf_counter() - start) / _N_TIMED_BRANCHES)
    with simulators[0].unwatched():
        start = time.perf_counter()
        simulators[0].root.step(action)
    return 1000 * (min(seconds) - (time.perf_counter() - start))
