"""
The Arcade Learning Environment with all of its state.

Two things are missing from the states that it clones itself. One is the action that sticky actions repeat. The other is
whether the last frame was cut short, as when a game builds up its screen (after each reset of Qbert and Tetris): a state that
is restored over a frame cut short goes on in the wrong place of the picture, and may write beyond it.
"""

import re
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from ale_py import Action, ALEInterface, ALEState

from sb3_hybrid_grpo.common import UnbranchableEnvError

# Found by trying all games. Their frames can be cut short at any time, or leave lines undrawn that show an older picture, or
# (Double Dunk) a reset depends on what the emulator does not save, or (Miniature Golf, Pitfall II) the emulator reads what it
# saved as something else.
_NOT_RESTORABLE = (
    "air_raid",
    "berzerk",
    "double_dunk",
    "miniature_golf",
    "pitfall2",
    "tic_tac_toe_3d",
    "trondead",
    "video_checkers",
    "video_chess",
    "yars_revenge",
)
_PROBABILITY = "repeat_action_probability"
_NO_OPERATION = Action.NOOP, 1.0
_TAPE_LENGTH = 1024
_MAX_HISTORY = 1000
_MAX_RESETS = 3
# The emulator draws two pictures in turn. What a frame leaves undrawn, as in Amidar after a reset, shows an older one.
_FRAMES_UNTIL_DRAWN = 2
# A frame is cut short after 25,000 instructions of two cycles or more, and 20,000 cycles make a picture. The cycles are
# counted from the last frame that was not begun after such a cut.
_CYCLES_OF_A_CUT_FRAME = 50_000

_Event = tuple[Callable[..., Any], tuple[Any, ...]]


class _Tape:
    """Random numbers of the ALE, as far as they matter: whether it takes a new action or repeats the last one."""

    def __init__(self, generator: np.random.MT19937, probability: float) -> None:
        # Every second number is for the other player.
        self.is_taken: list[bool] = (generator.random_raw(2 * _TAPE_LENGTH)[::2] / 2**32 >= probability).tolist()
        self._generator = generator
        self._probability = probability
        self._next: _Tape | None = None

    def next(self) -> "_Tape":
        if self._next is None:
            self._next = _Tape(self._generator, self._probability)
        return self._next


class _State(NamedTuple):
    anchor: ALEState | None
    history: tuple[_Event, ...]
    last: tuple[Any, float]
    tape: _Tape
    position: int


class RestorableALE(ALEInterface):
    """
    An ``ALEInterface`` that behaves like the original and can be saved and restored exactly.

    Which actions are sticky is decided here, with the random numbers that the emulator would draw. A state after a frame that
    was cut short is saved as an earlier one and what happened since.
    """

    def __init__(self) -> None:
        super().__init__()
        self._probability = 0.0
        self._last: tuple[Any, float] = _NO_OPERATION
        self._tape = _Tape(np.random.MT19937(0), 0.0)
        self._position = 0
        self._anchor: ALEState | None = None
        self._history: list[_Event] = []
        self._is_whole = False

    @classmethod
    def take_over(cls, env: Any) -> None:
        """
        Replace the interface of an environment, which goes on as it would have.

        :param env: an ``ale_py.AtariEnv``
        :raises UnbranchableEnvError: if the game is one that cannot be restored, or the state of the original cannot be told
        """
        original = env.ale
        if isinstance(original, cls):
            return
        if env._game in _NOT_RESTORABLE:
            raise UnbranchableEnvError(f"the emulator does not save the whole state of {env._game}")
        ale = cls()
        ale._probability = original.getFloat(_PROBABILITY)
        for name in ("random_seed", "max_num_frames_per_episode"):
            ale.setInt(name, original.getInt(name))
        for name in ("display_screen", "sound", "sound_obs"):
            ale.setBool(name, original.getBool(name))
        env.ale = ale
        try:
            env.load_game()
            ale._imitate(original)
        except BaseException:
            env.ale = original
            raise

    def _imitate(self, original: ALEInterface) -> None:
        state = original.cloneState(include_rng=True)
        if not self._resets_to(original.cloneState().serialize()):
            if not _is_whole(state):
                raise UnbranchableEnvError("the emulator is in the middle of a frame: step the environment, then try again")
            self._complete_frame()
            self.restoreState(state)
            self._anchor, self._history = state, []
        self._read_generator(state)
        self._find_last_action(original)

    def _resets_to(self, state: bytes) -> bool:
        for _ in range(_MAX_RESETS):
            if self.cloneState().serialize() == state:
                return True
            self.reset_game()
        return False

    def _read_generator(self, state: ALEState) -> None:
        text = re.findall(rb"(?:\d+ ){600,}\d+", state.serialize())[-1]
        words = np.array(text.split(), dtype=np.uint32)
        # The C++ standard prints the last 624 words, all of which are used up; GNU's library adds a position.
        position = int(words[624]) if len(words) > 624 else 624
        generator = np.random.MT19937(0)
        generator.state = {"bit_generator": "MT19937", "state": {"key": words[:624], "pos": position}}
        self._tape, self._position = _Tape(generator, self._probability), 0

    def _find_last_action(self, original: ALEInterface) -> None:
        """Find out what the original repeats, as far as it is going to: try the next frames with each action."""
        n_repeats = self._tape.is_taken.index(True)
        start = self.save()
        expected = _frames(original, n_repeats)
        for action in self.getLegalActionSet():
            candidate = start._replace(last=(action, 1.0))
            self.restore(candidate)
            frames = _frames(self, n_repeats)
            self.restore(candidate)
            if frames == expected:
                return
        raise UnbranchableEnvError("the action that the emulator repeats cannot be told: reset the environment first")

    def save(self) -> _State:
        """
        Save everything.

        :return: the state
        """
        state = self.cloneState()
        self._is_whole = _is_whole(state)
        if self._is_whole and self.getEpisodeFrameNumber() >= _FRAMES_UNTIL_DRAWN:
            self._anchor, self._history = state, []
        return _State(self._anchor, tuple(self._history), self._last, self._tape, self._position)

    def restore(self, state: _State) -> None:
        """
        Bring everything back.

        :param state: what ``save`` returned
        """
        if state.anchor is not None:
            self._complete_frame()
            self.restoreState(state.anchor)
        self._is_whole = state.anchor is not None and not state.history
        for method, arguments in state.history:
            method(self, *arguments)
        self._anchor, history, self._last, self._tape, self._position = state
        self._history = list(history)

    def _complete_frame(self) -> None:
        while not (self._is_whole or _is_whole(self.cloneState())):
            if self.game_over():
                super().reset_game()
            super().act(Action.NOOP)

    def _do(self, method: Callable[..., Any], *arguments: Any) -> Any:
        self._history.append((method, arguments))
        self._is_whole = False
        return method(self, *arguments)

    def act(self, action: Any, paddle_strength: float = 1.0) -> int:
        """
        Emulate a frame with this action, or with the last one.

        :param action: the action
        :param paddle_strength: how far the paddle goes
        :return: the reward
        """
        if self._position == _TAPE_LENGTH:
            self._tape, self._position = self._tape.next(), 0
        if self._tape.is_taken[self._position]:
            self._last = action, paddle_strength
        self._position += 1
        if len(self._history) >= _MAX_HISTORY:
            self.save()
        reward: int = self._do(ALEInterface.act, *self._last)
        return reward

    def reset_game(self) -> None:
        """Begin an episode, with no action to repeat."""
        self._do(ALEInterface.reset_game)
        self._last = _NO_OPERATION

    def loadROM(self, rom_file: Any) -> None:
        """
        Load a game, which seeds the random numbers.

        :param rom_file: its path
        """
        super().setFloat(_PROBABILITY, 0.0)
        self._anchor, self._history = None, []
        self._do(ALEInterface.loadROM, rom_file)
        self._read_generator(self.cloneState(include_rng=True))
        self._last = _NO_OPERATION

    def setMode(self, mode: int) -> None:
        """
        Choose a variant of the game.

        :param mode: its number
        """
        self._do(ALEInterface.setMode, mode)

    def setDifficulty(self, difficulty: int) -> None:
        """
        Choose how hard the game is.

        :param difficulty: its number
        """
        self._do(ALEInterface.setDifficulty, difficulty)

    def getFloat(self, key: str) -> float:
        """
        Return a setting as the original does.

        :param key: its name
        :return: its value
        """
        return self._probability if key == _PROBABILITY else super().getFloat(key)


def _is_whole(state: ALEState) -> bool:
    """Tell whether the last frame was surely not cut short."""
    serialized = state.serialize()
    at = serialized.index(b"System") + len(b"System")
    return int.from_bytes(serialized[at : at + 4], "little") < _CYCLES_OF_A_CUT_FRAME


def _frames(ale: ALEInterface, n_frames: int) -> list[tuple[int, bytes]]:
    return [(ale.act(Action.NOOP), ale.cloneState().serialize()) for _ in range(n_frames)]
