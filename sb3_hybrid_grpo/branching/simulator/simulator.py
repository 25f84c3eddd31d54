"""One environment, without the wrappers that only watch it, and whether snapshots of it are exact."""

import warnings
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces

from sb3_hybrid_grpo.branching.batched import TaskSimulator
from sb3_hybrid_grpo.branching.simulator.detours import Detours, detours_of, skip_transparent
from sb3_hybrid_grpo.branching.simulator.layers import core_of
from sb3_hybrid_grpo.branching.simulator.probes import ResetError, failed_probe, reset_to_probe
from sb3_hybrid_grpo.branching.simulator.valid_actions import copy_of_space, masks_of, number_of_masks, sample
from sb3_hybrid_grpo.branching.snapshots import (
    BranchStates,
    Cost,
    PrivateAttributes,
    SavedStates,
    Snapshot,
    StayingStates,
    codecs,
    cost_of,
    known_layers,
    randomness,
)
from sb3_hybrid_grpo.branching.surroundings import HiddenState, Notice, WatchedStates, announce
from sb3_hybrid_grpo.common import (
    BranchError,
    BranchOutcome,
    BranchTimeoutError,
    UnbranchableEnvError,
    UnrestorableStateError,
    difference,
    empty_outcome,
    identical,
    store_observation,
    warn,
)

__all__ = ["PROBE_STEPS", "Simulator", "codecs"]

PROBE_STEPS = 8


class Simulator:
    """
    One environment, without the wrappers that only watch it.

    ``notice`` has noticed what its steps do outside the process; ``may_use_global_generators`` tells whether a step may draw
    from random generators that the whole process shares; ``task`` steps from many of its states at once, and ``memory`` keeps
    states for branches to come, where that was found to be the same; ``n_masks`` is the number of masks of invalid actions
    that are asked for.

    :param env: the environment as a vectorised environment holds it
    """

    def __init__(self, env: gym.Env[Any, Any]) -> None:
        self.env = env
        self.root = skip_transparent(env)
        # Spaces may be attributes of the class, where no walk from the instance meets them.
        core = core_of(env)
        self.attributes = (self.root, core.action_space, core.observation_space)
        self.roots: tuple[Any, ...] = self.attributes
        with Detours(self.root):
            is_known = known_layers(self.root) is not None
        self._detours = detours_of(self.root)
        self._states: BranchStates = SavedStates(*self.roots)
        self.notice = Notice()
        self._listening: AbstractContextManager[Any] = nullcontext() if is_known else self.notice
        self.may_use_global_generators = True
        self.task: TaskSimulator | None = None
        self.n_masks = 0
        self.cost: Cost | None = None
        self.memory: PrivateAttributes | SavedStates | None = None
        self._includes_generators = False

    def unwatched(self) -> Detours:
        """
        Lead around recorders and renderers.

        :return: a context in which they see nothing
        """
        return self._detours

    def step(self, actions: np.ndarray, env_idx: int, branches: list[int], outcome: BranchOutcome, is_last: bool) -> None:
        """Step some branches, opening them if they are not open, and fill row ``env_idx`` of the outcome."""
        n_noticed = len(self.notice.effects)
        with self._listening:
            self._step(actions, env_idx, branches, outcome, is_last)
        if len(self.notice.effects) > n_noticed:
            warn(str(announce(self.env, self.notice.effects[n_noticed:])))

    def _step(self, actions: np.ndarray, env_idx: int, branches: list[int], outcome: BranchOutcome, is_last: bool) -> None:
        observations, rewards, terminated, truncated, masks = outcome
        states, step = self._states, self.root.step
        with self._detours:
            states.begin()
            try:
                for idx in branches:
                    states.enter(idx, is_last)
                    at = env_idx, idx
                    obs, rewards[at], terminated[at], truncated[at], _ = step(actions[at])
                    store_observation(observations, at, obs)
                    if is_last or terminated[at] or truncated[at]:
                        continue
                    if masks is not None:
                        masks[at] = masks_of(self.env)
                    states.keep(idx)
            except UnrestorableStateError:
                raise
            except Exception as error:
                error_class = BranchTimeoutError if isinstance(error, BranchTimeoutError) else BranchError
                raise error_class(
                    f"Environment {env_idx}, {self.env}, raised {type(error).__name__} in a branch: {error}\n"
                    f"Action: {actions[env_idx, idx]}. The state before the branch was restored."
                ) from error
            finally:
                _leave_in_any_case(states)

    def include_masks(self) -> None:
        """Ask for masks of invalid actions from now on, wherever a branch goes on."""
        self.n_masks = number_of_masks(self.env.action_space)

    @contextmanager
    def staying(self) -> Iterator[None]:
        """Let branches be followed with nobody looking at the environment: it is where it was at the end of the context."""
        states = self._states
        if type(states) is not SavedStates:
            yield
            return
        states.close()
        self._states = StayingStates(states)
        try:
            yield
        finally:
            self._states = states
            with self._listening, self._detours:
                _leave_in_any_case(states)
            states.close()

    def include_generators(self) -> None:
        """Save the global random generators as well from now on, and with the open branches, which have not used them yet."""
        if self._includes_generators or not self.may_use_global_generators:
            return
        assert isinstance(self._states, SavedStates | StayingStates)
        self._includes_generators = True
        self._states.take_again(randomness.GLOBAL_GENERATORS)

    def close(self) -> None:
        """Forget the open branches."""
        self._states.close()

    def probe(self, watch: randomness.Watch) -> tuple[Any, bool]:
        """
        Take steps twice from the same snapshots and compare.

        :param watch: a watch on the global random generators that was just started
        :return: an observation as the environment returns it, and whether it uses global generators
        :raises UnbranchableEnvError: if something cannot be saved, or the second time differs
        :raises BranchError: if the environment raises
        """
        action_space = copy_of_space(self.env.action_space)
        with self.unwatched(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                models = codecs.mujoco.model_parameters(self.roots)
                hidden = HiddenState(self.root, self.attributes)
                self.roots = self.attributes + hidden.roots
                untouched = Snapshot(*self.roots, *models, *randomness.GLOBAL_GENERATORS)
                try:
                    self._make_generator()
                    self.reset()
                    hidden.look_again()
                    self.roots = self.attributes + hidden.roots
                    for step in range(PROBE_STEPS):
                        # Other numbers of steps in between, lest a hidden counter comes around to the same value.
                        example = self._probe_step(action_space, step, 1 + step % 3, hidden)
                    uses_global_generators = watch.noticed()
                    self.task = self._probe_task(action_space)
                    self._settle(hidden)
                    # In play: some states, as of an emulator that was just reset, are dearer than others.
                    self.cost = self._cost_of_states(action_space)
                    if not uses_global_generators:
                        self._specialize(action_space)
                finally:
                    untouched.restore()
            except ResetError:
                raise
            except UnbranchableEnvError as error:
                raise UnbranchableEnvError(f"{self.env} cannot be branched: {error}") from error.__cause__
            except Exception as error:
                raise failed_probe(self.env, error, more="\nThe state before was restored.") from error
            self._make_generator()
        return example, uses_global_generators

    def reset(self) -> None:
        """
        Begin an episode, with the options that the vectorised environment will give to its first one.

        :raises ResetError: if the environment raises
        """
        reset_to_probe(self.env, self.root)

    def _settle(self, hidden: HiddenState) -> None:
        saved, watched = hidden.settle()
        self.roots = self.attributes + saved
        self._states = WatchedStates(self.roots, watched, str(self.env)) if watched else SavedStates(*self.roots)

    def _specialize(self, action_space: spaces.Space[Any]) -> None:
        """Find out what allows for more, in an environment that draws from no random generator of the whole process so far."""
        self.may_use_global_generators = known_layers(self.root) is None
        private = codecs.mujoco.PrivateStates.of(self.root) or PrivateAttributes.of(self.root)
        if private is not None:
            self._states = private
            self.memory = private if isinstance(private, PrivateAttributes) else None
        elif self._can_wait(action_space):
            assert isinstance(self._states, SavedStates)
            self.memory = self._states
            if self.may_use_global_generators:
                self.memory.set_aside(randomness.GLOBAL_GENERATORS)

    def _can_wait(self, action_space: spaces.Space[Any]) -> bool:
        """Try whether snapshots are as exact when the episode has ended, and the next one begun."""
        states = self._states
        # What is only watched is not in the states that are remembered.
        if type(states) is not SavedStates or self.notice.effects:
            return False
        states.remember()
        if states.branches_at_once == 0:
            states.forget()
            return False
        try:
            once, _ = self.try_actions(action_space, PROBE_STEPS, PROBE_STEPS)
            self.reset()
            self.try_actions(action_space, PROBE_STEPS, 0)
            states.recall(1)
            states.begin()
            states.enter(0, is_last=True)
            again, _ = self.try_actions(action_space, PROBE_STEPS, PROBE_STEPS)
            states.leave()
        except Exception:
            return False
        finally:
            states.forget()
            states.close()
        return difference(once, again) is None

    def _cost_of_states(self, action_space: spaces.Space[Any]) -> Cost | None:
        if known_layers(self.root) is not None:
            return None
        return cost_of(*self.roots, step=partial(self.try_actions, action_space, 1, PROBE_STEPS))

    def _make_generator(self) -> None:
        """Make the environment's random generator if there is none: each branch would make one of its own."""
        _ = core_of(self.root).np_random

    def _probe_step(self, action_space: spaces.Space[Any], seed: int, n_others: int, hidden: HiddenState) -> Any:
        snapshot = Snapshot(*self.roots, *randomness.GLOBAL_GENERATORS)
        once, _ = self.try_actions(action_space, 2, seed)
        snapshot.restore()
        self.try_actions(action_space, n_others, PROBE_STEPS + seed)
        snapshot.restore()
        again, obs = self.try_actions(action_space, 2, seed)
        for name in ("observations", "rewards", "terminated", "truncated"):
            if not identical(getattr(once, name), getattr(again, name)):
                # If what it is can be seen, this says so.
                hidden.settle()
                raise UnbranchableEnvError(
                    f"after its attributes were saved and restored, the same actions gave other {name}. Some of its state "
                    "is hidden from its attributes and from its code's variables: in another process, or in an extension "
                    f"library that keeps it by a handle.{hidden.suspects}{self.notice.suspects} Or its steps draw from a "
                    "generator that they make without a seed, such as np.random.default_rng(): then use self.np_random.\n"
                    "Ways out: (1) keep that state in attributes, or register a codec for it with "
                    "sb3_hybrid_grpo.branching.register_codec; (2) branch by forking the process, with "
                    "brancher='fork'; (3) train without branching, with n_samples=1."
                )
        if again.terminated.any() or again.truncated.any():
            self.reset()
            hidden.pass_over_reset()
        return obs

    def _probe_task(self, action_space: spaces.Space[Any]) -> TaskSimulator | None:
        task = TaskSimulator.of(self.root)
        if task is None:
            return None
        for _ in range(PROBE_STEPS):
            task.remember()
            action = action_space.sample()
            expected = self.root.step(action.copy())[:-1]
            if not task.agrees(action, *expected):
                return None
            if expected[2] or expected[3]:
                self.reset()
        return task

    def try_actions(self, action_space: spaces.Space[Any], n_steps: int, seed: int) -> tuple[BranchOutcome, Any]:
        """Step with random valid actions until the episode ends; return also the last observation as it is."""
        outcome = empty_outcome(self.env.observation_space, (1, n_steps))
        action_space.seed(seed)
        for idx in range(n_steps):
            at = 0, idx
            action = sample(action_space, masks_of(self.env))
            with self._listening:
                obs, outcome.rewards[at], outcome.terminated[at], outcome.truncated[at], _ = self.root.step(action)
            store_observation(outcome.observations, at, obs)
            if outcome.terminated[at] or outcome.truncated[at]:
                break
        return outcome, obs


def _leave_in_any_case(states: BranchStates) -> None:
    try:
        states.leave()
    except BaseException:
        # Interrupted, as by Ctrl-C: to do it again is harmless, to stop halfway is not.
        states.leave()
        raise
