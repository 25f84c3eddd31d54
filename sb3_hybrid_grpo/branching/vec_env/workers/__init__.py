"""Environments in workers: how they are reached, how they are branched there, and vectorised environments made of them."""

from sb3_hybrid_grpo.branching.vec_env.workers.in_workers import WorkersBrancher
from sb3_hybrid_grpo.branching.vec_env.workers.on_ray import RayVecEnv
from sb3_hybrid_grpo.branching.vec_env.workers.processes import GroupedSubprocVecEnv
from sb3_hybrid_grpo.branching.vec_env.workers.stock import StockTransport
from sb3_hybrid_grpo.branching.vec_env.workers.vec_env import WorkersVecEnv

__all__ = [
    "ENGINES",
    "GroupedSubprocVecEnv",
    "RayVecEnv",
    "StockTransport",
    "WorkersBrancher",
    "WorkersVecEnv",
    "make_parallel_env",
]
