"""Saving and restoring the state of live Python objects exactly: the walk, its codecs, and what lies beside it."""

from sb3_hybrid_grpo.branching.snapshots.branch_states import BranchStates, SavedStates, known_layers
from sb3_hybrid_grpo.branching.snapshots.codecs.generic import AttributesCodec
from sb3_hybrid_grpo.branching.snapshots.codecs.third_party import STATEFUL_MODULES
from sb3_hybrid_grpo.branching.snapshots.costs import Cost, cost_of
from sb3_hybrid_grpo.branching.snapshots.private_attributes import PrivateAttributes
from sb3_hybrid_grpo.branching.snapshots.randomness import Watch
from sb3_hybrid_grpo.branching.snapshots.registry import (
    CONSTANT,
    Codec,
    LeafCodec,
    Mark,
    ReferencesCodec,
    codec_of,
    kind_of,
    register_builtin,
    register_codec,
    user_codecs,
)
from sb3_hybrid_grpo.branching.snapshots.snapshot import Snapshot, find
from sb3_hybrid_grpo.branching.snapshots.staying import StayingStates

__all__ = [
    "CONSTANT",
    "STATEFUL_MODULES",
    "AttributesCodec",
    "BranchStates",
    "Codec",
    "Cost",
    "LeafCodec",
    "Mark",
    "PrivateAttributes",
    "ReferencesCodec",
    "SavedStates",
    "Snapshot",
    "StayingStates",
    "Watch",
    "codec_of",
    "cost_of",
    "find",
    "kind_of",
    "known_layers",
    "register_builtin",
    "register_codec",
    "user_codecs",
]
