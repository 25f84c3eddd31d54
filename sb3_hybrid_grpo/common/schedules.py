"""Quantities that change along a training: by its progress, or by how far its updates go."""

import torch as th
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from stable_baselines3.common.type_aliases import Schedule
from stable_baselines3.common.utils import FloatSchedule, LinearSchedule, update_learning_rate

from sb3_hybrid_grpo.common.errors import InvalidArgumentError
from sb3_hybrid_grpo.common.validation import check_number

KL_TOLERANCE = 2.0
KL_STEP = 1.5


def parse_schedule(name: str, value: float | str | Schedule) -> float | Schedule:
    """
    Read a number, a function of the progress, or the RL Zoo's ``"lin_x"``: from x down to 0.

    :param name: name of the argument
    :param value: what the user passed
    :return: the number, or the schedule
    :raises InvalidArgumentError: if it is none of these
    """
    if not isinstance(value, str):
        return FloatSchedule(value) if callable(value) else value
    kind, _, start = value.partition("_")
    try:
        if kind == "lin":
            return LinearSchedule(float(start), 0.0, 1.0)
    except ValueError:
        pass
    raise InvalidArgumentError(f"`{name}` must be a number, a schedule or 'lin_' and a number, not {value!r}.")


def value_at(value: float | Schedule, progress_remaining: float) -> float:
    """
    Evaluate what ``parse_schedule`` returns, or what a callback has set since.

    :param value: a number or a schedule
    :param progress_remaining: from 1 to 0
    :return: its value now
    """
    return value(progress_remaining) if callable(value) else value


def check_desired_kl(desired_kl: float | None, target_kl: float | None, bounds: tuple[float, float]) -> None:
    """
    Check what ``kl_adapted_factor`` is to be called with.

    :param desired_kl: the KL divergence that updates shall have, if any
    :param target_kl: the one that stops an update at 1.5 times itself, if any
    :param bounds: the least and the greatest learning rate
    :raises InvalidArgumentError: if they cannot work, or not together
    """
    if desired_kl is None:
        return
    check_number("desired_kl", desired_kl, above=0)
    if not isinstance(bounds, list | tuple) or len(bounds) != 2:
        raise InvalidArgumentError(f"`learning_rate_bounds` must be two numbers, the least and the greatest, not {bounds!r}.")
    lowest, highest = bounds
    check_number("learning_rate_bounds[0]", lowest, above=0)
    check_number("learning_rate_bounds[1]", highest, above=lowest)
    if target_kl is not None and desired_kl > target_kl:
        raise InvalidArgumentError(
            f"`target_kl`={target_kl:g} would stop updates before they reach `desired_kl`={desired_kl:g}: the learning rate "
            "would grow without end. Set a smaller `desired_kl`, or leave out one of them."
        )


def check_trust_region(trust_region: float | str | Schedule | None, target_kl: float | None, desired_kl: float | None) -> None:
    """
    Check what the policy's one step per rollout is to be measured by.

    :param trust_region: the KL divergence of the step, if there is to be one
    :param target_kl: the one that would stop an update in minibatches, if any
    :param desired_kl: the one that would adapt the learning rate, if any
    :raises InvalidArgumentError: if they cannot work, or not together
    """
    if trust_region is None:
        return
    schedule = parse_schedule("trust_region", trust_region)
    check_number("trust_region(1.0)" if callable(schedule) else "trust_region", value_at(schedule, 1.0), above=0)
    for name, value in ("target_kl", target_kl), ("desired_kl", desired_kl):
        if value is not None:
            raise InvalidArgumentError(
                f"`trust_region` is the KL divergence of the policy's only step, and `{name}`={value:g} is for updates in "
                "minibatches. Leave one of them out."
            )


def kl_adapted_factor(factor: float, learning_rate: float, kl: float, desired_kl: float, bounds: tuple[float, float]) -> float:
    """
    Adapt the learning rate to the KL divergence that an update had.

    c / 1.5 if KL > 2 d,    1.5 c if KL < d / 2,    else c, and c where the learning rate would leave its bounds

    Source: the rule of rsl_rl (https://arxiv.org/abs/2109.11978), skrl and rl_games, there with c the learning rate itself;
    a factor leaves the schedule to the user.

    :param factor: c, factor of the learning rate
    :param learning_rate: the learning rate of the update, c included
    :param kl: KL divergence of the old policy from the new one; NaN is too large
    :param desired_kl: d
    :param bounds: the least and the greatest learning rate
    :return: the factor of the next update's
    """
    lowest, highest = bounds
    if not kl <= KL_TOLERANCE * desired_kl:
        return factor / KL_STEP if learning_rate / KL_STEP >= lowest else factor
    if kl < desired_kl / KL_TOLERANCE:
        return factor * KL_STEP if learning_rate * KL_STEP <= highest else factor
    return factor


class AdaptiveLearningRate(OnPolicyAlgorithm):
    """Lets the learning rate of an algorithm, with the schedule that it has, follow the KL divergence of its updates."""

    desired_kl: float | None
    learning_rate_bounds: tuple[float, float]
    learning_rate_factor: float

    def _update_learning_rate(self, optimizers: list[th.optim.Optimizer] | th.optim.Optimizer) -> None:
        learning_rate = self._learning_rate()
        self.logger.record("train/learning_rate", learning_rate)
        for optimizer in optimizers if isinstance(optimizers, list) else [optimizers]:
            update_learning_rate(optimizer, learning_rate)

    def _learning_rate(self) -> float:
        schedule = self.lr_schedule(self._current_progress_remaining)
        return schedule * self._allowed_factor(schedule)

    def _allowed_factor(self, schedule: float) -> float:
        """Limit the factor to what the bounds allow beside this value of the schedule, which may be outside of them itself."""
        if self.desired_kl is None:
            return 1.0
        if schedule <= 0:
            return self.learning_rate_factor
        lowest, highest = self.learning_rate_bounds
        return max(min(self.learning_rate_factor, max(highest / schedule, 1.0)), min(lowest / schedule, 1.0))

    def _adapt_learning_rate(self, kl: float) -> None:
        if self.desired_kl is None:
            return
        schedule = self.lr_schedule(self._current_progress_remaining)
        if schedule > 0:  # at zero, the divergence tells nothing of the learning rate
            factor = self._allowed_factor(schedule)
            bounds = self.learning_rate_bounds
            change = kl_adapted_factor(factor, schedule * factor, kl, self.desired_kl, bounds) / factor
            # Neither what the upper bound took is kept, nor what the lower one gave.
            self.learning_rate_factor = change * min(factor, self.learning_rate_factor)
        self.logger.record("train/learning_rate_factor", self.learning_rate_factor)
