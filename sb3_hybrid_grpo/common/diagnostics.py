"""What is checked and logged about a rollout, beyond PPO's metrics."""

from typing import Any

import numpy as np

from sb3_hybrid_grpo.common.buffers import MultiSampleMixin
from sb3_hybrid_grpo.common.type_aliases import InvalidOutcomeError


def rollout_statistics(buffer: MultiSampleMixin) -> dict[str, float]:
    """
    Summarise the estimates of a rollout.

    :param buffer: a rollout with advantages
    :return: ``rollout/averaged_advantage_mean``, the mean of the paper's A_T; ``rollout/group_std``, the mean standard
        deviation of the estimates within a state
    """
    return {
        "rollout/averaged_advantage_mean": float(buffer.averaged_advantages.mean()),
        "rollout/group_std": float(buffer.estimates[buffer.branched].std(axis=-1).mean()) if buffer.branched.any() else 0.0,
    }


def check_outcome(observations: Any, rewards: np.ndarray) -> None:
    """
    Check that an environment returned numbers.

    :param observations: observations, [E, ...] or a dict of such arrays
    :param rewards: rewards, [E, ...]
    :raises InvalidOutcomeError: if there is NaN or infinity; the message names the environment
    """
    parts = observations if isinstance(observations, dict) else {"observation": observations}
    for name, values in {**parts, "reward": rewards}.items():
        if values.dtype.kind == "f" and not np.isfinite(values).all():
            env_idx = np.argwhere(~np.isfinite(values))[0][0]
            step = "in a branch" if rewards.ndim > 1 else "in a committed step"
            raise InvalidOutcomeError(
                f"Environment {env_idx} returned NaN or infinity as {name} {step}. The policy was not updated with it. Check "
                "the environment's dynamics for this action, or wrap it in VecCheckNan to see where it starts."
            )
