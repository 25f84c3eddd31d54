"""Branches that are followed with nobody looking at the environment between their steps."""

from sb3_hybrid_grpo.branching.snapshots.branch_states import BranchStates


class StayingStates:
    """
    Leaves the environment in the branch that took the last step, see ``BranchStates``: what is saved and restored between its
    steps is saved and restored only before another one takes a step, and the start only at the end.

    :param states: what saves and restores
    """

    def __init__(self, states: BranchStates) -> None:
        self._states = states
        self._present: int | None = None

    def begin(self) -> None:
        """Take a snapshot of the start, if none is open."""
        self._states.begin()

    def enter(self, idx: int, is_last: bool) -> None:
        """Be in a branch."""
        present, self._present = self._present, None
        if present == idx:
            return
        if present is not None:
            self._states.keep(present)
        self._states.enter(idx, is_last)

    def keep(self, idx: int) -> None:
        """Note that the environment is in the state of a branch."""
        self._present = idx

    def leave(self) -> None:
        """Do nothing yet."""

    def close(self) -> None:
        """Do nothing yet."""

    def include(self, shared_roots: tuple[object, ...]) -> None:
        """Save further objects from now on, and with the open branches."""
        self._states.include(shared_roots)

    take_again = include
    """All branches are followed anew, see ``LocalBrancher.staying``: the start is what counts."""
