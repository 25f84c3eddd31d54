"""Codecs that the package ships, registered on import."""

from sb3_hybrid_grpo.branching.codecs import atari, generic, mujoco

__all__ = ["atari", "generic", "mujoco"]
