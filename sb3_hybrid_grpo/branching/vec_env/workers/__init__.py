"""Environments in workers: how they are reached, how they are branched there, and vectorised environments made of them."""

from sb3_hybrid_grpo.branching.vec_env.workers.in_workers import WorkersBrancher
from sb3_hybrid_grpo.branching.vec_env.workers.stock import StockTransport

__all__ = ["StockTransport", "WorkersBrancher"]
