"""The contract between all rooms: protocols and named tuples, errors, checks of arguments and outcomes, checkpoints."""

from sb3_hybrid_grpo.common.checkpoints import CheckedCheckpoints
from sb3_hybrid_grpo.common.errors import (
    BranchError,
    BranchTimeoutError,
    CheckpointError,
    HybridGRPOError,
    InvalidArgumentError,
    InvalidOutcomeError,
    RewardTransformError,
    UnbranchableEnvError,
    UnrestorableStateError,
)
from sb3_hybrid_grpo.common.notices import warn
from sb3_hybrid_grpo.common.outcomes import copy_environments, difference, empty_outcome, identical, join, store_observation
from sb3_hybrid_grpo.common.schedules import check_desired_kl, kl_adapted_factor, parse_schedule, value_at
from sb3_hybrid_grpo.common.type_aliases import (
    AsyncBrancher,
    Brancher,
    BrancherFactory,
    BranchOutcome,
    Committed,
    Floats,
    LearningBrancher,
    MaskingBrancher,
    MultiSampleRolloutBufferSamples,
    Observations,
    RememberingBrancher,
    RenewableBrancher,
    Transitions,
)
from sb3_hybrid_grpo.common.validation import check_name, check_number, check_outcome, check_positive_integer

__all__ = [
    "AsyncBrancher",
    "BranchError",
    "BranchOutcome",
    "BranchTimeoutError",
    "Brancher",
    "BrancherFactory",
    "CheckedCheckpoints",
    "CheckpointError",
    "Committed",
    "Floats",
    "HybridGRPOError",
    "InvalidArgumentError",
    "InvalidOutcomeError",
    "LearningBrancher",
    "MaskingBrancher",
    "MultiSampleRolloutBufferSamples",
    "Observations",
    "RememberingBrancher",
    "RenewableBrancher",
    "RewardTransformError",
    "Transitions",
    "UnbranchableEnvError",
    "UnrestorableStateError",
    "check_desired_kl",
    "check_name",
    "check_number",
    "check_outcome",
    "check_positive_integer",
    "copy_environments",
    "difference",
    "empty_outcome",
    "identical",
    "join",
    "kl_adapted_factor",
    "parse_schedule",
    "store_observation",
    "value_at",
    "warn",
]
