"""Answers whether an environment can be branched exactly, what stands in the way and what it costs."""

from sb3_hybrid_grpo.check.check import check_branchable
from sb3_hybrid_grpo.check.report import BranchReport, Costs, Trial

__all__ = ["BranchReport", "Costs", "Trial", "check_branchable"]
