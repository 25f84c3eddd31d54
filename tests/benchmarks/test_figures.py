"""Figures are small, and the same from the same rows."""

import os
from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure

from benchmarks import HERE, png
from benchmarks.png import LIMIT, save_png
from benchmarks.speed import throughput_report
from sb3_hybrid_grpo.compare.csv_files import read_rows

COMMITTED = sorted(HERE.rglob("*.png"))


def test_figures_are_small_and_shown():
    paths = [HERE.parent / "README.md", HERE / "RESULTS.md", *(HERE.parent / "docs").rglob("*.md")]
    pages = [(page, page.read_text(encoding="utf-8")) for page in paths]
    assert COMMITTED
    for figure in COMMITTED:
        assert figure.stat().st_size < LIMIT, figure
        assert any(f"]({Path(os.path.relpath(figure, page.parent)).as_posix()})" in text for page, text in pages), (
            f"{figure} is not shown"
        )


def test_same_rows_give_same_bytes(tmp_path):
    profile = read_rows(throughput_report.RESULTS / "profile.csv")
    first, second = tmp_path / "first.png", tmp_path / "second.png"
    throughput_report.draw_profile(profile, first)
    throughput_report.draw_profile(profile, second)
    assert first.read_bytes() == second.read_bytes()
    profile[0] = profile[0] | {"update_us": "1"}
    throughput_report.draw_profile(profile, second)
    assert first.read_bytes() != second.read_bytes()


def test_figures_are_drawn_as_finely_as_they_may(tmp_path, monkeypatch):
    figure = Figure(figsize=(2, 2))
    figure.subplots().imshow(np.random.default_rng(0).random((50, 50)))
    path = tmp_path / "noise.png"
    save_png(figure, path)
    fine = path.stat().st_size
    monkeypatch.setattr(png, "LIMIT", fine)
    save_png(figure, path)
    assert 0 < path.stat().st_size < fine
    monkeypatch.setattr(png, "LIMIT", 100)
    with pytest.raises(ValueError, match=r"noise.png would have [\d,]+ bytes and may have 100:"):
        save_png(figure, path)
