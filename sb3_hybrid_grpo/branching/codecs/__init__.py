"""Codecs that the package ships, registered on import."""

from sb3_hybrid_grpo.branching.codecs import generic, mujoco

__all__ = ["generic", "mujoco"]
