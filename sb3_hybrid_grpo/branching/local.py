"""Which brancher serves the environments of a process."""

import sys
from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import gymnasium as gym

from sb3_hybrid_grpo.branching.child import CAN_FORK, Channel, Child, ChildDied, end
from sb3_hybrid_grpo.branching.env import LocalBrancher
from sb3_hybrid_grpo.branching.fork import ForkBrancher, milliseconds_per_fork, obstacle_to_fork
from sb3_hybrid_grpo.branching.in_process import InProcessBrancher
from sb3_hybrid_grpo.branching.replay import ReplayBrancher
from sb3_hybrid_grpo.common.type_aliases import UnbranchableEnvError

BRANCHER_NAMES = ("auto", "snapshot", "fork", "replay")

_REHEARSAL_SECONDS = 30.0


class Choice(NamedTuple):
    """
    A brancher, and what the user should know about it.

    :param brancher: the brancher
    :param announcement: the text of a warning, if it is the last resort
    """

    brancher: InProcessBrancher
    announcement: str | None = None


def choose_brancher(
    name: str, envs: Sequence[gym.Env[Any, Any]], as_returned: bool = False, timeout: float | None = None
) -> Choice:
    """
    Make the brancher of environments that live in this process.

    :param name: ``"snapshot"``, ``"fork"``, ``"replay"``, or ``"auto"``: snapshots where they are exact, else forks where
        these are, else replays
    :param envs: the environments
    :param as_returned: see ``LocalBrancher``
    :param timeout: seconds that an environment may take for one step
    :return: the brancher
    :raises UnbranchableEnvError: if an environment cannot be branched exactly in this way
    :raises BranchError: if an environment raises while it is probed
    """
    if name == "fork":
        return Choice(ForkBrancher(envs, as_returned, timeout))
    if name == "replay":
        return Choice(ReplayBrancher(envs, as_returned, timeout))
    if name == "snapshot":
        return Choice(LocalBrancher(envs, as_returned, timeout))
    obstacle = obstacle_to_fork(envs) if CAN_FORK else "this platform cannot fork processes."
    if obstacle is not None:
        return _choose_without_forks(envs, obstacle, as_returned, timeout)
    reason = _rehearse(envs)
    if reason is None:
        return Choice(LocalBrancher(envs, as_returned, timeout))
    brancher = ForkBrancher(envs, as_returned, timeout)
    return Choice(brancher, _announce(reason))


def _choose_without_forks(
    envs: Sequence[gym.Env[Any, Any]], obstacle: str, as_returned: bool, timeout: float | None
) -> Choice:
    try:
        return Choice(LocalBrancher(envs, as_returned, timeout))
    except UnbranchableEnvError as error:
        reason = error
    try:
        brancher = ReplayBrancher(envs, as_returned, timeout)
    except UnbranchableEnvError as error:
        raise UnbranchableEnvError(
            f"{reason}\nNor does brancher='fork' help here: {obstacle}\nNor does brancher='replay': {error}"
        ) from reason.__cause__
    return Choice(brancher, _announce_replays(str(reason)))


def _rehearse(envs: Sequence[gym.Env[Any, Any]]) -> str | None:
    """
    Probe snapshots in a copy of the process: what they do not save must not be changed by trying.

    :param envs: the environments
    :return: why they cannot be branched from snapshots; ``None`` if they can, or if there is no telling
    """
    # The threads of XLA are not copied, and computations would wait for them.
    if "jax" in sys.modules:
        return None
    family: set[Child] = set()
    child = Child(partial(_probe_snapshots, envs), family)
    try:
        is_done = child.channel.connection.poll(_REHEARSAL_SECONDS)
        answer = child.receive() if is_done else None
    except ChildDied:
        return None
    finally:
        end([child], family)
    return answer if isinstance(answer, str) else None


def _probe_snapshots(envs: Sequence[gym.Env[Any, Any]], channel: Channel) -> None:
    try:
        LocalBrancher(envs)
    except UnbranchableEnvError as error:
        channel.send(str(error))
    else:
        channel.send(None)


def _announce(reason: str) -> str:
    return (
        f"{reason.splitlines()[0]} As a last resort each of its branches runs in a forked copy of the process. This is exact "
        f"but slow: {milliseconds_per_fork():.1f} ms per branch beside the environment's step, where a snapshot takes "
        "microseconds. Pass brancher='fork' to say that this is what you want, register a codec "
        "(sb3_hybrid_grpo.branching.register_codec) to make it fast, or pass brancher='snapshot' to never fork. Where "
        "episodes are short brancher='replay' can be faster: it takes their steps again in a copy of the environment."
    )


def _announce_replays(reason: str) -> str:
    return (
        f"{reason.splitlines()[0]} As a last resort each of its branches takes the steps of the episode again in a copy of "
        "the environment. This is exact, or ends in an error, but slow in long episodes. Pass brancher='replay' to say that "
        "this is what you want, register a codec (sb3_hybrid_grpo.branching.register_codec) to make it fast, or pass "
        "brancher='snapshot' for snapshots or nothing."
    )
