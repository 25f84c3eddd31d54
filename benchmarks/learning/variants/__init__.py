"""Variants of Hybrid GRPO that were tried: each changes one thing, and is kept so that its rows can be repeated."""

from collections.abc import Mapping

from benchmarks.learning.variants.averaged_gradient import AveragedGradient
from benchmarks.learning.variants.branch_critic import BranchCritic
from benchmarks.learning.variants.group_relative import GroupRelative
from benchmarks.learning.variants.growing_horizon import GrowingHorizon
from benchmarks.learning.variants.informative_states import InformativeStates
from benchmarks.learning.variants.noise_scale import NoiseScaledRollouts
from benchmarks.learning.variants.recomputed_advantages import RecomputedAdvantages
from benchmarks.learning.variants.reused_rollouts import ReusedRollouts, ThreeReusedRollouts
from benchmarks.learning.variants.scaled_back import RecomputedScaledBack, ScaledBack
from benchmarks.learning.variants.stakes import Stakes
from sb3_hybrid_grpo import HybridGRPO

VARIANTS: Mapping[str, type[HybridGRPO]] = {
    variant.__name__: variant
    for variant in (
        AveragedGradient,
        BranchCritic,
        GroupRelative,
        GrowingHorizon,
        InformativeStates,
        NoiseScaledRollouts,
        RecomputedAdvantages,
        RecomputedScaledBack,
        ReusedRollouts,
        ScaledBack,
        Stakes,
        ThreeReusedRollouts,
    )
}
"""By name."""
