"""Ways to choose the N actions of a state, index 0 being the committed one."""

from typing import Any, ClassVar

import numpy as np
from gymnasium import spaces
from stable_baselines3.common.policies import ActorCriticPolicy

from sb3_hybrid_grpo.common import InvalidArgumentError, Observations, check_name
from sb3_hybrid_grpo.policies import Actor, Samples, first_occurrences, is_maskable, is_recurrent, overrides_forward

RELATIVE_ESTIMATORS = ("hybrid", "per_action")
"""Advantages that compare each action with the others of its state, and so depend on how these were sampled."""


class ActionSampling:
    """
    Independent samples of the policy.

    :param group_size: number of actions N at each state
    """

    name: ClassVar[str] = "iid"

    def __init__(self, group_size: int) -> None:
        self.group_size = group_size

    def sample(
        self, actor: Actor, obs: Observations, noise: np.ndarray | None, action_masks: np.ndarray | None = None
    ) -> Samples:
        """
        Choose N actions at each of E states.

        :param actor: samples from the policy
        :param obs: states
        :param noise: noise of the committed actions, drawn by the policy if ``None``, [E, \\*noise_dims]
        :param action_masks: which actions are valid, [E, M], for a maskable policy
        :return: the actions
        """
        return actor.sample(obs, self.group_size, noise, action_masks)


class Enumeration(ActionSampling):
    """
    One sample of the policy, which is committed, and then all other actions of a discrete space.

    Weighted with their probabilities they give the expectation over the action exactly. Invalid actions are among them, with
    probability zero.
    """

    name = "enumerate"

    def sample(
        self, actor: Actor, obs: Observations, noise: np.ndarray | None, action_masks: np.ndarray | None = None
    ) -> Samples:
        """
        Choose all actions at each of E states, see ``ActionSampling.sample``.

        :param actor: samples from the policy
        :param obs: states
        :param noise: noise of the committed actions
        :param action_masks: which actions are valid
        :return: the actions
        """
        committed = actor.sample(obs, 1, noise, action_masks).actions
        return Samples((committed + np.arange(self.group_size)) % self.group_size)


class AntitheticPairs(ActionSampling):
    """
    N/2 independent samples of a Gaussian policy and their reflections at its mean, sample i at i + N/2.

    What is odd in the noise cancels within a pair.
    """

    name = "antithetic"

    def sample(
        self, actor: Actor, obs: Observations, noise: np.ndarray | None, action_masks: np.ndarray | None = None
    ) -> Samples:
        """
        Choose N/2 pairs of actions at each of E states, see ``ActionSampling.sample``.

        :param actor: samples from the policy
        :param obs: states
        :param noise: noise of the committed actions
        :param action_masks: which actions are valid
        :return: the actions
        """
        samples = actor.sample(obs, self.group_size // 2, noise)
        if samples.means is None:
            raise InvalidArgumentError("action_sampling='antithetic' needs a Gaussian policy: use 'iid' with this one.")
        return Samples(np.concatenate((samples.actions, 2 * samples.means[:, None] - samples.actions), axis=1))


class TemperedSamples(ActionSampling):
    """
    One sample of the policy, which is committed, and N - 1 of the policy with a higher temperature.

    The committed trajectory stays the policy's own, and importance weights keep the gradient unbiased, while branches look
    further away from what the policy would do.

    :param group_size: number of actions N at each state
    :param temperature: temperature T
    """

    name = "tempered"

    def __init__(self, group_size: int, temperature: float) -> None:
        super().__init__(group_size)
        self.temperature = temperature

    def sample(
        self, actor: Actor, obs: Observations, noise: np.ndarray | None, action_masks: np.ndarray | None = None
    ) -> Samples:
        """
        Choose N actions at each of E states, see ``ActionSampling.sample``.

        :param actor: samples from the policy
        :param obs: states
        :param noise: noise of the committed actions
        :param action_masks: which actions are valid
        :return: the actions, with ``log_weights``
        """
        committed = actor.sample(obs, 1, noise, action_masks).actions
        others = actor.sample_tempered(obs, self.group_size - 1, self.temperature, action_masks)
        assert others.log_weights is not None
        log_weights = np.pad(others.log_weights, ((0, 0), (1, 0)))
        return Samples(np.concatenate((committed, others.actions), axis=1), log_weights=log_weights)


class ModelledSamples(ActionSampling):
    """
    Independent samples of the policy, and the committed one once more, for branches in a model: it is compared with the
    others there, and not with what really happened.

    :param group_size: number of actions N at each state, without the repeated one
    """

    name = "modelled"

    def __init__(self, group_size: int) -> None:
        super().__init__(group_size + 1)

    def sample(
        self, actor: Actor, obs: Observations, noise: np.ndarray | None, action_masks: np.ndarray | None = None
    ) -> Samples:
        """
        Choose N + 1 actions at each of E states, see ``ActionSampling.sample``.

        :param actor: samples from the policy
        :param obs: states
        :param noise: noise of the committed actions
        :param action_masks: none
        :return: the actions
        """
        actions = actor.sample(obs, self.group_size, noise).actions
        actions[:, -1] = actions[:, 0]
        return Samples(actions)


def sources_of(actions: np.ndarray, are_distinct: bool) -> np.ndarray:
    """
    Return the sample whose outcome each action shares, since no action is branched twice at one state.

    :param actions: sampled actions, [E, N, \\*action_shape]
    :param are_distinct: whether those of a state are never equal
    :return: indices of samples, [E, N]
    """
    if are_distinct:
        return np.arange(actions.shape[1])[None].repeat(len(actions), axis=0)
    return first_occurrences(actions)


ACTION_SAMPLINGS = {sampling.name: sampling for sampling in (ActionSampling, Enumeration, AntitheticPairs)}


def make_action_sampling(
    name: str,
    n_samples: int,
    advantage: str,
    policy_class: type[ActorCriticPolicy],
    action_space: spaces.Space[Any],
    use_sde: bool = False,
    temperature: float = 1.0,
) -> ActionSampling:
    """
    Decide how actions are sampled.

    :param name: ``"iid"``, ``"enumerate"``, ``"antithetic"``, or ``"auto"``: enumerate where that is possible
    :param n_samples: number of actions N that the user asked for
    :param advantage: name of the estimator
    :param policy_class: class of the policy
    :param action_space: action space
    :param use_sde: whether the policy's noise is gSDE's
    :param temperature: temperature of the actions beside the committed one
    :return: the way to sample, whose ``group_size`` is N or the number of actions
    :raises InvalidArgumentError: if the policy, its actions or the estimator do not allow it
    """
    check_name("action_sampling", name, ("auto", *ACTION_SAMPLINGS))
    if temperature != 1:
        return _tempered(name, n_samples, advantage, policy_class, use_sde, temperature)
    if name == "iid":
        return ActionSampling(n_samples)
    obstacle = _obstacle_to_choice(advantage, policy_class)
    if obstacle is not None:
        pass
    elif name == "antithetic":
        if not isinstance(action_space, spaces.Box) or use_sde:
            obstacle = "pairs are reflected at the mean of a Gaussian policy, without gSDE"
        elif n_samples % 2:
            obstacle = f"pairs need an even number of samples, not n_samples={n_samples}"
        else:
            return AntitheticPairs(n_samples)
    elif not isinstance(action_space, spaces.Discrete):
        obstacle = f"only the actions of a Discrete space can be enumerated, not those of {action_space}"
    elif not 1 < action_space.n <= n_samples:
        obstacle = f"n_samples={n_samples} does not suffice for {action_space.n} actions"
    else:
        return Enumeration(int(action_space.n))
    if name == "auto":
        return ActionSampling(n_samples)
    raise InvalidArgumentError(f"action_sampling={name!r} is not possible: {obstacle}. Use 'auto' or 'iid'.")


def _obstacle_to_choice(advantage: str, policy_class: type[ActorCriticPolicy]) -> str | None:
    if advantage not in RELATIVE_ESTIMATORS:
        return f"advantage={advantage!r} is defined for independent samples of the policy"
    if overrides_forward(policy_class):
        return f"{policy_class.__name__} samples in a `forward` of its own"
    return None


def _tempered(
    name: str, n_samples: int, advantage: str, policy_class: type[ActorCriticPolicy], use_sde: bool, temperature: float
) -> ActionSampling:
    obstacles = {
        "below 1 the importance weights have no bound": temperature < 1,
        f"action_sampling={name!r} chooses the actions otherwise": name in ("enumerate", "antithetic"),
        "the committed action is the policy's own, and with n_samples=1 there is no other": n_samples == 1,
        "gSDE has no temperature": use_sde,
    }
    obstacle = _obstacle_to_choice(advantage, policy_class) or next((text for text, holds in obstacles.items() if holds), None)
    if obstacle is not None:
        raise InvalidArgumentError(f"sampling_temperature={temperature} is not possible: {obstacle}.")
    return TemperedSamples(n_samples, temperature)


def make_modelled_sampling(
    name: str,
    n_samples: int,
    advantage: str,
    policy_class: type[ActorCriticPolicy],
    temperature: float,
    tail_coef: float | None,
) -> ActionSampling:
    """
    Decide how actions are sampled for branches in a model.

    :param name: ``"iid"`` or ``"auto"``
    :param n_samples: number of actions N that the user asked for
    :param advantage: name of the estimator
    :param policy_class: class of the policy
    :param temperature: 1
    :param tail_coef: ``None``
    :return: the way to sample, whose ``group_size`` is N + 1
    :raises InvalidArgumentError: if something else is asked for
    """
    obstacles = {
        f"action_sampling={name!r} chooses the actions otherwise": name not in ("auto", "iid"),
        f"sampling_temperature={temperature} chooses the actions otherwise": temperature != 1,
        f"advantage={advantage!r} has no place for what really followed the committed action, as 'hybrid' has": (
            advantage != "hybrid"
        ),
        f"tail_coef={tail_coef} has no place: the model's share decides how much what followed the committed action counts": (
            tail_coef is not None
        ),
        "a model knows nothing of masks": is_maskable(policy_class),
        "a model predicts from one observation, where a recurrent policy needs those before": is_recurrent(policy_class),
    }
    obstacle = _obstacle_to_choice(advantage, policy_class) or next((text for text, holds in obstacles.items() if holds), None)
    if obstacle is not None:
        raise InvalidArgumentError(f"brancher='learned' is not possible: {obstacle}.")
    return ModelledSamples(n_samples)
