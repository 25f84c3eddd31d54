"""Pure functions on arrays [T, E, N(, K)]: reward transforms, estimates of actions, advantages and losses."""

from sb3_hybrid_grpo.estimation.advantages import (
    ESTIMATORS,
    RELATIVE_ADVANTAGES,
    Advantages,
    averaged_advantages,
    hybrid_advantages,
    mixed_advantages,
    model_share,
    relative_precision,
)
from sb3_hybrid_grpo.estimation.estimates import (
    branch_estimates,
    committed_estimates,
    gae_tails,
    generalized_advantages,
    soft_rewards,
    value_boosted_estimates,
)
from sb3_hybrid_grpo.estimation.losses import (
    Loss,
    approximate_kl,
    clip_gradients,
    clipped_policy_loss,
    entropy_loss,
    fuse,
    normalize,
    scale_down,
    value_loss,
    weighted_mean,
)
from sb3_hybrid_grpo.estimation.natural_gradient import AutogradScores, Scores, fisher_product, flatten
from sb3_hybrid_grpo.estimation.reward_transforms import (
    AnyRewardTransform,
    CallableTransform,
    RewardTransform,
    make_reward_transform,
)

__all__ = [
    "ESTIMATORS",
    "RELATIVE_ADVANTAGES",
    "Advantages",
    "AnyRewardTransform",
    "AutogradScores",
    "CallableTransform",
    "Loss",
    "RewardTransform",
    "Scores",
    "approximate_kl",
    "averaged_advantages",
    "branch_estimates",
    "clip_gradients",
    "clipped_policy_loss",
    "committed_estimates",
    "entropy_loss",
    "fisher_product",
    "flatten",
    "fuse",
    "gae_tails",
    "generalized_advantages",
    "hybrid_advantages",
    "make_reward_transform",
    "mixed_advantages",
    "model_share",
    "normalize",
    "relative_precision",
    "scale_down",
    "soft_rewards",
    "value_boosted_estimates",
    "value_loss",
    "weighted_mean",
]
