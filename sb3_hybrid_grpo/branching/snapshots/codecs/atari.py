"""Codecs of Atari games. The emulator is imported with the first game: most users have none."""

from typing import Any

from sb3_hybrid_grpo.branching.snapshots.codecs.generic import AttributesCodec
from sb3_hybrid_grpo.branching.snapshots.registry import LeafCodec, register_builtin


class _AtariEnvCodec(AttributesCodec):
    def save(self, obj: Any) -> dict[str, Any]:
        from sb3_hybrid_grpo.branching.snapshots.codecs.restorable_ale import RestorableALE

        RestorableALE.take_over(obj)
        return super().save(obj)


register_builtin(
    "ale_py.env.AtariEnv", _AtariEnvCodec(constant=("metadata", "_metadata", "_ezpickle_args", "_ezpickle_kwargs"))
)
register_builtin(
    "sb3_hybrid_grpo.branching.snapshots.codecs.restorable_ale.RestorableALE",
    LeafCodec(lambda ale: ale.save(), lambda ale, state: ale.restore(state)),
)
