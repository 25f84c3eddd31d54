"""What happens between two updates: N actions per state, their branches, and the buffer that keeps them."""

from sb3_hybrid_grpo.rollout.action_sampling import ActionSampling, make_action_sampling, make_modelled_sampling, sources_of
from sb3_hybrid_grpo.rollout.action_selection import check_selection, estimates_before_the_step, select
from sb3_hybrid_grpo.rollout.branch_pace import FIRST_SHARE, BranchPace, TimedBranches, check_pace
from sb3_hybrid_grpo.rollout.branch_paths import BranchPaths, MacroStep, NoiseAhead, follow, reordered
from sb3_hybrid_grpo.rollout.buffers import RecurrentMixin, multi_sample_buffer_class
from sb3_hybrid_grpo.rollout.callback_locals import CommittedStep, RolloutCallback, locals_of
from sb3_hybrid_grpo.rollout.fragments import FragmentCollector, Playback, PlayedBranches, normalizers_of
from sb3_hybrid_grpo.rollout.multi_sample import MultiSampleMixin
from sb3_hybrid_grpo.rollout.recurrent_values import make_deferred
from sb3_hybrid_grpo.rollout.rollout_branches import AwaitedBranches, RolloutBranches, branches_at_once, make_rollout_branches
from sb3_hybrid_grpo.rollout.rollout_transitions import committed_transitions
from sb3_hybrid_grpo.rollout.values import DeferredValues, evaluate_rollout

__all__ = [
    "FIRST_SHARE",
    "ActionSampling",
    "AwaitedBranches",
    "BranchPace",
    "BranchPaths",
    "CommittedStep",
    "DeferredValues",
    "FragmentCollector",
    "MacroStep",
    "MultiSampleMixin",
    "NoiseAhead",
    "Playback",
    "PlayedBranches",
    "RecurrentMixin",
    "RolloutBranches",
    "RolloutCallback",
    "TimedBranches",
    "branches_at_once",
    "check_pace",
    "check_selection",
    "committed_transitions",
    "estimates_before_the_step",
    "evaluate_rollout",
    "follow",
    "locals_of",
    "make_action_sampling",
    "make_deferred",
    "make_modelled_sampling",
    "make_rollout_branches",
    "multi_sample_buffer_class",
    "normalizers_of",
    "reordered",
    "select",
    "sources_of",
]
