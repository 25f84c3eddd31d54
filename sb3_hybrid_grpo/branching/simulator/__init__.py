"""One environment of this process: taken apart, probed, and branched from snapshots."""

from sb3_hybrid_grpo.branching.simulator.detours import register_transparent_wrapper, transparent_wrappers
from sb3_hybrid_grpo.branching.simulator.env import BeginAgainError, LocalBrancher
from sb3_hybrid_grpo.branching.simulator.in_process import InProcessBrancher
from sb3_hybrid_grpo.branching.simulator.layers import Composition, core_of, layers_of
from sb3_hybrid_grpo.branching.simulator.probes import ResetError, failed_probe, reset_options, reset_to_probe
from sb3_hybrid_grpo.branching.simulator.simulator import PROBE_STEPS, Simulator
from sb3_hybrid_grpo.branching.simulator.time_limit import time_limit
from sb3_hybrid_grpo.branching.simulator.valid_actions import copy_of_space, masks_of, sample

__all__ = [
    "PROBE_STEPS",
    "BeginAgainError",
    "Composition",
    "InProcessBrancher",
    "LocalBrancher",
    "ResetError",
    "Simulator",
    "copy_of_space",
    "core_of",
    "failed_probe",
    "layers_of",
    "masks_of",
    "register_transparent_wrapper",
    "reset_options",
    "reset_to_probe",
    "sample",
    "time_limit",
    "transparent_wrappers",
]
