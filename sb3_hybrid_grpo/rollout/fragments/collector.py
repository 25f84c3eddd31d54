"""What a worker does to collect a whole rollout."""

from collections.abc import Iterator
from contextlib import contextmanager
from math import ceil
from typing import Any, NamedTuple

import numpy as np
import torch as th
from stable_baselines3.common.policies import ActorCriticPolicy

from sb3_hybrid_grpo.common import BranchStep, Observations, WorkerEnvs, check_outcome
from sb3_hybrid_grpo.policies import make_actor, to_env_actions
from sb3_hybrid_grpo.rollout.action_sampling import ActionSampling, sources_of
from sb3_hybrid_grpo.rollout.branch_paths import NoiseAhead, Waiting


class Fragment(NamedTuple):
    """
    T macro-steps of the E environments of a worker.

    :param steps: what the vectorised environment needs to take the committed steps again
    :param actions: sampled actions, [T, E, N, \\*action_shape]
    :param log_weights: logarithms of their importance weights, [T, E, N]; ``None`` for samples of the policy
    :param branches: the steps of branches, stacked, by the number of macro-steps that had been taken when they were followed
    :param random_state: state of PyTorch's random numbers after the rollout
    """

    steps: list[Any]
    actions: np.ndarray
    log_weights: np.ndarray | None
    branches: dict[int, BranchStep]
    random_state: th.Tensor


class _Prompt:
    """
    Follows branches before the committed step, see ``PromptBranches``.

    :param envs: the environments
    """

    def __init__(self, envs: WorkerEnvs) -> None:
        self._envs = envs

    def begin(self, waiting: Waiting) -> BranchStep | None:
        return self._envs.follow(*waiting[:3])

    def finish(self, is_last: bool) -> BranchStep | None:
        return None


class _Late:
    """
    Remembers states and follows branches from many of them at once, see ``LateBranches``.

    :param envs: the environments
    :param macro_steps: how many macro-steps wait for one another
    """

    def __init__(self, envs: WorkerEnvs, macro_steps: int) -> None:
        self._envs = envs
        self._macro_steps = macro_steps
        self._waiting: list[Waiting] = []
        envs.forget()

    def begin(self, waiting: Waiting) -> BranchStep | None:
        self._envs.remember()
        self._waiting.append(waiting)
        return None

    def finish(self, is_last: bool) -> BranchStep | None:
        if not is_last and len(self._waiting) < self._macro_steps:
            return None
        merged = Waiting.merged(self._waiting)
        self._waiting = []
        return self._envs.follow(*merged[:3], from_kept=True)


class FragmentCollector:
    """
    Collects macro-steps by itself, as the main process would do it, see ``Collector``.

    Each worker samples at as many states as the main process would, with the same random numbers, and those of other workers
    are zero: what it samples at its own ones is the same, bit for bit, whatever the policy and the way to sample.

    :param policy: the policy
    :param action_sampling: how the N actions of a state are sampled
    :param are_distinct: whether these are never equal
    :param n_envs: number of all environments
    :param n_steps: number of macro-steps T
    :param horizon: number of steps K of a branch
    :param sde_sample_freq: see ``NoiseAhead``
    :param random_state: state of PyTorch's random numbers before the rollout
    :param most_branches: how many branches of all environments wait for one another; ``None`` if states cannot be remembered
    """

    def __init__(
        self,
        policy: ActorCriticPolicy,
        action_sampling: ActionSampling,
        are_distinct: bool,
        n_envs: int,
        n_steps: int,
        horizon: int,
        sde_sample_freq: int | None,
        random_state: th.Tensor,
        most_branches: int | None,
    ) -> None:
        self._policy = policy
        self._action_sampling = action_sampling
        self._are_distinct = are_distinct
        self._n_envs = n_envs
        self._n_steps = n_steps
        self._most_branches = most_branches
        self._noise_ahead = n_envs, action_sampling.group_size, horizon, sde_sample_freq
        self._random_state = random_state

    def __call__(self, envs: WorkerEnvs, rows: slice, obs: Observations, skipped: np.ndarray) -> Fragment:
        """
        Collect a rollout.

        :param envs: the environments of the worker
        :param rows: which environments these are
        :param obs: their observations before it
        :param skipped: which states are not branched, [T, E]
        :return: the rollout
        :raises BranchError: if an environment raises in a branch
        :raises InvalidOutcomeError: if an environment returns NaN or infinity
        """
        actor = make_actor(self._policy)
        followed = self._make_branches(envs)
        steps, actions, log_weights = [], [], []
        branches: dict[int, BranchStep] = {}
        with self._random_numbers():
            noise = NoiseAhead(self._policy, *self._noise_ahead)
        for t, is_skipped in enumerate(skipped):
            with self._random_numbers():
                noise.advance()
                samples = self._action_sampling.sample(actor, self._among_all(obs, rows), noise.now)
            sampled = samples.actions[rows]
            alive = sources_of(sampled, self._are_distinct) == np.arange(sampled.shape[1])
            alive[is_skipped] = False
            env_actions = to_env_actions(self._policy, sampled)
            later = [step_noise[rows] for step_noise in noise.later]
            _keep(branches, t, followed.begin(Waiting(env_actions[:, 1:], alive[:, 1:], later)))
            step, seen = envs.step(env_actions[:, 0])
            _keep(branches, t + 1, followed.finish(t + 1 == self._n_steps))
            obs = _squeezed(seen.observations)
            # Errors name an environment by its place among all.
            check_outcome(self._among_all(obs, rows), self._among_all(seen.rewards[:, 0], rows))
            steps.append(step)
            actions.append(sampled)
            if samples.log_weights is not None:
                log_weights.append(samples.log_weights[rows])
        weights = np.stack(log_weights) if log_weights else None
        return Fragment(steps, np.stack(actions), weights, branches, self._random_state)

    def _make_branches(self, envs: WorkerEnvs) -> _Prompt | _Late:
        if self._most_branches is None:
            return _Prompt(envs)
        n_envs, n_samples, *_ = self._noise_ahead
        return _Late(envs, ceil(self._most_branches / (n_envs * (n_samples - 1))))

    def _among_all(self, part: Any, rows: slice) -> Any:
        """Put arrays of this worker's environments among zeros for all others."""
        if isinstance(part, dict):
            return {key: self._among_all(value, rows) for key, value in part.items()}
        padded = np.zeros((self._n_envs, *part.shape[1:]), dtype=part.dtype)
        padded[rows] = part
        return padded

    @contextmanager
    def _random_numbers(self) -> Iterator[None]:
        """Draw from the rollout's random numbers: those of the worker are for its environments."""
        own = th.get_rng_state()
        th.set_rng_state(self._random_state)
        try:
            yield
        finally:
            self._random_state = th.get_rng_state()
            th.set_rng_state(own)


def _squeezed(observations: Any) -> Observations:
    if isinstance(observations, dict):
        return {key: part[:, 0] for key, part in observations.items()}
    return np.asarray(observations[:, 0])


def _keep(branches: dict[int, BranchStep], n_taken: int, steps: BranchStep | None) -> None:
    if steps is not None:
        branches[n_taken] = steps
