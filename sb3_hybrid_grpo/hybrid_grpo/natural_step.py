"""One natural-gradient step of the policy, as long as a KL divergence allows."""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch as th
from sb3_contrib.common.utils import conjugate_gradient_solver
from torch import nn

from sb3_hybrid_grpo.estimation import Scores, fisher_product, flatten

DAMPING = 0.1
SPREAD_RATE = 0.3
LEAST_SPREAD = 0.5
ENOUGH_SPREAD = 0.2
_LARGEST_SPREAD_STEP = 0.02
_MOST_CONJUGATE_GRADIENTS = 10
_MOST_TRIES = 10
_SHRINKING_FACTOR = 0.8
_TOLERANCE = 1.5


class Spread(NamedTuple):
    """
    How widely a policy spreads its actions.

    :param log_std: logarithms of the standard deviations
    :param log_std_init: what they were at first
    """

    log_std: nn.Parameter
    log_std_init: float


def natural_step(
    scores: Scores, weights: th.Tensor, gradient: th.Tensor, kl: float, spread: Spread | None = None
) -> th.Tensor:
    """
    Compute the step that lowers a loss most of all that change the policy as much.

    x = -(F + d)⁻¹ g,    step = x √(2 δ / xᵀ(F + d)x),    d = 0.1

    Source: TRPO (https://arxiv.org/abs/1502.05477), appendix C, with sb3-contrib's solver and damping.

    :param scores: scores of the sampled actions, which make up F
    :param weights: their weights, [B, N]
    :param gradient: g, [P]
    :param kl: δ, the KL divergence of the step
    :param spread: the parameter that has its own pace, if there is one, see ``spread_step``
    :return: the step, [P]; zero if the gradient is
    """

    def product(direction: th.Tensor) -> th.Tensor:
        return fisher_product(scores, weights, direction, DAMPING)

    norm = gradient.norm()
    if norm == 0:
        return th.zeros_like(gradient)
    # The solver's tolerance is absolute, and the length of the gradient does not matter.
    direction = conjugate_gradient_solver(product, -gradient / norm, _MOST_CONJUGATE_GRADIENTS)
    step = direction * (2 * kl / (direction @ product(direction))).sqrt()
    if spread is not None:
        start = 0
        for parameter in scores.parameters:
            part = slice(start, start := start + parameter.numel())
            if parameter is spread.log_std:
                step[part] = spread_step(step[part], norm * direction[part], spread)
    return step


@th.no_grad()
def spread_step(step: th.Tensor, natural_gradient: th.Tensor, spread: Spread) -> th.Tensor:
    """
    Shorten the step of the spread of actions, which has a pace of its own.

    step' = max(clip(c x, ±min(m, |step|)), min(log(min(r σ₀, e) / σ), 0)),    c = 0.3,    m = 0.02,    r = 0.5,    e = 0.2

    In steps as long as those of the means the spread collapses, and what a policy that hardly varies sees of the states
    around its own is too little to hold it there. A spread that stays wide does not hold it either: the means move by so
    much more in steps of the same divergence.

    Source: that means and spread move at their own paces is MPO's (https://arxiv.org/abs/1806.06920), which has a KL
    divergence for each.

    :param step: as long a step as the trust region allows, [S]
    :param natural_gradient: x, [S]
    :param spread: the standard deviations σ, and what they were at first, σ₀
    :return: the step of log σ, [S]
    """
    limit = step.abs().clamp(max=_LARGEST_SPREAD_STEP)
    slow = (SPREAD_RATE * natural_gradient).clamp(-limit, limit)
    least = min(math.log(LEAST_SPREAD) + spread.log_std_init, math.log(ENOUGH_SPREAD))
    room = least - spread.log_std.flatten()
    return slow.maximum(room.clamp(max=0))


@th.no_grad()
def search_line(
    parameters: Sequence[nn.Parameter], step: th.Tensor, kl: float, evaluate: Callable[[], tuple[float, float]], loss: float
) -> bool:
    """
    Move a policy by a step, or by less of it, until the loss has fallen and the KL divergence is at most half as much again as
    it should be. A policy for which no length will do stays as it was.

    :param parameters: the policy's parameters
    :param step: how far they shall move, [P]
    :param kl: the KL divergence that they should bring about
    :param evaluate: gives the loss of the policy as it is now, and the KL divergence of the old policy from it
    :param loss: the loss before
    :return: whether the policy has moved
    """
    if not step.any():
        return False
    start = flatten(parameters)
    for i in range(_MOST_TRIES):
        _set(parameters, start + _SHRINKING_FACTOR**i * step)
        loss_now, kl_now = evaluate()
        if loss_now < loss and kl_now <= _TOLERANCE * kl:
            return True
    _set(parameters, start)
    return False


def _set(parameters: Sequence[nn.Parameter], vector: th.Tensor) -> None:
    """Write into the parameters' own memory, of which others have views."""
    parts = th.split(vector, [parameter.numel() for parameter in parameters])
    for parameter, part in zip(parameters, parts, strict=True):
        parameter.copy_(part.view_as(parameter))
