"""Modules that checkpoints of version 0.1 name, under the names that they have now."""

import sys

from sb3_hybrid_grpo.estimation import reward_transforms
from sb3_hybrid_grpo.rollout import action_sampling, buffers

_MOVED = {
    "common.reward_transforms": reward_transforms,
    "common.action_sampling": action_sampling,
    "common.buffers": buffers,
}


def install() -> None:
    """Let ``pickle`` find them."""
    for name, module in _MOVED.items():
        sys.modules[f"sb3_hybrid_grpo.{name}"] = module
