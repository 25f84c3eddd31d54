"""States that are remembered, and stepped by thousands at once."""

from sb3_hybrid_grpo.branching.batched.remembered import RememberedStates, TaskStates
from sb3_hybrid_grpo.branching.batched.task_simulator import TaskSimulator

__all__ = [
    "RememberedStates",
    "TaskSimulator",
    "TaskStates",
]
