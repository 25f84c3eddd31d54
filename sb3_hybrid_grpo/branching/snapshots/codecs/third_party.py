"""Simulators that save and restore themselves, by names, and those whose own restore is not exact."""

import functools
import json
from pathlib import Path
from typing import Any, NamedTuple

from sb3_hybrid_grpo.branching.snapshots.codecs.generic import DESCRIPTIONS, AttributesCodec, RefusingCodec
from sb3_hybrid_grpo.branching.snapshots.registry import register_builtin
from sb3_hybrid_grpo.common import UnbranchableEnvError

STATEFUL_MODULES = {
    "libsumo": (
        "it simulates one world for all of the process, and SUMO's own saveState and loadState do not bring all of it back: "
        "vehicles go on with other speeds, also with --save-state.precision and --save-state.rng"
    )
}
"""Modules of C++ that are simulators themselves, without an object that could be saved, and why they cannot be restored."""


class _RetroState(NamedTuple):
    attributes: dict[str, Any]
    emulator: bytes


class _RetroCodec(AttributesCodec):
    """
    Codec of stable-retro's environments.

    The emulator saves itself. The game's variables are read from its memory again, as ``step`` did before: ``update_ram``
    keeps those that it read last, from which rewards for differences are made.
    """

    def __init__(self) -> None:
        super().__init__(constant=(*DESCRIPTIONS, "em", "data", "viewer"))

    def save(self, obj: Any) -> _RetroState:  # type: ignore[override]
        if obj.movie is not None:
            raise UnbranchableEnvError("it records a movie, and what a branch writes cannot be taken back")
        if _has_scripts(*_scenario_of(obj)):
            raise UnbranchableEnvError("the variables of its scenario's Lua scripts cannot be saved")
        return _RetroState(super().save(obj), obj.em.get_state())

    def restore(self, obj: Any, state: _RetroState) -> None:  # type: ignore[override]
        super().restore(obj, state.attributes)
        obj.em.set_state(state.emulator)
        obj.data.update_ram()

    def children(self, state: _RetroState) -> Any:  # type: ignore[override]
        return super().children(state.attributes)


def _scenario_of(env: Any) -> tuple[Any, ...]:
    """Return the game, the scenario and the kind of integration that an environment was made with."""
    arguments = env._ezpickle_args
    if len(arguments) <= 7:
        raise UnbranchableEnvError("its scenario cannot be told: pass EzPickle.__init__ all arguments, as RetroEnv does")
    return arguments[0], arguments[2], arguments[7]


@functools.cache
def _has_scripts(game: str, scenario: str | None, integration: Any) -> bool:
    from stable_retro.data import get_file_path

    name = scenario or "scenario"
    path = name if name.endswith(".json") else get_file_path(game, f"{name}.json", integration)
    return "scripts" in json.loads(Path(path).read_text(encoding="utf-8"))


register_builtin("stable_retro.retro_env.RetroEnv", _RetroCodec())
for _module, _reason in STATEFUL_MODULES.items():
    register_builtin(f"{_module}.*", RefusingCodec(_reason))
register_builtin("grid2op.Environment.baseEnv.BaseEnv", AttributesCodec())
register_builtin(
    "lightsim2grid.lightSimBackend.LightSimBackend",
    RefusingCodec("a copy of its grid model, which is all that it gives away of its state, computes other power flows"),
)
for _part in ("DoomGame", "GameState"):
    register_builtin(
        f"vizdoom.vizdoom.{_part}",
        RefusingCodec("VizDoom's own save and load do not bring everything back: pictures and rewards differ afterwards"),
    )
