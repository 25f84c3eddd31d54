"""Tables of pandas come back in place, and are not copied while they do not change."""

import numpy as np
import pytest

from sb3_hybrid_grpo.branching import Snapshot
from sb3_hybrid_grpo.branching.snapshots.codecs import arrays
from sb3_hybrid_grpo.branching.snapshots.recorder import Recorder

pd = pytest.importorskip("pandas")
pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::pandas.errors.SettingWithCopyWarning")


class Holder:
    def __init__(self, **attributes):
        vars(self).update(attributes)


def table():
    return pd.DataFrame(
        {
            "price": np.arange(5.0),
            "volume": np.arange(5),
            "name": list("abcde"),
            "time": pd.date_range("2020-01-01", periods=5, tz="UTC"),
            "kind": pd.Categorical(list("xyxyx")),
            "whole": pd.array([1, None, 3, 4, 5], dtype="Int64"),
            "delta": pd.to_timedelta(range(5), unit="s"),
        },
        index=pd.date_range("2021-01-01", periods=5, freq="D"),
    )


def row_by_label(self):
    self.loc[self.index[1]] = self.loc[self.index[2]]


CHANGES = {
    "one value": lambda self: self.iloc.__setitem__((2, 0), 99.0),
    "a value of another type": lambda self: self.iloc.__setitem__((2, 1), 0.5),
    "a column": lambda self: self.__setitem__("price", 3.0),
    "a new column": lambda self: self.__setitem__("new", 3.0),
    "an inserted column": lambda self: self.insert(0, "new", 3.0),
    "a column less": lambda self: self.pop("volume"),
    "a row": row_by_label,
    "a new row": lambda self: self.loc.__setitem__(pd.Timestamp("2022-01-01"), self.iloc[0]),
    "a row less": lambda self: self.drop(self.index[0], inplace=True),
    "a category": lambda self: self.loc.__setitem__((self.index[0], "kind"), "y"),
    "a time": lambda self: self.loc.__setitem__((self.index[0], "time"), pd.Timestamp("2000-01-01", tz="UTC")),
    "a missing number": lambda self: self.loc.__setitem__((self.index[0], "whole"), pd.NA),
    "sorted": lambda self: self.sort_values("price", ascending=False, inplace=True),
    "names": lambda self: setattr(self, "columns", list("ABCDEFG")),
    "other index": lambda self: self.reset_index(drop=True, inplace=True),
    "name of the index": lambda self: setattr(self.index, "name", "day"),
    "attributes": lambda self: self.attrs.update(source="x"),
    "cached column": lambda self: self["price"].iloc.__setitem__(0, 7.0),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_tables(change):
    content = table()
    root = Holder(table=content, again=content)
    snapshot = Snapshot(root)
    for _ in range(2):
        change(content)
        snapshot.restore()
        pd.testing.assert_frame_equal(content, table(), check_freq=True)
        assert content.index.name is None and not content.attrs
        assert root.table is root.again is content
    change(content)
    expected = table()
    change(expected)
    pd.testing.assert_frame_equal(content, expected)


@pytest.mark.parametrize(
    "make, change",
    [
        (lambda: pd.Series([1.0, 2.0], name="a"), lambda self: self.iloc.__setitem__(0, 5.0)),
        (lambda: pd.Series([1.0, 2.0], name="a"), lambda self: self.update(pd.Series([7.0]))),
        (lambda: pd.Series([1.0, 2.0], name="a"), lambda self: setattr(self, "name", "b")),
        (lambda: pd.Series([1.0, 2.0], index=["x", "y"]), lambda self: self.__setitem__("z", 3.0)),
        (lambda: pd.Series(["a", "b"]), lambda self: self.iloc.__setitem__(0, "c")),
    ],
)
def test_series(make, change):
    content = make()
    snapshot = Snapshot(Holder(series=content))
    for _ in range(2):
        change(content)
        snapshot.restore()
        pd.testing.assert_series_equal(content, make())


INDICES = {
    "range": lambda: pd.RangeIndex(3),
    "strings": lambda: pd.Index(["a", "b"]),
    "several levels": lambda: pd.MultiIndex.from_product([["a", "b"], [1, 2]]),
    "periods": lambda: pd.period_range("2020", periods=2, freq="M"),
    "intervals": lambda: pd.interval_range(0, 3),
}


@pytest.mark.parametrize("make", INDICES.values(), ids=INDICES)
def test_indices(make):
    index = make()
    snapshot = Snapshot(Holder(index=index))
    index.names = [f"name {level}" for level in range(index.nlevels)]
    snapshot.restore()
    assert index.equals(make()) and list(index.names) == list(make().names)


def test_other_objects_of_pandas():
    content = [pd.Timestamp("2020-01-01"), pd.Timedelta(1), pd.NaT, pd.NA, pd.Period("2020"), pd.Interval(0, 1)]
    Snapshot(Holder(content=content, offset=pd.offsets.Hour(), dtype=pd.CategoricalDtype(["a"]))).restore()


def test_numpy_views_stay_views():
    content = pd.DataFrame({"price": np.arange(3.0)})
    prices = content["price"].to_numpy()
    snapshot = Snapshot(Holder(table=content, prices=prices))
    content.iloc[0, 0] = 9.0
    snapshot.restore()
    assert prices[0] == 0.0


def test_large_table_is_copied_once():
    content = pd.DataFrame(np.zeros((arrays.LARGE // 8, 2)))
    recorder = Recorder(content)
    snapshots = [recorder.take() for _ in range(3)]
    copies = {
        id(state[0].memory)
        for s in snapshots
        for state in s.states
        if isinstance(state, tuple) and isinstance(state[0], arrays._Copy)
    }
    assert len(copies) == 1
