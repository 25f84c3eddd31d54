"""Outcomes that no simulator tells: from a learned model, or from a reward function."""

from sb3_hybrid_grpo.branching.models.learned import LearnedBrancher
from sb3_hybrid_grpo.branching.models.reward_function import RewardFunction

__all__ = [
    "LearnedBrancher",
    "RewardFunction",
]
