"""Codecs that the package ships, registered on import."""

from sb3_hybrid_grpo.branching.snapshots.codecs import (
    arrays,
    atari,
    containers,
    generators,
    generic,
    handles,
    memory,
    mujoco,
    networks,
    tables,
    third_party,
)

__all__ = [
    "arrays",
    "atari",
    "containers",
    "generators",
    "generic",
    "handles",
    "memory",
    "mujoco",
    "networks",
    "tables",
    "third_party",
]
