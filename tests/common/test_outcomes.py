"""Outcomes of branches, put together."""

import numpy as np

from sb3_hybrid_grpo.common import BranchOutcome, BranchStep, join_macro_steps


def stacked(*rewards):
    """Branches of one environment, [K, 1, n], all of whose arrays tell their rewards."""
    values = np.array(rewards, dtype=np.float32)[:, None]
    flags = values > 0
    return BranchStep(BranchOutcome({"obs": values[..., None]}, values, flags, flags, None), flags)


def test_macro_steps_are_put_together_where_branches_ended_early_and_where_there_are_none():
    first = [stacked([1, 2], [3, 4]), stacked([5, 6])]
    last = [stacked([7, 8]), stacked([9, 10], [11, 12], [13, 14])]
    steps = join_macro_steps([first, [], last])
    expected = [
        [[1, 2, 0, 0, 7, 8], [5, 6, 0, 0, 9, 10]],
        [[3, 4, 0, 0, 0, 0], [0, 0, 0, 0, 11, 12]],
        [[0, 0, 0, 0, 0, 0], [0, 0, 0, 0, 13, 14]],
    ]
    assert len(steps) == len(expected)
    for (outcome, alive), rewards in zip(steps, np.array(expected), strict=True):
        np.testing.assert_array_equal(outcome.rewards, rewards)
        np.testing.assert_array_equal(outcome.observations["obs"][..., 0], rewards)
        np.testing.assert_array_equal(alive, rewards > 0)
        assert outcome.action_masks is None
