"""Which brancher serves the environments of a process."""

import sys
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import gymnasium as gym

from sb3_hybrid_grpo.branching.child import CAN_FORK, Channel, Child, ChildDied, end
from sb3_hybrid_grpo.branching.env import LocalBrancher
from sb3_hybrid_grpo.branching.fork import ForkBrancher, milliseconds_per_fork, obstacle_to_fork
from sb3_hybrid_grpo.branching.in_process import InProcessBrancher
from sb3_hybrid_grpo.branching.quickest import QuickestBrancher
from sb3_hybrid_grpo.branching.replay import ReplayBrancher
from sb3_hybrid_grpo.common.type_aliases import UnbranchableEnvError

BRANCHER_NAMES = ("auto", "snapshot", "fork", "replay", "quickest")
_BY_NAME: Mapping[str, type[InProcessBrancher]] = {
    "snapshot": LocalBrancher,
    "fork": ForkBrancher,
    "replay": ReplayBrancher,
    "quickest": QuickestBrancher,
}

_REHEARSAL_SECONDS = 30.0
_NO_TELLING = "there is no telling"

_FORKED = "runs in a forked copy of the process"
_REPLAYED = "takes the steps of the episode again in a copy of the environment"


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

    :param name: ``"snapshot"``, ``"fork"``, ``"replay"``, ``"quickest"`` of these two, or ``"auto"``: snapshots where they
        are exact, else the quickest way that is
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
    if name in _BY_NAME:
        return Choice(_BY_NAME[name](envs, as_returned, timeout))
    obstacle = obstacle_to_fork(envs) if CAN_FORK else "this platform cannot fork processes."
    if obstacle is not None:
        return _choose_without_forks(envs, obstacle, as_returned, timeout)
    obstacle = _rehearse(partial(LocalBrancher, envs))
    if obstacle in (None, _NO_TELLING):
        return Choice(LocalBrancher(envs, as_returned, timeout))
    if _rehearse(partial(ReplayBrancher, envs)) is None:
        brancher: InProcessBrancher = QuickestBrancher(envs, as_returned, timeout)
        return Choice(
            brancher, _announce(obstacle, f"{_FORKED}, or {_REPLAYED} while that is quicker", _fork_cost(), "quickest")
        )
    return Choice(ForkBrancher(envs, as_returned, timeout), _announce(obstacle, _FORKED, _fork_cost(), "fork"))


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
    return Choice(brancher, _announce(str(reason), _REPLAYED, "the longer the episode, the slower", "replay"))


def _rehearse(make_brancher: Callable[[], InProcessBrancher]) -> str | None:
    """
    Probe in a copy of the process: what is not saved, or shared by copies of an environment, must not be changed by trying.

    :param make_brancher: makes a brancher, which probes
    :return: what stands in its way; ``None`` if nothing does
    """
    # The threads of XLA are not copied, and computations would wait for them.
    if "jax" in sys.modules:
        return _NO_TELLING
    family: set[Child] = set()
    child = Child(partial(_probe, make_brancher), family)
    try:
        is_done = child.channel.connection.poll(_REHEARSAL_SECONDS)
        answer = child.receive() if is_done else _NO_TELLING
    except ChildDied:
        return _NO_TELLING
    finally:
        end([child], family)
    return answer if answer is None or isinstance(answer, str) else _NO_TELLING


def _probe(make_brancher: Callable[[], InProcessBrancher], channel: Channel) -> None:
    try:
        make_brancher()
    except UnbranchableEnvError as error:
        channel.send(str(error))
    else:
        channel.send(None)


def _fork_cost() -> str:
    return f"{milliseconds_per_fork():.1f} ms per branch beside the environment's step"


def _announce(reason: str, how: str, cost: str, name: str) -> str:
    return (
        f"{reason.splitlines()[0]} As a last resort each of its branches {how}. This is exact but slow: {cost}; a "
        f"snapshot takes microseconds. Pass brancher={name!r} to say that this is what you want, register a codec "
        "(sb3_hybrid_grpo.branching.register_codec) to make it fast, or pass brancher='snapshot' for snapshots or nothing."
    )
