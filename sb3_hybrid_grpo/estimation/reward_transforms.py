"""Reward transforms f(r): applied to the rewards of all sampled actions before advantages are computed."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, TypeAlias

import numpy as np
from stable_baselines3.common.running_mean_std import RunningMeanStd

from sb3_hybrid_grpo.common import Floats, InvalidArgumentError, RewardTransformError


class RewardTransform(ABC):
    """
    A function of rewards, possibly with statistics that it learns from rollouts.

    Statistics are part of the model's checkpoint.
    """

    def fit(self, rewards: Floats, dones: Floats, gamma: float) -> None:  # noqa: B027
        """
        Learn from a rollout, before its rewards are transformed.

        :param rewards: rewards of the sampled actions, index 0 committed, [T, E, N]
        :param dones: whether the committed action ended the episode, [T, E]
        :param gamma: discount factor
        """

    def begin(self, starts: Floats) -> None:  # noqa: B027
        """
        Forget what was followed along episodes that are over, before a rollout is learned from: environments that were reset
        in between, as by a second ``learn``, have not said so by ``dones``.

        :param starts: whether an episode starts with the rollout, [E]
        """

    @abstractmethod
    def transform(self, rewards: Floats) -> Floats:
        """
        Compute f(r).

        :param rewards: rewards, any shape
        :return: transformed rewards, same shape
        """

    def __call__(self, rewards: Floats) -> Floats:
        """
        Compute f(r) and check it.

        :param rewards: rewards, any shape
        :return: transformed rewards, same shape, float32
        :raises RewardTransformError: if the result has another shape or is not finite
        """
        transformed = np.asarray(self.transform(rewards))
        if transformed.shape != rewards.shape:
            raise RewardTransformError(
                f"Reward transform {self} returned shape {transformed.shape} for rewards of shape {rewards.shape}: "
                "it must return one number per reward."
            )
        if not np.isfinite(transformed).all():
            bad = rewards[~np.isfinite(transformed)].flat[0]
            raise RewardTransformError(
                f"Reward transform {self} returned NaN or infinity, for example for the reward {bad}: "
                "it must be finite for every reward of the environment."
            )
        return transformed.astype(np.float32, copy=False)

    def __repr__(self) -> str:
        """Return the name of the transform."""
        return type(self).__name__


class Identity(RewardTransform):
    """f(r) = r"""

    def transform(self, rewards: Floats) -> Floats:
        """Return the rewards."""
        return rewards


class Tanh(RewardTransform):
    """
    f(r) = tanh(r), the paper's default (https://arxiv.org/abs/2502.01652).

    It cannot tell apart rewards beyond ±2: see ``ScaledTanh`` for unscaled rewards.
    """

    def transform(self, rewards: Floats) -> Floats:
        """Return tanh(r)."""
        return np.tanh(rewards)


class ScaledTanh(RewardTransform):
    """
    f(r) = s · tanh(r / s), with s = ``scale`` × the running standard deviation of the discounted committed return.

    The soft form of the reward clip of SB3's ``VecNormalize``: close to the identity for ordinary rewards, bounded by s
    for outliers. The identity as long as the return has not varied at all.

    :param scale: bound of f(r) on both sides, in standard deviations of the return
    """

    def __init__(self, scale: float = 10.0) -> None:
        if not scale > 0:
            raise InvalidArgumentError(f"`scale` must be positive, not {scale}.")
        self.scale = scale
        self.return_rms = RunningMeanStd(epsilon=0.0, shape=())
        self.returns = np.zeros(0)

    def begin(self, starts: Floats) -> None:
        """Set R = 0 where an episode starts."""
        if self.returns.shape == starts.shape:
            self.returns = self.returns * ~starts.astype(bool)

    def fit(self, rewards: Floats, dones: Floats, gamma: float) -> None:
        """Update the standard deviation of R ← γR + r along the committed trajectories, R = 0 after an episode."""
        if self.returns.shape != rewards.shape[1:2]:
            self.returns = np.zeros(rewards.shape[1])
        history = np.empty(rewards.shape[:2])
        for t, committed in enumerate(rewards[..., 0]):
            self.returns = self.returns * gamma + committed
            history[t] = self.returns
            self.returns = self.returns * ~dones[t].astype(bool)
        self.return_rms.update(history.ravel())

    @property
    def std(self) -> float:
        """Standard deviation of the return, 0 before the first rollout."""
        return float(np.sqrt(self.return_rms.var)) if self.return_rms.count > 0 else 0.0

    def transform(self, rewards: Floats) -> Floats:
        """Return s · tanh(r / s)."""
        bound = self.scale * self.std
        return bound * np.tanh(rewards / bound) if bound > 0 else rewards


class Normalized(ScaledTanh):
    """
    f(r) = s · tanh(r / (s σ)), with s = ``scale`` and σ the running standard deviation of the discounted committed return.

    SB3's ``VecNormalize`` of rewards, with a soft clip: the critic learns values of the order of one, however large returns
    are and whatever they grow to. Advantages are normalised later, so that the policy sees no difference of scale.

    :param scale: bound of f(r) on both sides
    """

    def transform(self, rewards: Floats) -> Floats:
        """Return s · tanh(r / (s σ))."""
        std = self.std
        return self.scale * np.tanh(rewards / (self.scale * std)) if std > 0 else rewards


class ZScore(RewardTransform):
    """
    f(r) = (r - mean) / (std + ε), with mean and std of all sampled rewards of the rollout.

    :param epsilon: keeps constant rewards at zero
    """

    def __init__(self, epsilon: float = 1e-8) -> None:
        self.epsilon = epsilon
        self.mean = 0.0
        self.std = 1.0

    def fit(self, rewards: Floats, dones: Floats, gamma: float) -> None:
        """Take mean and standard deviation of the rollout."""
        self.mean = float(rewards.mean(dtype=np.float64))
        self.std = float(rewards.std(dtype=np.float64))

    def transform(self, rewards: Floats) -> Floats:
        """Return the standardised rewards."""
        return (rewards - self.mean) / (self.std + self.epsilon)


class CallableTransform(RewardTransform):
    """
    A user's function as a transform.

    :param function: maps an array of rewards to an array of the same shape
    """

    def __init__(self, function: Callable[[Floats], Floats]) -> None:
        self.function = function
        self(np.zeros((2, 1, 1), dtype=np.float32))

    def transform(self, rewards: Floats) -> Floats:
        """Return the function's result."""
        return self.function(rewards)

    def __repr__(self) -> str:
        """Return the name of the function."""
        return getattr(self.function, "__name__", repr(self.function))


AnyRewardTransform: TypeAlias = str | RewardTransform | Callable[[Floats], Floats]

REWARD_TRANSFORMS: dict[str, type[RewardTransform]] = {
    "identity": Identity,
    "tanh": Tanh,
    "scaled_tanh": ScaledTanh,
    "normalized": Normalized,
    "zscore": ZScore,
}
"""Transforms by name. Add your own class to use it by name."""


def make_reward_transform(transform: AnyRewardTransform, kwargs: dict[str, Any] | None = None) -> RewardTransform:
    """
    Make a reward transform from what the user passed.

    :param transform: a name, a ``RewardTransform``, or a function on arrays
    :param kwargs: keyword arguments of the named transform
    :return: the transform; one that is passed in is returned itself, with its statistics
    :raises InvalidArgumentError: if the name or a keyword is unknown
    :raises RewardTransformError: if the function does not return one finite number per reward
    """
    if isinstance(transform, RewardTransform):
        return transform
    if callable(transform):
        return CallableTransform(transform)
    if transform not in REWARD_TRANSFORMS:
        raise InvalidArgumentError(
            f"Unknown reward_transform {transform!r}: choose one of {', '.join(map(repr, REWARD_TRANSFORMS))}, or pass a "
            "function on arrays."
        )
    try:
        return REWARD_TRANSFORMS[transform](**kwargs or {})
    except TypeError as error:
        raise InvalidArgumentError(f"reward_transform_kwargs do not fit reward_transform={transform!r}: {error}") from None
