"""Vectorised environments: their workers, and what their wrappers do to outcomes."""

from sb3_hybrid_grpo.branching.vec_env.vec_env import VecEnvBrancher
from sb3_hybrid_grpo.branching.vec_env.views import VecWrapperView, register_vec_wrapper
from sb3_hybrid_grpo.branching.vec_env.workers import GroupedSubprocVecEnv

__all__ = [
    "GroupedSubprocVecEnv",
    "VecEnvBrancher",
    "VecWrapperView",
    "register_vec_wrapper",
]
