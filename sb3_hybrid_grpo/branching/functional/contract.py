"""What a functional environment is, and what steps many of its states at once."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np
from gymnasium import spaces


class FunctionalEnv(Protocol):
    """
    Gymnasium's ``FuncEnv``: an environment whose state is a value.

    With JAX the functions are those of a single state, and the keys are JAX's. With NumPy and PyTorch states, keys, actions
    and all results have a leading axis over environments, and ``sb3_hybrid_grpo.branching.functional.random`` turns keys into
    numbers.

    Beside these methods an environment may have ``truncation(state, rng)``, which tells where episodes are cut off,
    ``action_mask(state)``, which tells which actions are valid, and the attributes ``max_episode_steps`` and ``arrays``, the
    name of the library that it is written in. Where all that a step tells comes out of one computation, it may be a
    ``JointFunctionalEnv`` instead.
    """

    observation_space: spaces.Space[Any]
    action_space: spaces.Space[Any]

    def initial(self, rng: Any) -> Any:
        """Return the state in which an episode starts."""

    def transition(self, state: Any, action: Any, rng: Any) -> Any:
        """Return the state that an action leads to."""

    def observation(self, state: Any, rng: Any) -> Any:
        """Return what the agent sees of a state."""

    def reward(self, state: Any, action: Any, next_state: Any, rng: Any) -> Any:
        """Return the reward of a transition."""

    def terminal(self, state: Any, rng: Any) -> Any:
        """Return whether an episode ends in a state."""


class JointFunctionalEnv(Protocol):
    """A ``FunctionalEnv`` in two functions: its states need not hold what a step has told."""

    observation_space: spaces.Space[Any]
    action_space: spaces.Space[Any]

    def joint_start(self, rng: Any) -> tuple[Any, Any]:
        """Return the state in which an episode starts, and what the agent sees of it."""

    def joint_step(self, state: Any, action: Any, rng: Any) -> tuple[Any, Any, Any, Any, Any]:
        """Return the next state, what the agent sees of it, the reward, and whether the episode ends or is cut off there."""


class Rows(NamedTuple):
    """
    States, one row each.

    :param state: arrays of any structure
    :param elapsed: number of steps that their episodes have had
    """

    state: Any
    elapsed: Any


class Stepped(NamedTuple):
    """
    What the actions of R rows lead to, and zero where they are not alive.

    :param rows: the next states; those of before where a row is not alive
    :param observations: their observations, [R, \\*obs_shape] or a dict of such arrays
    :param rewards: rewards, [R]
    :param terminated: whether they are terminal, [R]
    :param truncated: whether the episode is cut off, [R]
    :param masks: which actions are valid in them, [R, M]; ``None`` if the environment does not tell
    """

    rows: Rows
    observations: Any
    rewards: Any
    terminated: Any
    truncated: Any
    masks: Any


class Engine(Protocol):
    """
    Steps rows of a functional environment. Rows come in blocks of E, one for each environment, and what is random depends on
    the environment and on the time alone: all branches of a state share it with the committed trajectory.
    """

    can_differ: bool
    """Whether rows may differ in their last bits by how many are stepped together."""

    def keys(self, seeds: Sequence[int]) -> Any:
        """
        Make the keys of the environments.

        :param seeds: a seed for each of them
        :return: their keys, [E, 2]
        """

    def start(self, keys: Any, time: int) -> Stepped:
        """
        Start an episode in all environments.

        :param keys: their keys
        :param time: number of steps and starts before
        :return: rewards and ends are without meaning
        """

    def step(self, rows: Rows, keys: Any, times: np.ndarray, actions: Any, alive: Any) -> Stepped:
        """
        Take an action in each of G · E rows.

        :param rows: the rows
        :param keys: keys of the environments
        :param times: the time in each block, [G]
        :param actions: the actions, [G · E, \\*action_shape]
        :param alive: which rows are stepped, [G · E]
        :return: what they lead to
        """

    def restart(self, stepped: Stepped, keys: Any, time: int, ended: np.ndarray) -> Stepped:
        """
        Start the next episode where one has ended.

        :param stepped: the last step of E rows
        :param keys: keys of the environments
        :param time: the time of this step
        :param ended: where an episode has ended, [E]
        :return: the same with first states, observations and masks there
        """

    def join(self, blocks: Sequence[Rows]) -> Rows:
        """
        Put rows together.

        :param blocks: rows
        :return: all of them
        """

    def map(self, function: Callable[[Any], Any], tree: Any) -> Any:
        """
        Call a function with each array of a structure.

        :param function: the function
        :param tree: arrays of any structure
        :return: its results in the same structure
        """

    def leaves(self, tree: Any) -> dict[str, Any]:
        """
        List the arrays of a structure.

        :param tree: arrays of any structure
        :return: the arrays, by where they are
        """

    def to_numpy(self, tree: Any) -> Any:
        """
        Hand out arrays, without copying them if they are in this machine's memory.

        :param tree: arrays, or a dict of arrays
        :return: arrays of NumPy, not to be written into
        """

    def to_torch(self, tree: Any) -> Any:
        """
        Hand out arrays without copying them.

        :param tree: arrays, or a dict of arrays
        :return: tensors, not to be written into
        """


class Functions:
    """
    The functions of an environment as one step. The attribute ``watch`` is called with each state and its successor, unless it
    is ``None``.

    :param env: the environment
    :param max_episode_steps: number of steps after which an episode is cut off
    """

    def __init__(self, env: FunctionalEnv | JointFunctionalEnv, max_episode_steps: float) -> None:
        self.env: Any = env
        self.watch: Callable[[Any, Any], None] | None = None
        self._max_episode_steps = int(min(max_episode_steps, np.iinfo(np.int32).max))
        self._is_joint = hasattr(env, "joint_step")
        self._truncation: Callable[[Any, Any], Any] | None = getattr(env, "truncation", None)
        self._action_mask: Callable[[Any], Any] | None = getattr(env, "action_mask", None)

    def start(self, keys: Sequence[Any]) -> tuple[Any, Any, Any]:
        """
        Start an episode.

        :param keys: four keys
        :return: state, observation and mask
        """
        if self._is_joint:
            state, observation = self.env.joint_start(keys[2])
        else:
            state = self.env.initial(keys[2])
            observation = self.env.observation(state, keys[3])
        return state, observation, self._mask(state)

    def step(self, rows: Rows, action: Any, keys: Sequence[Any]) -> Stepped:
        """
        Take a step.

        :param rows: state, with or without an axis over environments
        :param action: action
        :param keys: four keys: of the transition, of the observation, and two for the start of the next episode
        :return: what it leads to
        """
        told: Sequence[Any] = ()
        if self._is_joint:
            next_state, *told = self.env.joint_step(rows.state, action, keys[0])
        else:
            next_state = self.env.transition(rows.state, action, keys[0])
        if self.watch is not None:
            self.watch(rows.state, next_state)
        observation, reward, terminated, truncated = told or self._told(rows.state, action, next_state, keys)
        elapsed = rows.elapsed + 1
        truncated = (elapsed >= self._max_episode_steps) | truncated
        return Stepped(Rows(next_state, elapsed), observation, reward, terminated, truncated, self._mask(next_state))

    def _told(self, state: Any, action: Any, next_state: Any, keys: Sequence[Any]) -> tuple[Any, Any, Any, Any]:
        """Return observation, reward, and whether the episode ends or is cut off."""
        key, observation_key, *_ = keys
        truncated = False if self._truncation is None else self._truncation(next_state, key)
        observation = self.env.observation(next_state, observation_key)
        return observation, self.env.reward(state, action, next_state, key), self.env.terminal(next_state, key), truncated

    def _mask(self, state: Any) -> Any:
        return None if self._action_mask is None else self._action_mask(state)
