"""Which brancher serves the environments of a process."""

from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import partial
from typing import Any, NamedTuple

import gymnasium as gym

from sb3_hybrid_grpo.branching.copies import (
    CAN_FORK,
    PATIENCE,
    ForkBrancher,
    NoTellingError,
    QuickestBrancher,
    ReplayBrancher,
    milliseconds_per_fork,
    obstacle_to_fork,
    rehearse,
)
from sb3_hybrid_grpo.branching.simulator import InProcessBrancher, LocalBrancher, time_limit
from sb3_hybrid_grpo.common import BranchError, BranchTimeoutError, UnbranchableEnvError

BRANCHER_NAMES = ("auto", "snapshot", "fork", "replay", "quickest")
_BY_NAME: Mapping[str, type[InProcessBrancher]] = {
    "snapshot": LocalBrancher,
    "fork": ForkBrancher,
    "replay": ReplayBrancher,
    "quickest": QuickestBrancher,
}

_LONGEST_PROBE = 4 * PATIENCE
_MOST_STEPS_OF_A_PROBE = 100
_CLEARLY_MORE = 2

_FORKED = "runs in a forked copy of the process"
_REPLAYED = "takes the steps of the episode again in a copy of the environment"


class Choice(NamedTuple):
    """
    A brancher, and what the user should know about it.

    :param brancher: the brancher
    :param announcement: the text of a warning, if it is the last resort, or costly
    """

    brancher: InProcessBrancher
    announcement: str | None = None


def choose_brancher(
    name: str, envs: Sequence[gym.Env[Any, Any]], as_returned: bool = False, timeout: float | None = None
) -> Choice:
    """
    Make the brancher of environments that live in this process.

    :param name: ``"snapshot"``, ``"fork"``, ``"replay"``, ``"quickest"`` of these two, or ``"auto"``: snapshots where they
        are exact and no slower than forks, else the quickest way that is exact
    :param envs: the environments
    :param as_returned: see ``LocalBrancher``
    :param timeout: seconds that an environment may take for one step
    :return: the brancher
    :raises UnbranchableEnvError: if an environment cannot be branched exactly in this way
    :raises BranchError: if an environment raises while it is probed
    """
    brancher, announcement = _choose(name, envs, as_returned, timeout)
    return Choice(brancher, "\n".join(filter(None, (announcement, brancher.announcement))) or None)


def _choose(name: str, envs: Sequence[gym.Env[Any, Any]], as_returned: bool, timeout: float | None) -> Choice:
    if name == "snapshot":
        return _choose_snapshots(envs, as_returned, timeout)
    if name in _BY_NAME:
        return Choice(_make(name, envs, as_returned, timeout))
    obstacle = obstacle_to_fork(envs) if CAN_FORK else "this platform cannot fork processes."
    reason = None
    if obstacle is None:
        try:
            reason = rehearse(envs, partial(LocalBrancher, envs))
        except NoTellingError as error:
            obstacle = str(error)
    if reason is None:
        try:
            snapshots = _choose_snapshots(envs, as_returned, timeout)
        except UnbranchableEnvError as error:
            reason = str(error)
        else:
            cost = snapshots.brancher.cost
            if cost is not None and obstacle is None and 1000 * cost.seconds > _CLEARLY_MORE * milliseconds_per_fork():
                with suppress(UnbranchableEnvError):
                    return _last_resort(envs, str(cost), obstacle, as_returned, timeout)
            return snapshots
    return _last_resort(envs, reason, obstacle, as_returned, timeout)


def _choose_snapshots(envs: Sequence[gym.Env[Any, Any]], as_returned: bool, timeout: float | None) -> Choice:
    brancher = _make("snapshot", envs, as_returned, timeout)
    return Choice(brancher, brancher.cost and str(brancher.cost))


def _last_resort(
    envs: Sequence[gym.Env[Any, Any]], reason: str, obstacle: str | None, as_returned: bool, timeout: float | None
) -> Choice:
    """Make a brancher that needs no snapshots, and no forks either if there is an obstacle to them."""
    refusals = [] if obstacle is None else [f"Nor does brancher='fork' help here: {obstacle}"]
    can_replay = obstacle is not None or rehearse(envs, partial(ReplayBrancher, envs)) is None
    ways = {
        "quickest": (can_replay and obstacle is None, f"{_FORKED}, or {_REPLAYED} while that is quicker"),
        "fork": (not can_replay, _FORKED),
        "replay": (can_replay, _REPLAYED),
    }
    for name, (is_possible, how) in ways.items():
        if not is_possible:
            continue
        try:
            brancher = _make(name, envs, as_returned, timeout)
        except UnbranchableEnvError as error:
            refusals.append(f"Nor does brancher={name!r}: {error}")
        else:
            cost = "the longer the episode, the slower" if name == "replay" else _fork_cost()
            return Choice(brancher, _announce(reason, how, cost, name))
    raise UnbranchableEnvError("\n".join([reason, *refusals]))


def _make(name: str, envs: Sequence[gym.Env[Any, Any]], as_returned: bool, timeout: float | None) -> InProcessBrancher:
    """Make a brancher in this process, with an end for environments that wait in vain when steps are undone."""
    what = "Trying whether steps can be undone, and taken again, took longer than "
    try:
        with time_limit(longest_probe(len(envs), timeout), what):
            return _BY_NAME[name](envs, as_returned, timeout)
    except BranchError as error:
        if not any(isinstance(cause, BranchTimeoutError) for cause in (error, error.__cause__)):
            raise
        raise UnbranchableEnvError(
            f"{envs[0]} cannot be branched with brancher={name!r}: {error} Its steps wait for something that is not saved, "
            "such as a clock, or a simulator in another process, or they are slow: then say how many seconds they take, with "
            "`branch_timeout`. Or train without branching, with n_samples=1."
        ) from error


def longest_probe(n_envs: int, timeout: float | None) -> float:
    """
    Tell how long it may take to try whether environments can be branched in this process.

    :param n_envs: number of environments
    :param timeout: seconds that an environment may take for one step
    :return: the longest time, in seconds
    """
    return n_envs * max(_LONGEST_PROBE, _MOST_STEPS_OF_A_PROBE * (timeout or 0.0))


def _fork_cost() -> str:
    return f"{milliseconds_per_fork():.1f} ms per branch beside the environment's step"


def _announce(reason: str, how: str, cost: str, name: str) -> str:
    return (
        f"{reason.splitlines()[0]} As a last resort each of its branches {how}. This is exact but slow: {cost}; most "
        f"snapshots take microseconds. Pass brancher={name!r} to say that this is what you want, register a codec "
        "(sb3_hybrid_grpo.branching.register_codec) to make it fast, or pass brancher='snapshot' for snapshots or nothing."
    )
