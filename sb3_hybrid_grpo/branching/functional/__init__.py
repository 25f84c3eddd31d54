"""Environments whose states are values: a branch is a row of an array. JAX is imported only when one in JAX is made."""

from sb3_hybrid_grpo.branching.functional.adapters import is_functional_id, make_functional_env
from sb3_hybrid_grpo.branching.functional.branches import FunctionalBranches
from sb3_hybrid_grpo.branching.functional.contract import FunctionalEnv
from sb3_hybrid_grpo.branching.functional.vec_env import FunctionalVecEnv

__all__ = ["FunctionalBranches", "FunctionalEnv", "FunctionalVecEnv", "is_functional_id", "make_functional_env"]
