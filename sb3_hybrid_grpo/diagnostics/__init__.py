"""What training shows of itself: statistics, symptoms, and the doctor who reads them."""

from sb3_hybrid_grpo.diagnostics.doctor import main
from sb3_hybrid_grpo.diagnostics.statistics import rollout_statistics
from sb3_hybrid_grpo.diagnostics.symptoms import Symptom, Watch

__all__ = [
    "Symptom",
    "Watch",
    "main",
    "rollout_statistics",
]
