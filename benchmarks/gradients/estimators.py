"""
Estimators of the policy gradient, those of the product and ideas for new ones.

An idea is a function from a ``Group`` to advantages and weights, registered in ``IDEAS``: every entry is measured with every
applicable N, K, λ and sampling.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np

from benchmarks.gradients.rollouts import Rollout
from sb3_hybrid_grpo.estimation.advantages import ESTIMATORS, RELATIVE_ADVANTAGES, Advantages, hybrid_advantages
from sb3_hybrid_grpo.estimation.estimates import gae_tails


class Group(NamedTuple):
    """
    What an estimator sees of a batch.

    :param rewards: rewards of the first steps, [T, E, N]
    :param estimates: value-boosted estimates δ over K steps, [T, E, N]
    :param relative: the same relative to the other samples, and the samples' weights, [T, E, N]
    :param gae: generalized advantage estimates of the committed trajectory, [T, E]
    :param tails: what they add to K steps, [T, E]
    :param gradient: policy gradient of advantages and weights [T, E, N], a linear function of the former
    """

    rewards: np.ndarray
    estimates: np.ndarray
    relative: Advantages
    gae: np.ndarray
    tails: np.ndarray
    gradient: Callable[[Advantages], np.ndarray]


def _product(name: str) -> Callable[[Group], Advantages]:
    return lambda group: ESTIMATORS[name](group.rewards, group.estimates, group.relative, group.tails, 1.0)


def tail_weighted(tail_coef: float) -> Callable[[Group], Advantages]:
    """
    Return ``"hybrid"`` with a fixed weight of the tail.

    :param tail_coef: the weight
    :return: the estimator
    """
    return lambda group: hybrid_advantages(group.relative, group.tails, tail_coef)


def shrunk_tail(group: Group, n_blocks: int = 8) -> Advantages:
    """
    Shrink the tail by the signal-to-noise ratio of its gradient, measured between blocks of the batch.

    c = max(0, 1 - V / |g|²),    g = mean of the blocks' gradients, V = variance of that mean

    The weight that minimises the squared error of c · g, as in James and Stein (1961).

    :param group: the batch
    :param n_blocks: number of blocks of consecutive macro-steps
    :return: advantages
    """
    tail_only = hybrid_advantages(Advantages(np.zeros_like(group.relative.advantages), group.relative.weights), group.tails)
    gradients = []
    for rows in np.array_split(np.arange(len(group.tails)), n_blocks):
        in_block = np.zeros((len(group.tails), 1, 1))
        in_block[rows] = n_blocks
        gradients.append(group.gradient(Advantages(tail_only.advantages * in_block, tail_only.weights)))
    mean = np.mean(gradients, axis=0)
    noise = np.var(gradients, axis=0, ddof=1).sum() / n_blocks
    return hybrid_advantages(group.relative, group.tails, max(0.0, 1 - noise / max(float(mean @ mean), 1e-12)))


def control_variate(group: Group) -> Advantages:
    """
    Use the group as a control variate of PPO's estimate: what it explains of GAE is taken from all samples.

    A[i] = β · relative[i] + [i = 0] · (GAE - β · relative[0] - mean) / w[0],    β = Cov(GAE, relative[0]) / Var(relative[0])

    Its expectation is that of GAE whatever β.

    :param group: the batch
    :return: advantages
    """
    relative, weights = group.relative
    beta = _slope(group.gae, relative[..., 0])
    return hybrid_advantages(Advantages(beta * relative, weights), group.gae - beta * relative[..., 0])


def matched_tail(group: Group) -> Advantages:
    """
    Weight the tail by how well the group's estimate predicts the committed path's: less where it does better.

    c = 1 - ρ²,    ρ = correlation of GAE and relative[0]

    :param group: the batch
    :return: advantages
    """
    correlation = np.corrcoef(group.gae.ravel(), group.relative.advantages[..., 0].ravel())[0, 1]
    return hybrid_advantages(group.relative, group.tails, 1 - correlation**2)


def _slope(targets: np.ndarray, predictors: np.ndarray) -> float:
    covariance = np.cov(targets.ravel(), predictors.ravel())
    return float(covariance[0, 1] / max(covariance[1, 1], 1e-12))


IDEAS: dict[str, Callable[[Group], Advantages]] = {
    "averaged": _product("averaged"),
    "group_normalized": _product("group_normalized"),
    "per_action": _product("per_action"),
    "hybrid": _product("hybrid"),
    "tail 0.3": tail_weighted(0.3),
    "shrunk tail": shrunk_tail,
    "matched tail": matched_tail,
    "control variate": control_variate,
}
"""Estimators by name. Those that ``TAILLESS`` does not name are measured with every λ of GAE."""

TAILLESS = ("averaged", "group_normalized", "per_action")
ONLY_IID = ("averaged", "group_normalized")


class Estimator(NamedTuple):
    """
    An estimator with all its settings.

    :param name: ``"gae"`` (PPO's) or a name in ``IDEAS``
    :param n_samples: number of actions N
    :param branch_horizon: number of steps per branch K
    :param branch_lambda: λ of the mix of a branch's prefixes
    :param gae_lambda: λ of the committed path, ``None`` where it does not count
    :param action_sampling: ``"iid"``, ``"antithetic"`` or ``"enumerate"``
    """

    name: str
    n_samples: int = 1
    branch_horizon: int = 1
    branch_lambda: float = 1.0
    gae_lambda: float | None = None
    action_sampling: str = "iid"

    def group(self, rollout: Rollout, columns: np.ndarray) -> Group:
        """
        Take what the estimator sees from a rollout.

        :param rollout: a rollout with at least N samples and K steps
        :param columns: indices of the actions
        :return: what it sees
        """
        gae_lambda = 1.0 if self.gae_lambda is None else self.gae_lambda
        gae = rollout.gae(gae_lambda)
        estimates = rollout.estimates(self.branch_horizon, self.branch_lambda)[..., columns]
        rewards = np.take_along_axis(rollout.buffer.rewards, rollout.buffer.sources, axis=-1)[..., columns]
        return Group(
            rewards,
            estimates,
            RELATIVE_ADVANTAGES[self.action_sampling](
                estimates, rollout.buffer.log_probs[..., columns], rollout.buffer.log_weights[..., columns]
            ),
            gae,
            gae_tails(gae, rollout.dones, rollout.gamma, gae_lambda, self.branch_horizon),
            lambda advantages: rollout.gradient(advantages, columns, normalized=False),
        )

    def advantages(self, group: Group) -> Advantages:
        """
        Estimate advantages.

        :param group: what the estimator sees
        :return: advantages and weights, [T, E, N]
        """
        return IDEAS["hybrid" if self.name == "gae" else self.name](group)


def all_estimators(
    names: Sequence[str],
    n_samples: Sequence[int],
    horizons: Sequence[int],
    branch_lambdas: Sequence[float],
    gae_lambdas: Sequence[float],
    tail_lambdas: Sequence[float],
    samplings: Sequence[str],
) -> Iterator[Estimator]:
    """
    List the estimators to compare.

    :param names: names in ``IDEAS``
    :param n_samples: numbers of actions
    :param horizons: numbers of steps per branch
    :param branch_lambdas: λ of branches, which only count for several steps
    :param gae_lambdas: λ of PPO's GAE
    :param tail_lambdas: λ of the other estimators that have a tail
    :param samplings: ways to sample
    :return: all combinations that differ
    """
    yield from (Estimator("gae", gae_lambda=gae_lambda) for gae_lambda in gae_lambdas)
    for name in names:
        for n in n_samples:
            for horizon in horizons[:1] if name == "group_normalized" else horizons:
                for branch_lambda in [1.0] if horizon == 1 or name in ONLY_IID else branch_lambdas:
                    for gae_lambda in [None] if name in TAILLESS else tail_lambdas:
                        for sampling in ["iid"] if name in ONLY_IID else samplings:
                            yield Estimator(name, n, horizon, branch_lambda, gae_lambda, sampling)
