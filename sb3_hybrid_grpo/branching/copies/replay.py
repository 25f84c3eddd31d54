"""Branching by playing an episode again in a copy: exact where nothing but resets and steps moves an environment."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import gymnasium as gym
import numpy as np

from sb3_hybrid_grpo.branching.copies.episodes import CANNOT_REPLAY, WAYS_OUT, Recorder, WrongEpisodeError, close_copy
from sb3_hybrid_grpo.branching.simulator import InProcessBrancher, masks_of, time_limit
from sb3_hybrid_grpo.branching.snapshots import Watch
from sb3_hybrid_grpo.common import (
    BranchError,
    BranchOutcome,
    BranchTimeoutError,
    HybridGRPOError,
    UnbranchableEnvError,
    store_observation,
)


class ReplayBrancher(InProcessBrancher):
    """
    Branches environments of this process by taking the steps of their episodes again, from the last reset on, in copies.

    The environments themselves never take part. A copy is what ``copy.deepcopy`` makes of an environment before its reset;
    for many that keep their state outside Python that is a new one, which plays the same episode if it begins with the same
    random numbers. Whether it did is checked at each branch, by what the last step returned, the random generator, and plain
    attributes. A branch costs as many steps as the episode has had.

    :param envs: the environments, as a vectorised environment holds them; their ``reset`` and ``step`` are written down from
        now on, and they can be branched after their next reset, before which they are copied
    :param as_returned: keep the precision in which environments return observations and rewards, see ``LocalBrancher``
    :param timeout: seconds that all branches of an environment may take for one step, replays included
    :raises UnbranchableEnvError: if an environment cannot be copied, or its copy plays another episode
    :raises BranchError: if an environment raises when a few steps are tried
    """

    def __init__(self, envs: Sequence[gym.Env[Any, Any]], as_returned: bool = False, timeout: float | None = None) -> None:
        super().__init__(envs, as_returned, timeout)
        self._recorders = [Recorder.of(simulator) for simulator in self._simulators]
        self._watch = Watch()
        self._branches: dict[tuple[int, int], gym.Env[Any, Any]] = {}
        for recorder in self._recorders:
            with self._refuse_shared_generators(recorder):
                example = recorder.probe()
            recorder.serve(self)
            self._note(example)

    @property
    def lengths(self) -> np.ndarray:
        """Steps of the present episodes, which a replay takes again; infinity where there is none to replay, [E]."""
        return np.array([recorder.length for recorder in self._recorders])

    def close(self) -> None:
        """Close the copies that the open branches are in."""
        while self._branches:
            close_copy(self._branches.popitem()[1])

    def _step(self, actions: np.ndarray, alive: np.ndarray) -> BranchOutcome:
        self._steps_left -= 1
        outcome = self._empty_outcome(alive.shape)
        # Environments may change the actions that they get.
        actions = actions.copy()
        for env_idx, recorder in enumerate(self._recorders):
            limit = nullcontext() if self._timeout is None else time_limit(self._timeout)
            with self._refuse_shared_generators(recorder), limit:
                for idx in np.flatnonzero(alive[env_idx]).tolist():
                    self._step_one(recorder, (env_idx, idx), actions, outcome)
        return outcome

    def _step_one(self, recorder: Recorder, at: tuple[int, int], actions: np.ndarray, outcome: BranchOutcome) -> None:
        observations, rewards, terminated, truncated, masks = outcome
        branch = None
        try:
            branch = self._branches.pop(at) if at in self._branches else recorder.replay()
            obs, rewards[at], terminated[at], truncated[at], _ = branch.step(actions[at])
            store_observation(observations, at, obs)
            if terminated[at] or truncated[at] or not self._steps_left:
                return
            if masks is not None:
                masks[at] = masks_of(branch)
            self._branches[at], branch = branch, None
        except Exception as error:
            error_class = type(error) if isinstance(error, BranchTimeoutError | WrongEpisodeError) else BranchError
            is_told = error_class is WrongEpisodeError
            problem = str(error) if is_told else f"raised {type(error).__name__} in a branch: {error}"
            raise error_class(
                f"Environment {at[0]}, {recorder.simulator.env}, {problem}\n"
                f"Action: {actions[at]}. The environment itself did not take part and is as it was."
            ) from error
        finally:
            if branch is not None:
                close_copy(branch)

    @contextmanager
    def _refuse_shared_generators(self, recorder: Recorder) -> Iterator[None]:
        """Bring the random generators back that the whole process shares, and raise if they were used."""
        cause = None
        self._watch.start()
        try:
            yield
        except HybridGRPOError as error:
            cause = error
        finally:
            if was_used := self._watch.noticed():
                self._watch.undo()
        if was_used:
            raise UnbranchableEnvError(
                f"{recorder.simulator.env} {CANNOT_REPLAY} it draws from a random generator that the whole process shares "
                f"(np.random, random or torch), and others have drawn from it since. Use self.np_random.\n{WAYS_OUT}"
            ) from cause
        if cause is not None:
            raise cause
