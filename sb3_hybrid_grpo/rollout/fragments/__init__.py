"""Whole rollouts in workers: how they are collected there, and how the main process goes through them afterwards."""

from sb3_hybrid_grpo.rollout.fragments.collector import Fragment, FragmentCollector
from sb3_hybrid_grpo.rollout.fragments.playback import Playback, PlayedBranches, normalizers_of

__all__ = ["Fragment", "FragmentCollector", "Playback", "PlayedBranches", "normalizers_of"]
