"""Episodes written down as they are played, to be played again in copies of the environment."""

import copy
import pickle
import time
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from typing import Any, TypeAlias

import gymnasium as gym
import numpy as np

from sb3_hybrid_grpo.branching.copies.stand_in import StandIn
from sb3_hybrid_grpo.branching.simulator import (
    ResetError,
    Simulator,
    copy_of_space,
    core_of,
    failed_probe,
    layers_of,
    reset_to_probe,
)
from sb3_hybrid_grpo.branching.snapshots import CONSTANT, Watch, register_builtin
from sb3_hybrid_grpo.branching.surroundings import HiddenState
from sb3_hybrid_grpo.common import BranchError, UnbranchableEnvError, difference

CANNOT_REPLAY = "cannot be branched by replaying episodes:"
WAYS_OUT = (
    "Ways out: (1) branch by forking the process, with brancher='fork' (Linux and macOS); (2) train without branching, with "
    "n_samples=1."
)

_PROBE_EPISODES = 4
_PROBE_STEPS = 64
_PROBE_SECONDS = 1.0
_SHADOWED = ("reset", "step", "close")
_CANVASES = ("screen", "window", "viewer")
_SMALL_BYTES = 65536
_PLAIN = bool | int | float | str | bytes | np.ndarray | np.generic | None

_Env: TypeAlias = gym.Env[Any, Any]


class WrongEpisodeError(BranchError):
    """A copy did not come to the state of its environment."""


class _Episode:
    """
    What has happened since a reset.

    :param start: the environment as it was before the reset
    :param keywords: arguments of the reset
    """

    def __init__(self, start: _Env, keywords: dict[str, Any]) -> None:
        self.start = start
        self.keywords = keywords
        self.actions: list[Any] = []
        self.last_returned = b""


class Recorder:
    """
    Writes down the episodes of an environment, whose methods it takes the place of while it has users.

    A copy is closed when it has served its purpose, and the environment's own when it is closed itself.

    :param simulator: the environment
    """

    def __init__(self, simulator: Simulator) -> None:
        self.simulator = simulator
        root = simulator.root
        self._begin(root, root.reset, root.step, root.close)
        # A copy would make a generator of its own.
        _ = core_of(root).np_random
        self._stand_in = StandIn(root, {name: getattr(self, name) for name in _SHADOWED})

    def _begin(self, root: _Env, reset: Callable[..., Any], step: Callable[..., Any], close: Callable[..., Any]) -> None:
        self._n_users = 0
        self._root, self._reset, self._step, self._close = root, reset, step, close
        self._watch = Watch()
        self._episode: _Episode | None = None
        self._obstacle = "has not been reset since its steps are written down: reset it, then branch."

    @classmethod
    def of(cls, simulator: Simulator) -> "Recorder":
        """
        Return the recorder of an environment.

        :param simulator: the environment
        :return: the one that it has, or a new one
        """
        recorder = getattr(vars(simulator.root).get("reset"), "__self__", None)
        if not isinstance(recorder, cls):
            return cls(simulator)
        # Other wrappers may be inside the root than before.
        recorder.simulator = simulator
        return recorder

    def __reduce__(self) -> tuple[Any, ...]:
        # What was written down is not pickled with the environment.
        return _unrecorded, (self._root,)

    def serve(self, user: Any) -> None:
        """
        Write episodes down as long as an object lives.

        :param user: the object
        """
        self._n_users += 1
        weakref.finalize(user, self._dismiss)

    def _dismiss(self) -> None:
        self._n_users -= 1
        if not self._n_users:
            self._forget()
            self._stand_in.leave()

    def __deepcopy__(self, memo: dict[int, Any]) -> "Recorder":
        """Return the recorder of a copy of the environment that somebody else makes: it has no users."""
        twin = object.__new__(type(self))
        memo[id(self)] = twin
        vars(twin).update(copy.deepcopy({**vars(self), "_n_users": 0, "_episode": None}, memo))
        return twin

    def _forget(self) -> None:
        """Forget the episode, and with it the copy that it can be played again in."""
        episode, self._episode = self._episode, None
        if episode is not None:
            close_copy(episode.start)

    def reset(self, **keywords: Any) -> Any:
        """
        Reset the environment.

        :param keywords: arguments of its ``reset``
        :return: what it returns
        """
        self._forget()
        if not self._n_users:
            return self._reset(**keywords)
        self._watch.start()
        try:
            episode = _Episode(self._copy(), copy.deepcopy(keywords))
        except UnbranchableEnvError as error:
            self._obstacle = f"could not be copied before its last reset: {error}\n{WAYS_OUT}"
            return self._reset(**keywords)
        finally:
            self._watch.undo()
        with _closing_if_it_fails(episode.start):
            returned = self._reset(**keywords)
        episode.last_returned = pickle.dumps(returned[:1])
        self._episode = episode
        return returned

    def step(self, action: Any) -> Any:
        """
        Step the environment.

        :param action: the action
        :return: what it returns
        """
        episode, self._episode = self._episode, None
        if episode is None:
            return self._step(action)
        episode.actions.append(copy.deepcopy(action))
        with _closing_if_it_fails(episode.start):
            returned = self._step(action)
        episode.last_returned = pickle.dumps(returned[:4])
        self._episode = episode
        return returned

    def close(self) -> Any:
        """
        Close the environment.

        :return: what its ``close`` returns
        """
        self._forget()
        return self._close()

    @property
    def length(self) -> float:
        """Number of steps since the last reset; infinity if that was not written down."""
        return np.inf if self._episode is None else len(self._episode.actions)

    def replay(self) -> _Env:
        """
        Play the episode so far again.

        :return: a copy of the environment in its present state
        :raises WrongEpisodeError: if it is in another state
        """
        episode = self._episode
        if episode is None:
            raise WrongEpisodeError(self._obstacle)
        twin = _copy_of(episode.start)
        with _closing_if_it_fails(twin):
            self._play(episode, twin)
        return twin

    def _play(self, episode: _Episode, twin: _Env) -> None:
        returned: tuple[Any, ...] = twin.reset(**copy.deepcopy(episode.keywords))[:1]
        for action in copy.deepcopy(episode.actions):
            returned = twin.step(action)[:4]
        with self.simulator.unwatched():
            state = _visible_state(self._root)
        if pickle.dumps(returned) != episode.last_returned or _visible_state(twin) != state:
            raise WrongEpisodeError(
                f"came to another state when {len(episode.actions)} steps were taken again in a copy. Something else than "
                "resets and steps moves it, such as another random generator, the clock, or attributes set from outside.\n"
                f"{WAYS_OUT}"
            )

    def probe(self) -> Any:
        """
        Compare a new copy with one that has been played before.

        :return: an observation as the environment returns it
        :raises UnbranchableEnvError: if the environment cannot be copied, or its copy plays another episode
        :raises BranchError: if it raises
        """
        env = self.simulator.env
        try:
            self._look_for_shared_variables()
            with _closing(self._copy()) as twin:
                played = Simulator(twin)
                example = _compare_some_episodes(played, env)
            self.simulator.notice.effects += played.notice.effects
        except UnbranchableEnvError as error:
            raise UnbranchableEnvError(f"{env} {CANNOT_REPLAY} {error}\n{WAYS_OUT}") from error.__cause__
        except ResetError:
            raise
        except Exception as error:
            raise failed_probe(env, error, " in a copy") from error
        return example

    def _look_for_shared_variables(self) -> None:
        simulator = self.simulator
        with simulator.unwatched():
            variable = HiddenState(simulator.root, simulator.attributes).first
        if variable is not None:
            raise UnbranchableEnvError(
                f"{variable} may change with steps, and copies of the environment share it. Keep it in an attribute, as "
                "self.name."
            )

    def _copy(self) -> _Env:
        with self.simulator.unwatched():
            twin = _copy_of(self._root, {id(self): self})
        for name in _SHADOWED:
            vars(twin).pop(name, None)
        return twin


def _unrecorded(root: _Env) -> Recorder:
    """Return the recorder of an environment that is being unpickled: it gets its simulator from ``Recorder.of``."""
    recorder = Recorder.__new__(Recorder)
    recorder._begin(root, *(partial(getattr(type(root), name), root) for name in _SHADOWED))
    recorder._stand_in = StandIn(root, {name: getattr(recorder, name) for name in _SHADOWED})
    return recorder


register_builtin(Recorder, CONSTANT)


def _copy_of(env: _Env, memo: dict[int, Any] | None = None) -> _Env:
    try:
        twin = copy.deepcopy(env, memo)
    except Exception as error:
        raise UnbranchableEnvError(f"copy.deepcopy raised {type(error).__name__}: {error}") from error
    core, generator = core_of(twin), core_of(env).np_random
    # What is copied by the arguments of its constructor begins with a generator of its own. Others keep the one they share.
    if repr(core.np_random.bit_generator.state) != repr(generator.bit_generator.state):
        core.np_random = copy.deepcopy(generator)
    if core.render_mode == "human":
        core.render_mode = None
    return twin


def close_copy(twin: _Env) -> None:
    """
    Close a copy of an environment.

    :param twin: the copy
    :raises BranchError: if it raises
    """
    # What is drawn to is closed for all: a copy that has it from its original leaves it to that.
    if any(getattr(core_of(twin), name, None) is not None for name in _CANVASES):
        return
    try:
        twin.close()
    except Exception as error:
        raise BranchError(f"{twin} raised {type(error).__name__} when a copy of it was closed: {error}") from error


@contextmanager
def _closing_if_it_fails(twin: _Env) -> Iterator[None]:
    try:
        yield
    except BaseException:
        # What went wrong first tells more.
        with suppress(BranchError):
            close_copy(twin)
        raise


@contextmanager
def _closing(twin: _Env) -> Iterator[_Env]:
    with _closing_if_it_fails(twin):
        yield twin
    close_copy(twin)


def _compare_some_episodes(played: Simulator, original: _Env) -> Any:
    reset_to_probe(original, played.root)
    played.try_actions(copy_of_space(played.env.action_space), _PROBE_STEPS, seed=0)
    start = time.perf_counter()
    for seed in range(_PROBE_EPISODES):
        with _closing(_copy_of(played.root)) as twin:
            new = Simulator(twin)
            for simulator in (played, new):
                reset_to_probe(original, simulator.root)
            example = _compare_episodes(played, new, seed)
        if time.perf_counter() - start > _PROBE_SECONDS:
            break
    return example


def _compare_episodes(played: Simulator, new: Simulator, seed: int) -> Any:
    """Play the beginning of an episode in an environment and in a copy of it; return an observation."""
    action_space = copy_of_space(played.env.action_space)
    (once, example), (again, _) = (simulator.try_actions(action_space, _PROBE_STEPS, seed) for simulator in (played, new))
    if (name := difference(once, again)) is not None:
        raise UnbranchableEnvError(
            f"with the same actions, and the same random numbers from the reset on, a new copy returned other {name} than one "
            "that had been played before. Some of its state outlives a reset and is not copied by copy.deepcopy, or it draws "
            "from np.random.default_rng() without a seed or the like, where it should use self.np_random."
        )
    if _visible_state(played.root) != _visible_state(new.root):
        raise UnbranchableEnvError(
            "attributes of a new copy had other values than those of one that had been played before: copy.deepcopy leaves "
            "them out, and they outlive a reset."
        )
    return example


def _visible_state(root: _Env) -> bytes:
    """Describe the random generator, and the attributes of all layers that are numbers, texts or small arrays."""
    attributes = [
        sorted((name, value) for name, value in vars(layer).items() if _is_plain(value) and name != "_np_random_seed")
        for layer in layers_of(root)
    ]
    return pickle.dumps((core_of(root).np_random.bit_generator.state, attributes))


def _is_plain(value: Any) -> bool:
    return isinstance(value, _PLAIN) and getattr(value, "nbytes", 0) <= _SMALL_BYTES
