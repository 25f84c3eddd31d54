"""What is done to SB3's policies: sampling, evaluation and gradients, many actions at a time."""

from sb3_hybrid_grpo.policies.actors import Actor, Samples, make_actor, sendable
from sb3_hybrid_grpo.policies.constancy import Constancy
from sb3_hybrid_grpo.policies.critic import has_linear_head, refit_value_head
from sb3_hybrid_grpo.policies.evaluators import Evaluator, evaluate_actions, make_evaluator
from sb3_hybrid_grpo.policies.heads import check_entropies
from sb3_hybrid_grpo.policies.maskable import (
    check_policy_class,
    is_maskable,
    is_recurrent,
    masking,
    overrides_forward,
    without_sde,
)
from sb3_hybrid_grpo.policies.networks import chunk_size
from sb3_hybrid_grpo.policies.plain_mlp import Replica
from sb3_hybrid_grpo.policies.recurrent import (
    RecurrentActor,
    in_single_steps,
    no_memory,
    of_branches,
    remembering,
)
from sb3_hybrid_grpo.policies.row_by_row import RowByRow
from sb3_hybrid_grpo.policies.sampling import (
    check_common_noise,
    check_distribution,
    draw_noise,
    first_occurrences,
    to_env_actions,
)

__all__ = [
    "Actor",
    "Constancy",
    "Evaluator",
    "RecurrentActor",
    "Replica",
    "RowByRow",
    "Samples",
    "check_common_noise",
    "check_distribution",
    "check_entropies",
    "check_policy_class",
    "chunk_size",
    "draw_noise",
    "evaluate_actions",
    "first_occurrences",
    "has_linear_head",
    "in_single_steps",
    "is_maskable",
    "is_recurrent",
    "make_actor",
    "make_evaluator",
    "masking",
    "no_memory",
    "of_branches",
    "overrides_forward",
    "refit_value_head",
    "remembering",
    "sendable",
    "to_env_actions",
    "without_sde",
]
