"""The expected gradient where some states are branched, drawn at random: expectations by hand, over all that can happen."""

from itertools import product

import numpy as np
import pytest
import torch as th
from gymnasium import spaces

from sb3_hybrid_grpo.rollout import multi_sample
from sb3_hybrid_grpo.rollout.buffers import MultiSampleRolloutBuffer

SHARE, WEIGHT = 0.3, 0.5


class Bandits:
    """
    Episodes of one step each: two actions, known rewards, and a policy with a parameter per state.

    :param n_states: number of states of a rollout
    :param n_kinds: number of different ones among them
    """

    def __init__(self, n_states, n_kinds):
        rng = np.random.default_rng(0)
        self.kinds = np.arange(n_states) % n_kinds
        self.probs, self.values = rng.uniform(0.2, 0.8, n_kinds)[self.kinds], rng.normal(size=n_kinds)[self.kinds]
        self.rewards = rng.normal(size=(n_kinds, 2))[self.kinds]
        self.gradient = self.probs * (1 - self.probs) * (self.rewards[:, 1] - self.rewards[:, 0])
        space = spaces.Box(-1, 1, (1,))
        self.buffer = MultiSampleRolloutBuffer(
            n_states, space, spaces.Discrete(2), "cpu", n_samples=2, advantage="per_action", gamma=0.9, gae_lambda=0.8
        )

    def estimate(self, actions, branched):
        """Return the gradient by each state's parameter, [T], from actions [T, 2] and which states are branched, [T]."""
        buffer = self.buffer
        buffer.reset()
        buffer.values[:, 0] = self.values
        buffer.rewards[:, 0] = np.take_along_axis(self.rewards, actions, axis=1)
        buffer.episode_starts[:] = buffer.terminated[:] = buffer.branch_alive[:, :, 0] = True
        buffer.branch_alive[:, 0, 1, 0] = branched
        buffer.compute_returns_and_advantage(th.zeros(1), np.ones(1))
        scores = actions - self.probs[:, None]
        return (buffer.weights[:, 0] * buffer.advantages[:, 0] * scores).sum(axis=1)

    def expectation(self):
        """Return the mean of the estimates over all actions and all choices of states."""
        n_states, total = len(self.kinds), 0.0
        for actions in product((0, 1), repeat=2 * n_states):
            drawn = np.reshape(actions, (n_states, 2))
            of_actions = np.where(drawn == 1, self.probs[:, None], 1 - self.probs[:, None]).prod()
            for branched in product((False, True), repeat=n_states):
                of_states = np.where(branched, SHARE, 1 - SHARE).prod()
                total += of_actions * of_states * self.estimate(drawn, branched)
        return total

    def mean(self, n_rollouts):
        """Return the mean of the estimates over rollouts, by kind."""
        rng, total = np.random.default_rng(0), 0.0
        for _ in range(n_rollouts):
            actions = (rng.random((len(self.kinds), 2)) < self.probs[:, None]).astype(int)
            total += self.estimate(actions, rng.random(len(self.kinds)) < SHARE)
        return np.array([(total / n_rollouts)[self.kinds == kind].mean() for kind in np.unique(self.kinds)])


def test_gradient_has_its_direction_with_any_weight(monkeypatch):
    """
    With a weight c of states without branches that does not look at them, the expectation is the policy gradient times one
    number for all states: s + (1 - s) c (1 - 1/U), U states without branches being centred together; c is 1 if there are no
    others.
    """
    monkeypatch.setattr(multi_sample, "relative_precision", lambda *advantages: WEIGHT)
    bandits = Bandits(3, 3)
    others = [(1, 2 * SHARE * (1 - SHARE)), (0, SHARE**2)]
    alone = WEIGHT * sum(prob * (1 - 1 / (1 + n_unbranched)) for n_unbranched, prob in others) + (1 - SHARE) ** 2 * (1 - 1 / 3)
    factor = SHARE + (1 - SHARE) * alone
    np.testing.assert_allclose(bandits.expectation(), factor * bandits.gradient, rtol=1e-5)


@pytest.mark.parametrize("n_states, n_rollouts, bias", [(4, 1000, (0.1, 1.0)), (256, 200, (0.0, 0.05))])
def test_weight_from_the_rollout_biases_small_ones_only(n_states, n_rollouts, bias):
    """The weight is estimated from the states that it is for, and what one of them has in it is one part in their number."""
    bandits = Bandits(n_states, 2)
    first, second = bandits.mean(n_rollouts) / bandits.gradient[:2]
    assert bias[0] <= abs(first / second - 1) < bias[1]


def test_a_chance_that_depends_on_the_outcome_would_be_noticed(monkeypatch):
    monkeypatch.setattr(multi_sample, "relative_precision", lambda *advantages: WEIGHT)
    bandits = Bandits(2, 2)
    estimate = bandits.estimate
    monkeypatch.setattr(
        bandits, "estimate", lambda actions, branched: estimate(actions, np.array(branched) | (actions[:, 0] == 1))
    )
    factors = bandits.expectation() / bandits.gradient
    assert abs(factors[0] / factors[1] - 1) > 0.1
