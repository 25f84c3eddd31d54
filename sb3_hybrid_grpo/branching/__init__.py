"""The outcomes of actions that are not taken: exact ones from the simulator itself, or from a model or a reward function."""

from sb3_hybrid_grpo.branching.factory import make_brancher
from sb3_hybrid_grpo.branching.models import LearnedBrancher, RewardFunction
from sb3_hybrid_grpo.branching.simulator import register_transparent_wrapper
from sb3_hybrid_grpo.branching.snapshots import CONSTANT, AttributesCodec, Codec, LeafCodec, Snapshot, register_codec
from sb3_hybrid_grpo.branching.vec_env import VecEnvBrancher, VecWrapperView, register_vec_wrapper

__all__ = [
    "CONSTANT",
    "AttributesCodec",
    "Codec",
    "LeafCodec",
    "LearnedBrancher",
    "RewardFunction",
    "Snapshot",
    "VecEnvBrancher",
    "VecWrapperView",
    "make_brancher",
    "register_codec",
    "register_transparent_wrapper",
    "register_vec_wrapper",
]
