"""The true policy gradient of a saved policy, from long branches with common random numbers."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from benchmarks.gradients.frozen_policy import FrozenPolicy
from benchmarks.gradients.rollouts import Rollout
from sb3_hybrid_grpo.estimation.advantages import RELATIVE_ADVANTAGES, Advantages

MIN_ROLLOUTS = 6


class Reference(NamedTuple):
    """
    A reference gradient.

    :param gradient: the gradient, [P]
    :param horizon: steps per branch
    :param split_half: cosine between the means of the odd and of the even rollouts
    :param all_split_halves: the same for all horizons that were tried
    :param simulator_steps: simulator steps it took
    """

    gradient: np.ndarray
    horizon: int
    split_half: float
    all_split_halves: dict[int, float]
    simulator_steps: int

    @property
    def ceiling(self) -> float:
        """Cosine that the true gradient would have with this one: √(2c / (1 + c)) for a split-half cosine c."""
        half = max(self.split_half, 0.0)
        return float(np.sqrt(2 * half / (1 + half)))

    def save(self, file: Path) -> None:
        """
        Write it.

        :param file: an ``.npz`` file to make
        """
        file.parent.mkdir(parents=True, exist_ok=True)
        unfinished = file.with_name(f"unfinished-{file.name}")
        halves = np.array(list(self.all_split_halves.items()))
        np.savez(unfinished, **(self._asdict() | {"all_split_halves": halves}))
        unfinished.replace(file)

    @classmethod
    def load(cls, file: Path) -> "Reference":
        """
        Read it.

        :param file: file that ``save`` made
        :return: the reference
        """
        with np.load(file) as arrays:
            halves = {int(horizon): float(half) for horizon, half in arrays["all_split_halves"]}
            numbers = (int(arrays["horizon"]), float(arrays["split_half"]), halves, int(arrays["simulator_steps"]))
            return cls(arrays["gradient"], *numbers)


def cosine(left: np.ndarray, right: np.ndarray) -> float:
    """
    Return the cosine of the angle between two vectors.

    :param left: a vector
    :param right: a vector
    :return: its cosine, 0 if one of them is zero
    """
    norms = np.linalg.norm(left) * np.linalg.norm(right)
    return float(left @ right / norms) if norms else 0.0


def split_half(gradients: Sequence[np.ndarray]) -> float:
    """
    Return how well the two halves of independent gradients agree.

    :param gradients: gradients of rollouts
    :return: cosine between the means of every other one, 0 if there are too few
    """
    if len(gradients) < MIN_ROLLOUTS:
        return 0.0
    return cosine(np.mean(gradients[::2], axis=0), np.mean(gradients[1::2], axis=0))


def rollouts_needed(gradients: Sequence[np.ndarray], target: float) -> float:
    """
    Predict how many rollouts the split-half cosine needs to reach a target.

    cos(n) = S / (S + 2V/n),    S = mean_{i≠j} gᵢ·gⱼ,    V = mean |gᵢ|² - S

    :param gradients: gradients of rollouts so far
    :param target: the cosine to reach
    :return: number of rollouts, infinite where no signal is seen
    """
    squares = np.mean([gradient @ gradient for gradient in gradients])
    total = np.sum(gradients, axis=0)
    n = len(gradients)
    signal = (total @ total - n * squares) / (n * (n - 1))
    return 2 * (squares - signal) / signal * target / (1 - target) if signal > 0 else np.inf


def long_branch_gradient(rollout: Rollout, horizon: int, sampling: str) -> np.ndarray:
    """
    Return the gradient of a rollout's branched states, each action with its return over K steps relative to the others.

    The last K macro-steps are left out: the committed path ends there before its branches do.

    :param rollout: a rollout with branches
    :param horizon: number of steps K
    :param sampling: how the actions were sampled
    :return: the gradient
    """
    advantages, weights = RELATIVE_ADVANTAGES[sampling](
        rollout.estimates(horizon), rollout.buffer.log_probs, rollout.buffer.log_weights
    )
    counted = rollout.buffer.branched & (np.arange(len(rollout.steps)) < len(rollout.steps) - horizon)[:, None]
    scale = counted.size / max(counted.sum(), 1)
    columns = np.arange(advantages.shape[-1])
    return rollout.gradient(Advantages(advantages * counted[..., None] * scale, weights), columns, normalized=False)


def measure_reference(
    make_model: Callable[[int], FrozenPolicy], horizons: Sequence[int], target: float, limit: int
) -> Reference:
    """
    Collect until the two halves agree. A horizon that will not get there within the limit gives way to the next shorter one.

    :param make_model: makes a model whose branches have a number of steps
    :param horizons: numbers of steps to try
    :param target: split-half cosine to reach
    :param limit: simulator steps after which no rollout begins, but for the first ``MIN_ROLLOUTS``
    :return: the gradient of the longest horizon whose halves agree, or of the one where they agree best
    """
    horizons = sorted(horizons, reverse=True)
    gradients: dict[int, list[np.ndarray]] = {horizon: [] for horizon in horizons}
    spent = 0
    for position, horizon in enumerate(horizons):
        if split_half(gradients[horizon]) >= target or spent >= limit:
            break
        model, found = make_model(horizon), gradients[horizon]

        def receive(rollout: Rollout, shorter: Sequence[int] = horizons[position:]) -> None:
            for each in shorter:
                gradients[each].append(long_branch_gradient(rollout, each, rollout.buffer.action_sampling))

        earlier, start = spent, len(found)
        while (spent < limit or len(found) < MIN_ROLLOUTS) and split_half(found) < target:
            if len(found) >= MIN_ROLLOUTS and spent > earlier and position + 1 < len(horizons):
                affordable = len(found) + (limit - spent) * (len(found) - start) / (spent - earlier)
                if rollouts_needed(found, target) > affordable:
                    break
            model.roll_out(1, receive)
            spent = earlier + model.num_simulator_steps
    halves = {each: split_half(found) for each, found in gradients.items()}
    good = [each for each, half in halves.items() if half >= target]
    chosen = max(good) if good else max(halves, key=lambda each: halves[each])
    return Reference(np.mean(gradients[chosen], axis=0), chosen, halves[chosen], halves, spent)
