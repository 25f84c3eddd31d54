"""Vectorised environments: their workers, and what their wrappers do to outcomes."""

from sb3_hybrid_grpo.branching.vec_env.parallel import ENGINES, make_parallel_env
from sb3_hybrid_grpo.branching.vec_env.vec_env import VecEnvBrancher
from sb3_hybrid_grpo.branching.vec_env.views import VecWrapperView, register_vec_wrapper
from sb3_hybrid_grpo.branching.vec_env.workers import GroupedSubprocVecEnv, RayVecEnv, WorkersVecEnv

__all__ = [
    "ENGINES",
    "GroupedSubprocVecEnv",
    "RayVecEnv",
    "VecEnvBrancher",
    "VecWrapperView",
    "WorkersVecEnv",
    "make_parallel_env",
    "register_vec_wrapper",
]
