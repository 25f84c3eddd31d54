"""Episodes written down as they are played, to be played again in copies of the environment."""

import copy
import pickle
import time
import weakref
from typing import Any, TypeAlias

import gymnasium as gym
import numpy as np

from sb3_hybrid_grpo.branching.hidden import HiddenState
from sb3_hybrid_grpo.branching.outcomes import identical
from sb3_hybrid_grpo.branching.randomness import Watch
from sb3_hybrid_grpo.branching.simulator import Simulator
from sb3_hybrid_grpo.branching.snapshot import CONSTANT, register_builtin
from sb3_hybrid_grpo.common.type_aliases import BranchError, UnbranchableEnvError

CANNOT_REPLAY = "cannot be branched by replaying episodes:"
WAYS_OUT = (
    "Ways out: (1) branch by forking the process, with brancher='fork' (Linux and macOS); (2) train without branching, with "
    "n_samples=1."
)

_PROBE_EPISODES = 4
_PROBE_STEPS = 64
_PROBE_SECONDS = 1.0
_SHADOWED = ("reset", "step")
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
    Writes down the episodes of an environment, whose ``reset`` and ``step`` it takes the place of while it has ``users``.

    :param simulator: the environment
    """

    def __init__(self, simulator: Simulator) -> None:
        self.simulator = simulator
        self.users: weakref.WeakSet[Any] = weakref.WeakSet()
        self._root = simulator.root
        self._reset, self._step = self._root.reset, self._root.step
        self._watch = Watch()
        self._episode: _Episode | None = None
        self._obstacle = "has not been reset since its steps are written down: reset it, then branch."
        # A copy would make a generator of its own.
        _ = self._root.unwrapped.np_random
        vars(self._root).update({name: getattr(self, name) for name in _SHADOWED})

    @classmethod
    def of(cls, simulator: Simulator) -> "Recorder":
        """
        Return the recorder of an environment.

        :param simulator: the environment
        :return: the one that it has, or a new one
        """
        recorder = getattr(vars(simulator.root).get("reset"), "__self__", None)
        return recorder if isinstance(recorder, cls) else cls(simulator)

    def reset(self, **keywords: Any) -> Any:
        """
        Reset the environment.

        :param keywords: arguments of its ``reset``
        :return: what it returns
        """
        self._episode = None
        if not self.users:
            for name in _SHADOWED:
                del vars(self._root)[name]
            return self._reset(**keywords)
        self._watch.start()
        try:
            episode = _Episode(self._copy(), copy.deepcopy(keywords))
        except UnbranchableEnvError as error:
            self._obstacle = f"could not be copied before its last reset: {error}\n{WAYS_OUT}"
            return self._reset(**keywords)
        finally:
            self._watch.undo()
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
        returned = self._step(action)
        episode.last_returned = pickle.dumps(returned[:4])
        self._episode = episode
        return returned

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
        return twin

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
            played = Simulator(self._copy())
            played.root.reset()
            played.try_actions(copy.deepcopy(env.action_space), _PROBE_STEPS, seed=0)
            start = time.perf_counter()
            for seed in range(_PROBE_EPISODES):
                example = _compare_episodes(played, seed)
                if time.perf_counter() - start > _PROBE_SECONDS:
                    break
            self.simulator.notice.effects += played.notice.effects
        except UnbranchableEnvError as error:
            raise UnbranchableEnvError(f"{env} {CANNOT_REPLAY} {error}\n{WAYS_OUT}") from error.__cause__
        except Exception as error:
            raise BranchError(
                f"{env} raised {type(error).__name__} when a few steps with actions sampled from its action space were tried "
                f"in a copy: {error}"
            ) from error
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


register_builtin(Recorder, CONSTANT)


def _copy_of(env: _Env, memo: dict[int, Any] | None = None) -> _Env:
    try:
        twin = copy.deepcopy(env, memo)
    except Exception as error:
        raise UnbranchableEnvError(f"copy.deepcopy raised {type(error).__name__}: {error}") from error
    # What is copied by the arguments of its constructor begins with a generator of its own.
    twin.unwrapped.np_random = copy.deepcopy(env.unwrapped.np_random)
    if twin.unwrapped.render_mode == "human":
        twin.unwrapped.render_mode = None
    return twin


def _compare_episodes(played: Simulator, seed: int) -> Any:
    """Play the beginning of an episode in an environment and in a copy of it; return an observation."""
    new = Simulator(_copy_of(played.root))
    for simulator in (played, new):
        simulator.root.reset()
    action_space = copy.deepcopy(played.env.action_space)
    (once, example), (again, _) = (simulator.try_actions(action_space, _PROBE_STEPS, seed) for simulator in (played, new))
    for name in ("observations", "rewards", "terminated", "truncated"):
        if not identical(getattr(once, name), getattr(again, name)):
            raise UnbranchableEnvError(
                f"with the same actions, and the same random numbers from the reset on, a new copy returned other {name} than "
                "one that had been played before. Some of its state outlives a reset and is not copied by copy.deepcopy, or "
                "is random beyond self.np_random."
            )
    if _visible_state(played.root) != _visible_state(new.root):
        raise UnbranchableEnvError(
            "attributes of a new copy had other values than those of one that had been played before: copy.deepcopy leaves "
            "them out, and they outlive a reset."
        )
    return example


def _visible_state(root: _Env) -> bytes:
    """Describe the random generator, and the attributes of all layers that are numbers, texts or small arrays."""
    layers = [root]
    while isinstance(layers[-1], gym.Wrapper):
        layers.append(layers[-1].env)
    attributes = [
        sorted((name, value) for name, value in vars(layer).items() if _is_plain(value) and name != "_np_random_seed")
        for layer in layers
    ]
    return pickle.dumps((root.unwrapped.np_random.bit_generator.state, attributes))


def _is_plain(value: Any) -> bool:
    return isinstance(value, _PLAIN) and getattr(value, "nbytes", 0) <= _SMALL_BYTES
