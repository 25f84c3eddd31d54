"""The outcomes of actions that are not taken: exact ones from the simulator itself, or from a model or a reward function."""

from sb3_hybrid_grpo.branching.factory import make_brancher
from sb3_hybrid_grpo.branching.models.learned import LearnedBrancher
from sb3_hybrid_grpo.branching.models.reward_function import RewardFunction
from sb3_hybrid_grpo.branching.simulator.simulator import register_transparent_wrapper
from sb3_hybrid_grpo.branching.snapshots.codecs.generic import AttributesCodec
from sb3_hybrid_grpo.branching.snapshots.snapshot import CONSTANT, Codec, LeafCodec, Snapshot, register_codec
from sb3_hybrid_grpo.branching.vec_env.vec_env import VecEnvBrancher
from sb3_hybrid_grpo.branching.vec_env.views import VecWrapperView, register_vec_wrapper

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
