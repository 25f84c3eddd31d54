"""Branching of the environments that a process holds now, which need not be those that it held before."""

from collections.abc import Sequence
from typing import Any, Protocol

import gymnasium as gym

from sb3_hybrid_grpo.branching.choice import choose_brancher
from sb3_hybrid_grpo.branching.simulator import Composition, InProcessBrancher, LocalBrancher, reset_options
from sb3_hybrid_grpo.common import UnbranchableEnvError


class Holder(Protocol):
    """Where the environments are found, such as a ``DummyVecEnv``."""

    @property
    def envs(self) -> Sequence[gym.Env[Any, Any]]:
        """The environments as they are now."""


class CurrentBrancher:
    """
    A brancher of the environments of this process, and another one when an environment was exchanged.

    :param holder: holds the environments
    :param name: name of the way to branch, see ``choose_brancher``
    :param as_returned: see ``LocalBrancher``
    :param timeout: seconds that an environment may take for one step
    :param options: what the first reset of each environment is to be given
    :raises UnbranchableEnvError: if an environment cannot be branched exactly in this way
    :raises BranchError: if an environment raises while it is probed
    """

    def __init__(
        self,
        holder: Holder,
        name: str,
        as_returned: bool = False,
        timeout: float | None = None,
        options: Sequence[dict[str, Any]] = (),
    ) -> None:
        self._holder = holder
        self._arguments = name, as_returned, timeout
        self._has_masks = False
        self.brancher: InProcessBrancher
        self.announcement: str | None
        self._composition: Composition
        with reset_options(holder.envs, options):
            self._choose(holder.envs)

    @property
    def is_outdated(self) -> bool:
        """Whether an environment, or a wrapper of it, is another one than when it was probed."""
        return bool(self._composition.changed(self._holder.envs))

    def include_masks(self) -> None:
        """Have outcomes include masks of invalid actions from now on."""
        self._has_masks = True
        self.brancher.include_masks()

    def renew(self) -> str | None:
        """
        Turn to the environments that there are now, and probe those that are others.

        :return: what the user should know about how they are branched, if that is news
        :raises UnbranchableEnvError: if one of them cannot be branched exactly
        """
        envs, announced = self._holder.envs, self.announcement
        changed = self._composition.changed(envs)
        if changed and not self._follow(envs, changed):
            self._choose(envs)
        self._composition = Composition(envs)
        if self._has_masks:
            self.brancher.include_masks()
        return self.announcement if self.announcement != announced else None

    def _choose(self, envs: Sequence[gym.Env[Any, Any]]) -> None:
        name, as_returned, timeout = self._arguments
        self.brancher, self.announcement = choose_brancher(name, envs, as_returned, timeout)
        self._composition = Composition(envs)

    def _follow(self, envs: Sequence[gym.Env[Any, Any]], changed: list[int]) -> bool:
        """Stay with the present way to branch, if that is possible."""
        name, as_returned, timeout = self._arguments
        try:
            if isinstance(self.brancher, LocalBrancher):
                return self.brancher.follow(envs, changed, is_rehearsed=name != "auto")
            self.brancher = type(self.brancher)(envs, as_returned, timeout)
        except UnbranchableEnvError:
            return False
        return True
