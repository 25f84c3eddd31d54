"""GRPO with the settings that HybridGRPO is compared in."""

from typing import ClassVar

from sb3_hybrid_grpo import HybridGRPO


class GroupRelative(HybridGRPO):
    """GRPO: no critic, advantages are rewards, normalised among a state's actions. Takes all arguments of HybridGRPO."""

    advantage_names: ClassVar[tuple[str, ...]] = ("group_normalized",)
    uses_critic: ClassVar[bool] = False
