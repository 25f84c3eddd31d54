"""The main job: train several algorithms with identical hyperparameters and show how they compare."""

from sb3_hybrid_grpo.compare.cli import main

__all__ = ["main"]
