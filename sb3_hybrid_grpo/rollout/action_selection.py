"""Which of the N actions of a state the environment goes on with, when all of them have been evaluated."""

from collections.abc import Callable

import numpy as np
import torch as th
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.utils import obs_as_tensor

from sb3_hybrid_grpo.common import Floats, InvalidArgumentError, check_name
from sb3_hybrid_grpo.estimation import RewardTransform, branch_estimates, soft_rewards
from sb3_hybrid_grpo.policies import is_recurrent, overrides_forward
from sb3_hybrid_grpo.rollout.action_sampling import RELATIVE_ESTIMATORS
from sb3_hybrid_grpo.rollout.branch_paths import BranchPaths
from sb3_hybrid_grpo.rollout.values import select_observations


def choose_best(estimates: Floats, scale: float, rng: np.random.Generator) -> np.ndarray:
    """
    Choose the action with the highest estimate.

    :param estimates: value-boosted estimates, up to a constant of each state, [E, N]
    :param scale: not used
    :param rng: not used
    :return: its index, the first of several, [E]
    """
    return np.asarray(estimates.argmax(axis=1))


def choose_softmax(estimates: Floats, scale: float, rng: np.random.Generator) -> np.ndarray:
    """
    Choose action i with probability exp(δᵢ/c) / Σⱼ exp(δⱼ/c).

    :param estimates: value-boosted estimates δ, up to a constant of each state, [E, N]; -inf where there is no choice
    :param scale: c, which may be infinite
    :param rng: random generator
    :return: the index, [E]
    """
    # The largest of independent Gumbel variables around δ/c: https://arxiv.org/abs/1411.0030
    scaled = np.divide(estimates, scale, out=estimates.copy(), where=np.isfinite(estimates))
    return np.asarray((scaled + rng.gumbel(size=estimates.shape)).argmax(axis=1))


SELECTIONS: dict[str, Callable[[Floats, float, np.random.Generator], np.ndarray]] = {
    "softmax": choose_softmax,
    "best": choose_best,
}
"""Ways to choose by name. ``"first"`` is none of them: it needs no estimates."""


def estimates_before_the_step(
    paths: BranchPaths,
    policy: ActorCriticPolicy,
    transform: RewardTransform,
    gamma: float,
    branch_lambda: float,
    ent_coef: float = 0.0,
) -> Floats:
    """
    Estimate actions before the committed step, with the reward transform and the normalisation of the steps so far.

    :param paths: branches of all N actions
    :param policy: the policy whose critic is asked
    :param transform: f(r)
    :param gamma: discount factor
    :param branch_lambda: λ of the mix of prefixes
    :param ent_coef: α of ``soft_rewards``, if rewards are soft; the entropy of the state itself is the same for all actions
    :return: value-boosted estimates without V(s), up to a constant of each state, [E, N]
    """
    shape = (*paths.steps[0].alive.shape, len(paths.steps))
    rewards, next_values, next_entropies = np.zeros((3, *shape), dtype=np.float32)
    terminated, alive = np.zeros((2, *shape), dtype=bool)
    for k, step in enumerate(paths.steps):
        outcome = paths.observed(k, None)
        obs = obs_as_tensor(select_observations(outcome.observations, step.alive), policy.device)  # type: ignore[arg-type]
        with th.no_grad():
            next_values[step.alive, k] = policy.predict_values(obs).cpu().numpy().ravel()
            if ent_coef:
                entropies = policy.get_distribution(obs).entropy()
                assert entropies is not None
                next_entropies[step.alive, k] = entropies.cpu().numpy()
        rewards[..., k], terminated[..., k], alive[..., k] = outcome.rewards, outcome.terminated, step.alive
    nothing = np.zeros((1, shape[0]), dtype=np.float32)
    rewards = soft_rewards(transform(rewards)[None], nothing, next_entropies[None], ent_coef)
    estimates: Floats = branch_estimates(
        rewards, nothing, next_values[None], terminated[None], alive[None], gamma, branch_lambda
    )[0]
    return estimates


def select(
    name: str, estimates: Floats, sources: np.ndarray, sampling: str, scale: float, rng: np.random.Generator
) -> np.ndarray:
    """
    Choose the samples to commit.

    :param name: one of ``SELECTIONS``
    :param estimates: value-boosted estimates, up to a constant of each state, [E, N]
    :param sources: the sample whose outcome each one shares, [E, N]
    :param sampling: name of the way in which samples were chosen: of enumerated actions those are left out that share the
        outcome of another, which are invalid
    :param scale: the usual spread of estimates within a state
    :param rng: random generator
    :return: the order of samples in which those come first, see ``to_front``, [E, N]
    """
    estimates = np.take_along_axis(estimates, sources, axis=1)
    if sampling == "enumerate":
        estimates = np.where(sources == np.arange(sources.shape[1]), estimates, -np.inf)
    chosen = SELECTIONS[name](estimates, scale, rng)
    return to_front(sources[np.arange(len(chosen)), chosen], sources.shape[1], sampling == "antithetic")


def to_front(chosen: np.ndarray, n_samples: int, is_paired: bool = False) -> np.ndarray:
    """
    Return the order of samples in which the chosen one changes places with the first.

    :param chosen: index of the chosen sample, [E]
    :param n_samples: number of samples N
    :param is_paired: whether samples i and i + N/2 are a pair, which stays one: their partners change places, too
    :return: indices, [E, N]; the order is its own inverse
    """
    order = np.arange(n_samples)[None].repeat(len(chosen), axis=0)
    rows = np.arange(len(chosen))
    order[rows, chosen], order[:, 0] = 0, chosen
    if is_paired:
        half = n_samples // 2
        rows = rows[chosen % half != 0]
        partners = (chosen[rows] + half) % n_samples
        order[rows, partners], order[rows, half] = half, partners
    return order


def check_selection(
    name: str, n_samples: int, advantage: str, branch_fraction: float | str, policy_class: type[ActorCriticPolicy]
) -> None:
    """
    Check that the committed action can be selected.

    :param name: ``"first"`` or one of ``SELECTIONS``
    :param n_samples: number of samples N
    :param advantage: name of the estimator
    :param branch_fraction: share of states that are branched, or ``"auto"``
    :param policy_class: class of the policy
    :raises InvalidArgumentError: if the name is unknown or something stands in the way
    """
    check_name("action_selection", name, ("first", *SELECTIONS))
    if name == "first":
        return
    obstacle = None
    if n_samples == 1:
        obstacle = "with n_samples=1 there is nothing to choose from"
    elif advantage not in RELATIVE_ESTIMATORS:
        obstacle = f"advantage={advantage!r} would credit the chosen action as if it had been sampled"
    elif branch_fraction != 1:
        obstacle = f"with branch_fraction={branch_fraction!r} not all states are branched"
    elif overrides_forward(policy_class):
        obstacle = f"{policy_class.__name__} samples in a `forward` of its own"
    elif is_recurrent(policy_class):
        obstacle = f"what {policy_class.__name__} remembers is not known of branches that decide about the committed step"
    if obstacle is not None:
        raise InvalidArgumentError(f"action_selection={name!r} is not possible: {obstacle}. Use 'first'.")
