"""What lies beside an environment's attributes: variables of its code, and what its steps do outside the process."""

from sb3_hybrid_grpo.branching.surroundings.hidden_places import find_in_code
from sb3_hybrid_grpo.branching.surroundings.hidden_state import HiddenState, WatchedStates
from sb3_hybrid_grpo.branching.surroundings.side_effects import WAYS_OUT, Notice, announce, branch_hooks, is_outlet

__all__ = [
    "WAYS_OUT",
    "HiddenState",
    "Notice",
    "WatchedStates",
    "announce",
    "branch_hooks",
    "find_in_code",
    "is_outlet",
]
