"""Contracts shared by every room of the package: sample tuples and the ``Brancher`` protocol."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol, TypeAlias

import numpy as np
import numpy.typing as npt
import torch as th
from sb3_contrib.common.recurrent.type_aliases import RNNStates
from stable_baselines3.common.type_aliases import TensorDict
from stable_baselines3.common.vec_env import VecEnv
from stable_baselines3.common.vec_env.base_vec_env import VecEnvStepReturn

Floats: TypeAlias = npt.NDArray[np.floating[Any]]
Observations: TypeAlias = np.ndarray | dict[str, np.ndarray] | tuple[np.ndarray, ...]


class BranchOutcome(NamedTuple):
    """
    What ``n`` actions per environment lead to, E environments, nothing reset.

    :param observations: next observations, [E, n, \\*obs_shape], or a dict or tuple of such arrays
    :param rewards: rewards of the environment, [E, n]
    :param terminated: the episode ended in a terminal state, [E, n]
    :param truncated: the episode was cut off (its next observation still has a value), [E, n]
    :param action_masks: which actions are valid in the next states, where branches go on, [E, n, M]; ``None`` if the
        environments do not tell
    """

    observations: Observations
    rewards: np.ndarray
    terminated: np.ndarray
    truncated: np.ndarray
    action_masks: np.ndarray | None = None


class Transitions(NamedTuple):
    """
    Committed transitions of a rollout, without those of episodes that were cut off.

    :param observations: states, [B, \\*obs_shape]
    :param actions: committed actions as the environment takes them, [B, \\*action_shape]
    :param next_observations: next states; the states themselves where the episode ended, [B, \\*obs_shape]
    :param rewards: rewards, [B]
    :param terminated: whether the episode ended in a terminal state, [B]
    :param other_actions: actions that were tried beside the committed ones, [B, n, \\*action_shape]
    """

    observations: np.ndarray
    actions: np.ndarray
    next_observations: np.ndarray
    rewards: np.ndarray
    terminated: np.ndarray
    other_actions: np.ndarray


class Committed(NamedTuple):
    """
    The committed transition, for branchers that are no simulator.

    :param observations: next observations as the policy sees them, the last ones of episodes that ended,
        [E, \\*obs_shape] or a dict of such arrays
    :param terminated: whether the episode ended in a terminal state, [E]
    """

    observations: Observations
    terminated: np.ndarray


class Brancher(Protocol):
    """
    Source of the outcomes of actions that are not taken.

    One macro-step is ``open`` with the first actions of all branches, ``advance`` as often as they go on, ``close``, then the
    committed ``env.step``, then ``observed`` for each outcome: statistics of ``VecNormalize`` move in the committed step, and
    every outcome of a macro-step must be normalised with the same ones. The environments are as they were whenever one of
    the methods returns or raises.
    """

    uses_simulator: bool
    """Whether a step of a branch is a step of the simulator."""

    def open(self, actions: np.ndarray, alive: np.ndarray, horizon: int, obs: Observations | None = None) -> BranchOutcome:
        """
        Open branches at the current states and take their first steps.

        :param actions: actions as the environment takes them, [E, n, \\*action_shape]
        :param alive: which of them are branched, [E, n]
        :param horizon: number of steps that a branch may take in all, this one included
        :param obs: observations of the states as the policy sees them
        :return: their outcomes, zero where not ``alive``
        :raises BranchError: if an environment raises
        """

    def advance(self, actions: np.ndarray, alive: np.ndarray) -> BranchOutcome:
        """
        Take a further step in the open branches.

        :param actions: actions as the environment takes them, [E, n, \\*action_shape]
        :param alive: which branches go on: none that has ended, [E, n]
        :return: the outcomes, zero where not ``alive``
        :raises BranchError: if an environment raises
        """

    def close(self) -> None:
        """Forget the open branches."""

    def observed(
        self, outcome: BranchOutcome, earlier: Sequence[BranchOutcome] = (), committed: Committed | None = None
    ) -> BranchOutcome:
        """
        Turn simulator outcomes of the branches opened last into what the policy sees, without side effects.

        :param outcome: what ``open`` or ``advance`` returned
        :param earlier: the outcomes of the steps before it in the same branches
        :param committed: the committed transition, if it has been made
        :return: the outcome with the transformations of the vectorised wrappers applied
        """


class BranchStep(NamedTuple):
    """
    One step of all branches.

    :param outcome: what the simulators returned, meaningful where a branch is alive
    :param alive: whether a branch took the step, [E, n]
    """

    outcome: BranchOutcome
    alive: np.ndarray


class Follower(Protocol):
    """Takes all steps of branches: from the first actions on with a policy of its own."""

    def __call__(
        self, brancher: Brancher, actions: np.ndarray, alive: np.ndarray, noise: Sequence[np.ndarray]
    ) -> list[BranchStep]:
        """
        Follow branches until the noise is used up or all of them have ended.

        :param brancher: source of the outcomes
        :param actions: first actions for the environments, [E, n, \\*action_shape]
        :param alive: which of them are branched, [E, n]
        :param noise: the policy's noise in each further step, [S, \\*noise_dims] for S states with E · n / S branches each
        :return: their steps
        """


class FollowingBrancher(Brancher, Protocol):
    """A brancher that has workers, which follow branches by themselves and can do so along with the committed step."""

    has_workers: bool
    """Whether that is so: one without this attribute is no ``FollowingBrancher``."""

    def teach(self, follower: Follower) -> str | None:
        """
        Send workers what they are to follow branches of several steps with, from now on.

        :param follower: it
        :return: why that is not possible; ``None`` if it is
        """

    def follow(self, actions: np.ndarray, alive: np.ndarray, noise: Sequence[np.ndarray]) -> list[BranchStep]:
        """
        Have workers follow branches.

        :param actions: first actions for the environments, [E, n, \\*action_shape]
        :param alive: which of them are branched, [E, n]
        :param noise: see ``Follower``; none is needed for branches of one step, which nothing has to be taught for
        :return: their steps
        :raises BranchError: if an environment raises
        """

    def follow_and_step(
        self, env: VecEnv, committed: np.ndarray, actions: np.ndarray, alive: np.ndarray, noise: Sequence[np.ndarray]
    ) -> tuple[VecEnvStepReturn, list[BranchStep]]:
        """
        Have workers follow branches, and then take the committed step, which they are asked for at the same time.

        :param env: the training environment
        :param committed: committed actions, [E, \\*action_shape]
        :param actions: see ``follow``, as ``alive`` and ``noise``
        :return: what the environment returns, and the steps of the branches of each worker, stacked
        :raises BranchError: if an environment raised in a branch; the committed step has been taken then
        """

    can_wait: bool
    """Whether outcomes can be observed later: one without this attribute lacks the two methods that follow."""

    def wait(self) -> None:
        """Have the outcomes of a macro-step wait, before its committed step."""

    def observe_late(self) -> Brancher:
        """Return what observes the outcomes of all T macro-steps that wait, [E, T · n, ...], as after each of them."""


class WorkerEnvs(Protocol):
    """The environments of a worker, as what collects a whole rollout there uses them."""

    def remember(self) -> None:
        """
        Keep the present states, if the brancher can: see ``RememberingBrancher``.

        :raises BranchError: if an environment is another one than when it was probed
        """

    def forget(self) -> None:
        """Forget the states that were kept, and turn to the environments that there are now."""

    def follow(
        self, actions: np.ndarray, alive: np.ndarray, noise: Sequence[np.ndarray], from_kept: bool = False
    ) -> BranchStep:
        """
        Follow branches with what the worker was taught last, see ``FollowingBrancher``.

        :param actions: see ``FollowingBrancher.follow``, as ``alive`` and ``noise``
        :param from_kept: whether they leave the states that were kept, which are forgotten then
        :return: their steps, stacked
        :raises BranchError: if an environment raises
        """

    def step(self, actions: np.ndarray) -> tuple[Any, BranchOutcome]:
        """
        Take the committed step.

        :param actions: committed actions, [E, \\*action_shape]
        :return: what the vectorised environment needs to take this step again, and what the policy sees of it, [E, 1, ...]
        """


class Collector(Protocol):
    """Collects a whole rollout in a worker."""

    def __call__(self, envs: WorkerEnvs, rows: slice, *share: Any) -> Any:
        """
        Collect it.

        :param envs: the environments of the worker
        :param rows: which environments these are
        :param share: what else this worker was sent
        :return: what the main process is to get
        """


class CollectingBrancher(FollowingBrancher, Protocol):
    """A brancher whose workers can collect whole rollouts."""

    can_remember: bool
    """Whether they can keep states, to branch from many of them at once later."""

    obstacle_to_collecting: str | None
    """Why they cannot: one without this attribute is no ``CollectingBrancher``."""

    def collect(self, collector: Collector, shares: Callable[[slice], tuple[Any, ...]], n_steps: int) -> list[Any]:
        """
        Have workers collect a rollout, with wrappers as they are now.

        :param collector: collects it
        :param shares: what the worker of some environments is to be given beside
        :param n_steps: number of macro-steps T
        :return: what ``collector`` returned in each worker
        :raises BranchError: if an environment raises in a branch
        :raises Exception: if an environment raises in a committed step
        """


class MaskingBrancher(Brancher, Protocol):
    """A brancher whose outcomes can include masks of invalid actions."""

    def include_masks(self) -> None:
        """Have outcomes include masks of invalid actions, which the environments offer, from now on."""


class RememberingBrancher(Brancher, Protocol):
    """A brancher that can keep states, to branch from many of them at once later."""

    can_remember: bool
    """Whether it can: one without this attribute is no ``RememberingBrancher``."""

    def remember(self, obs: Observations) -> None:
        """
        Keep the present states, before the committed step.

        :param obs: observations of the states as the policy sees them
        """

    def confirm(self) -> np.ndarray | None:
        """
        Tell whether the states have been kept.

        :return: for which environments that was not possible, so that nothing is branched, [E]; ``None`` if for none
        """

    def forget(self) -> None:
        """Forget the states that were remembered."""

    def recall(self) -> Brancher:
        """
        Branch from the states that were remembered, and forget them.

        :return: a brancher whose branches start from all T states of an environment: of n branches the first n / T from the
            first of them, and so on; its outcomes may be observed once all of their committed steps are made
        """


class RenewableBrancher(Brancher, Protocol):
    """A brancher that notices when the environments are others than those that it was made for."""

    is_outdated: bool
    """Whether they are: one without this attribute is no ``RenewableBrancher``."""

    def renew(self) -> None:
        """
        Turn to the environments that there are now.

        :raises UnbranchableEnvError: if one of them cannot be branched exactly
        """


class LearningBrancher(RememberingBrancher, Protocol):
    """A brancher that predicts outcomes with a model, and learns it from the committed transitions."""

    is_ready: bool
    """Whether the model is good enough to be used."""

    error: float
    """Mean squared error of one step, on transitions that it was not trained on."""

    spread: float
    """Mean variance between the actions of a state, in the same unit."""

    transitions: list[th.Tensor]
    """What it has learned from, and goes on to learn from."""

    def learn_from(self, transitions: Transitions) -> None:
        """
        Train the model.

        :param transitions: transitions of a rollout
        """

    def state_dict(self) -> dict[str, Any]:
        """Return the model and what is known of it, for a checkpoint."""

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """
        Go on with a model from a checkpoint.

        :param state: what ``state_dict`` returned
        """


BrancherFactory: TypeAlias = Callable[[VecEnv], Brancher]


class Sequences(NamedTuple):
    """
    How B states follow one another in M sequences of up to L states, each within an episode, as sb3-contrib's recurrent
    policies take them.

    :param lstm_states: what the policy remembers before the first state of each sequence: zero where an episode starts with
        it, [layers, M, units] each
    :param is_state: which of M · L places hold the B states, in their order; the others fill short sequences up, [M · L]
    """

    lstm_states: RNNStates
    is_state: th.Tensor

    @property
    def no_starts(self) -> th.Tensor:
        """That no episode starts within a sequence, as LSTMs take it, [M · L]: they go through it in one go."""
        return th.zeros(len(self.is_state), device=self.is_state.device)


class MultiSampleRolloutBufferSamples(NamedTuple):
    """
    A minibatch of B states with N sampled actions each: tensors for the policy, arrays for the losses.

    :param observations: states, [B, \\*obs_shape] or a dict of such tensors; [M · L, \\*obs_shape] in sequences
    :param actions: sampled actions, index 0 is the committed one, [B, N, action_dim]
    :param old_values: values of the states when they were collected, [B]
    :param old_log_prob: log-probabilities of the actions when they were sampled, [B, N]
    :param advantages: advantage of every action, [B, N]
    :param returns: targets of the critic, [B]
    :param weights: weight of every action in the mean over a state, [B, N], see ``advantages.Advantages``
    :param action_masks: which actions are valid, [B, M]; ``None`` for policies without masks
    :param sequences: sequences of the states; ``None`` for policies without memory
    """

    observations: th.Tensor | TensorDict
    actions: th.Tensor
    old_values: np.ndarray
    old_log_prob: np.ndarray
    advantages: np.ndarray
    returns: np.ndarray
    weights: np.ndarray
    action_masks: th.Tensor | None = None
    sequences: Sequences | None = None
