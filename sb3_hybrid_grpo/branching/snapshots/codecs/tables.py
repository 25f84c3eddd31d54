"""Codecs of pandas' tables, by names: pandas is imported by whoever uses it."""

from collections.abc import Iterable
from typing import Any

from sb3_hybrid_grpo.branching.snapshots.codecs.generic import AttributesCodec, CompositeCodec, SlotsCodec
from sb3_hybrid_grpo.branching.snapshots.registry import CONSTANT, ReferencesCodec, register_builtin


class _ExtensionArrayCodec(CompositeCodec):
    """Codec of pandas' own arrays, each of which is made around one of NumPy's and stays with it."""

    def __init__(self) -> None:
        super().__init__([ReferencesCodec(self._content), AttributesCodec(constant=("_cache",))])

    @staticmethod
    def _content(obj: Any) -> Iterable[Any]:
        return (obj._ndarray,)


# A table is a Python object around a manager, which arranges blocks of equal columns and names rows and columns by indices.
register_builtin(
    "pandas._libs.internals.BlockManager",
    SlotsCodec(("blocks", "axes", "_blknos", "_blklocs", "_known_consolidated", "_is_consolidated")),
)
register_builtin("pandas._libs.internals.Block", SlotsCodec(("values", "_mgr_locs", "refs")))
register_builtin("pandas.core.indexes.base.Index", AttributesCodec(constant=("_cache", "_id", "_references")))
register_builtin("pandas._libs.arrays.NDArrayBacked", _ExtensionArrayCodec())
for _constant in (
    "pandas._libs.internals.BlockPlacement",
    "pandas._libs.internals.BlockValuesRefs",
    "pandas._libs.interval.Interval",
    "pandas._libs.missing.NAType",
    "pandas._libs.tslibs.nattype._NaT",
    "pandas._libs.tslibs.offsets.BaseOffset",
    "pandas._libs.tslibs.period._Period",
    "pandas._libs.tslibs.timedeltas._Timedelta",
    "pandas._libs.tslibs.timestamps._Timestamp",
    "pandas.core.dtypes.base.ExtensionDtype",
    "pyarrow.lib.Array",
    "pyarrow.lib.ChunkedArray",
):
    register_builtin(_constant, CONSTANT)
