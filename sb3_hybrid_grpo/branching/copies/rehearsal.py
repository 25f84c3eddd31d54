"""Branchers tried in a copy of the process: what they do not save must not be changed by trying."""

import sys
import time
import warnings
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import gymnasium as gym

from sb3_hybrid_grpo.branching.copies.child import PATIENCE, Channel, Child, ChildDied, ChildHangs, Raised, end
from sb3_hybrid_grpo.branching.simulator import PROBE_STEPS, InProcessBrancher, Simulator, copy_of_space
from sb3_hybrid_grpo.common import UnbranchableEnvError

_PATIENCE_WITH_JAX = 10.0
_MOST_TIMES_AS_LONG = 100


class NoTellingError(Exception):
    """Environments could not be stepped in a copy of the process at all; the message says why not."""


def rehearse(envs: Sequence[gym.Env[Any, Any]], make_brancher: Callable[[], InProcessBrancher]) -> str | None:
    """
    Step environments in a copy of the process, then make a brancher there, which probes.

    :param envs: its environments, which are stepped without it before, to know what is its fault
    :param make_brancher: makes the brancher
    :return: what stands in its way; ``None`` if nothing does
    :raises NoTellingError: if the environments cannot be stepped in a copy
    """
    family: set[Child] = set()
    child = Child(partial(_perform, envs, make_brancher), family)
    try:
        start = time.monotonic()
        _hear_of_plain_steps(child, len(envs))
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
            obstacle: str | None = answer
            return obstacle
        problem = f"raised {answer.error_class}: {answer.message}"
    finally:
        end([child], family)
    return f"{envs[0]} cannot be branched: steps that were undone and taken again, or taken again in a copy, {problem}"


def _hear_of_plain_steps(child: Child, n_envs: int) -> None:
    # The threads of XLA are not copied: where an environment uses them, its computations wait for them in vain.
    patience = _PATIENCE_WITH_JAX if "jax" in sys.modules else n_envs * PATIENCE
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
                simulator.try_actions(copy_of_space(simulator.env.action_space), PROBE_STEPS, seed=0)
    channel.send(None)
    try:
        make_brancher()
    except UnbranchableEnvError as error:
        channel.send(str(error))
    else:
        channel.send(None)
