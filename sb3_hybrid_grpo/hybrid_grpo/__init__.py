"""Hybrid GRPO."""

from sb3_hybrid_grpo.hybrid_grpo.algorithm import HybridGRPO
from sb3_hybrid_grpo.hybrid_grpo.paper_settings import PAPER_SETTINGS
from sb3_hybrid_grpo.hybrid_grpo.policies import CnnPolicy, MlpPolicy, MultiInputPolicy

__all__ = ["PAPER_SETTINGS", "CnnPolicy", "HybridGRPO", "MlpPolicy", "MultiInputPolicy"]
