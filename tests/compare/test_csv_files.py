import pytest

from sb3_hybrid_grpo.compare import csv_files
from sb3_hybrid_grpo.compare.csv_files import append_row, read_rows, write_rows


def test_rows_are_read_as_they_were_written(tmp_path):
    path = tmp_path / "folder" / "rows.csv"
    assert read_rows(path) == []
    append_row(path, {"name": "a,\n«b»", "number": 1})
    append_row(path, {"number": 2.5, "name": "c"})
    rows = [{"name": "a,\n«b»", "number": "1"}, {"name": "c", "number": "2.5"}]
    assert read_rows(path) == rows
    other = path.with_name("other.csv")
    write_rows(other, list(rows[0]), rows)
    assert other.read_bytes() == path.read_bytes()


def test_rows_of_other_columns_leave_the_file_as_it_was(tmp_path):
    path = tmp_path / "rows.csv"
    write_rows(path, ["a"], [{"a": 1}])
    with pytest.raises(ValueError, match="b"):
        append_row(path, {"a": 1, "b": 2})
    with pytest.raises(ValueError, match="b"):
        write_rows(path, ["a"], [{"a": 2}, {"a": 1, "b": 2}])
    assert read_rows(path) == [{"a": "1"}]


def test_processes_that_begin_a_file_together(tmp_path, monkeypatch):
    path = tmp_path / "rows.csv"
    append_row(path, {"name": "a", "number": 1})
    monkeypatch.setattr(csv_files, "_columns", lambda path: [])
    append_row(path, {"name": "b", "number": 2})
    assert path.read_text(encoding="utf-8").count("name,number") == 2
    assert read_rows(path) == [{"name": "a", "number": "1"}, {"name": "b", "number": "2"}]
