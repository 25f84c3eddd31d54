"""The method of the paper to the letter."""

from collections.abc import Mapping
from typing import Any

PAPER_SETTINGS: Mapping[str, Any] = {
    "advantage": "averaged",
    "reward_transform": "tanh",
    "branch_horizon": 1,
    "refit_critic": False,
    "max_actor_grad_norm": None,
}
"""Arguments that make ``HybridGRPO`` the method of the paper to the letter."""
