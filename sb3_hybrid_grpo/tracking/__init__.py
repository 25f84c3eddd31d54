"""Runs in trackers: Weights & Biases and MLflow through SB3's logger, with hyperparameters, the check's verdict and alerts."""

from sb3_hybrid_grpo.tracking.callback import TrackingCallback
from sb3_hybrid_grpo.tracking.hyperparameters import hyperparameters
from sb3_hybrid_grpo.tracking.mlflow_format import MLflowOutputFormat
from sb3_hybrid_grpo.tracking.output_format import Alert
from sb3_hybrid_grpo.tracking.wandb_format import WandbOutputFormat

__all__ = [
    "Alert",
    "MLflowOutputFormat",
    "TrackingCallback",
    "WandbOutputFormat",
    "hyperparameters",
]
