"""Branches in copies: forked processes, and episodes replayed in further environments."""

from sb3_hybrid_grpo.branching.copies.child import CAN_FORK, PATIENCE, Channel, Child, ChildDied, Raised, end
from sb3_hybrid_grpo.branching.copies.fork import ForkBrancher, milliseconds_per_fork
from sb3_hybrid_grpo.branching.copies.quickest import QuickestBrancher
from sb3_hybrid_grpo.branching.copies.rehearsal import NoTellingError, rehearse
from sb3_hybrid_grpo.branching.copies.replay import ReplayBrancher
from sb3_hybrid_grpo.branching.copies.shared import obstacle_to_fork

__all__ = [
    "CAN_FORK",
    "PATIENCE",
    "Channel",
    "Child",
    "ChildDied",
    "ForkBrancher",
    "NoTellingError",
    "QuickestBrancher",
    "Raised",
    "ReplayBrancher",
    "end",
    "milliseconds_per_fork",
    "obstacle_to_fork",
    "rehearse",
]
