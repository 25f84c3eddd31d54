"""Critic-free GRPO, the baseline."""

from sb3_hybrid_grpo.grpo.algorithm import GRPO
from sb3_hybrid_grpo.grpo.policies import CnnPolicy, MlpPolicy, MultiInputPolicy

__all__ = ["GRPO", "CnnPolicy", "MlpPolicy", "MultiInputPolicy"]
