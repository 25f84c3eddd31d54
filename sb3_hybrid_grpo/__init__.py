"""Hybrid GRPO for Stable-Baselines3: N actions per state, each evaluated by branching the environment."""

from importlib.resources import files

from sb3_hybrid_grpo import moved as _moved
from sb3_hybrid_grpo.branching.functional import FunctionalVecEnv
from sb3_hybrid_grpo.branching.vec_env import GroupedSubprocVecEnv, RayVecEnv, make_parallel_env
from sb3_hybrid_grpo.check import check_branchable
from sb3_hybrid_grpo.common import (
    BranchError,
    BranchTimeoutError,
    CheckpointError,
    DivergedPolicyError,
    FunctionalEnvError,
    HybridGRPOError,
    InvalidArgumentError,
    InvalidOutcomeError,
    MissingExtraError,
    RewardTransformError,
    UnbranchableEnvError,
    WorkerLostError,
)
from sb3_hybrid_grpo.grpo import GRPO
from sb3_hybrid_grpo.hybrid_grpo import PAPER_SETTINGS, HybridGRPO

_moved.install()

__version__ = files(__name__).joinpath("version.txt").read_text().strip()

__all__ = [
    "GRPO",
    "PAPER_SETTINGS",
    "BranchError",
    "BranchTimeoutError",
    "CheckpointError",
    "DivergedPolicyError",
    "FunctionalEnvError",
    "FunctionalVecEnv",
    "GroupedSubprocVecEnv",
    "HybridGRPO",
    "HybridGRPOError",
    "InvalidArgumentError",
    "InvalidOutcomeError",
    "MissingExtraError",
    "RayVecEnv",
    "RewardTransformError",
    "UnbranchableEnvError",
    "WorkerLostError",
    "check_branchable",
    "make_parallel_env",
]
