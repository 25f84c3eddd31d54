"""What gradients of independent batches say about their estimator."""

from collections.abc import Mapping, Sequence

import numpy as np

from benchmarks.gradients.reference import cosine
from sb3_hybrid_grpo.estimation.advantages import Advantages

BUDGETS = (1, 8)


def gradient_statistics(gradients: np.ndarray, reference: np.ndarray) -> dict[str, float]:
    """
    Compare an estimator's gradients with the reference.

    ``cosine`` is the mean of the batches' and ``cosine_se`` its standard error. ``mean_cosine`` is that of the mean of all
    batches; ``limit_cosine`` is that of the expectation, so ``Reference.ceiling`` means no bias:

    E[g]·r / (|r| S),    S² = mean_{i≠j} gᵢ·gⱼ,    relative_variance = tr Var(g) / S²

    Few batches of a large variance do not tell S: it is at least E[g]·r / |r|, and a ``limit_cosine`` of 1 tells nothing.

    :param gradients: a gradient per batch, [n, P]
    :param reference: reference gradient r, [P]
    :return: columns of the row
    """
    n = len(gradients)
    cosines = [cosine(gradient, reference) for gradient in gradients]
    signal, noise, aligned = _moments(gradients, reference)
    return {
        "n_batches": n,
        "cosine": float(np.mean(cosines)),
        "cosine_se": float(np.std(cosines, ddof=1) / np.sqrt(n)),
        "mean_cosine": cosine(gradients.mean(axis=0), reference),
        "limit_cosine": float(aligned / np.sqrt(signal)),
        "relative_variance": float(noise / signal),
    }


def cosines_at_equal_cost(
    gradients: np.ndarray, reference: np.ndarray, costs: Mapping[str, float], ppo_costs: Mapping[str, float]
) -> dict[str, float]:
    """
    Predict the cosine when batches are shrunk or grown, or averaged, until they cost a multiple of one of PPO's.

    cos(m) = E[g]·r / (|r| √(S² + tr Var(g) / m)),    m = budget / cost of a batch

    :param gradients: a gradient per batch, [n, P]
    :param reference: reference gradient r, [P]
    :param costs: costs of a batch by name
    :param ppo_costs: those of PPO's batch with as many committed steps
    :return: columns of the row
    """
    signal, noise, aligned = _moments(gradients, reference)
    return {
        f"cosine_at_{budget}x_{name}": float(aligned / np.sqrt(signal + noise * cost / (budget * ppo_costs[name])))
        for name, cost in costs.items()
        for budget in BUDGETS
    }


def _moments(gradients: np.ndarray, reference: np.ndarray) -> tuple[float, float, float]:
    """Return squared norm of the expectation, trace of the covariance, and projection of the mean on the reference."""
    n, mean = len(gradients), gradients.mean(axis=0)
    noise = float(gradients.var(axis=0, ddof=1).sum())
    aligned = float(mean @ reference / np.linalg.norm(reference))
    return max(float(mean @ mean) - noise / n, aligned**2, 1e-30), noise, aligned


def variance_decomposition(estimates: np.ndarray) -> dict[str, float]:
    """
    Split the variance of estimates into the part that depends on the action and the part that depends on the state only.

    within = E_s[Var_a δ],    between = Var_s(E_a[δ]) = Var_s(δ̄) - within / N

    :param estimates: value-boosted estimates of N independent samples, [T, E, N]
    :return: columns of the row
    """
    within = float(estimates.var(axis=-1, ddof=1).mean())
    between = float(estimates.mean(axis=-1).var(ddof=1)) - within / estimates.shape[-1]
    return {"within_state_variance": within, "between_state_variance": between}


def advantage_variance(advantages: Advantages) -> float:
    """
    Return the variance of advantages as the loss weights them.

    :param advantages: advantages and weights, [T, E, N]
    :return: Σ w (A - mean)² / number of states
    """
    values, weights = advantages
    n_states = values[..., 0].size
    mean = float((weights * values).sum() / n_states)
    return float((weights * (values - mean) ** 2).sum() / n_states)


def averages(rows: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """
    Average the columns of several batches.

    :param rows: numbers by column
    :return: their means
    """
    return {name: float(np.mean([row[name] for row in rows])) for name in rows[0]}
