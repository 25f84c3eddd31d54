"""Pictures of runs and of commands."""

import numpy as np
import pytest
from PIL import Image

from benchmarks.pictures import film, first_run, screens
from sb3_hybrid_grpo.compare import csv_files
from sb3_hybrid_grpo.compare.training import Evaluation

STATIC = screens.FOLDER


def test_screens_show_what_was_typed_and_printed():
    picture = screens.screen("python -m sb3_hybrid_grpo.check CartPole-v1", "line <one>\n  line two\n")
    assert picture.startswith("<svg") and "line&#160;&lt;one&gt;" in picture and "CartPole-v1" in picture
    assert picture == screens.screen("python -m sb3_hybrid_grpo.check CartPole-v1", "line <one>\n  line two\n")


@pytest.mark.parametrize("name", ["check", "doctor"])
def test_committed_screens_are_of_these_commands(name):
    assert f"sb3_hybrid_grpo.{name}" in (STATIC / f"{name}.svg").read_text(encoding="utf-8")


def test_figure_of_the_first_run_is_drawn_from_its_rows(tmp_path, monkeypatch):
    (tmp_path / "run").mkdir()
    points = [
        Evaluation(algo, "Env-v0", 0, step, step, 1.0, 1.0, 5.0, 0.0) for algo in ("ppo", "hybrid_grpo") for step in (0, 9)
    ]
    rows = [point._asdict() for point in points]
    csv_files.write_rows(tmp_path / "run" / "results.csv", Evaluation._fields, rows)
    monkeypatch.setattr(first_run, "ROWS", tmp_path / "first_run.csv")
    monkeypatch.setattr(first_run, "FIGURE", tmp_path / "first_run.png")
    first_run.main([str(tmp_path / "run")])
    drawn = (tmp_path / "first_run.png").read_bytes()
    first_run.main([])
    assert (tmp_path / "first_run.png").read_bytes() == drawn


def test_films_stand_side_by_side_and_are_small(tmp_path, monkeypatch):
    random = np.random.default_rng(0)
    last = Evaluation("ppo", "HalfCheetah-v5", 0, 10, 10, 1.0, 1.0, 5.0, 0.0)

    def picture():
        return film.captioned(random.integers(256, size=(film.HEIGHT, film.WIDTH, 3), dtype=np.uint8), last, distance=1.5)

    pairs = [(picture(), picture()) for _ in range(3)]
    film.save(pairs, tmp_path / "film.gif")
    with Image.open(tmp_path / "film.gif") as saved:
        assert (saved.n_frames, saved.size) == (3, (2 * film.WIDTH, film.HEIGHT + film.CAPTION))
    fine = (tmp_path / "film.gif").stat().st_size
    monkeypatch.setattr(film, "LIMIT", fine)
    film.save(pairs, tmp_path / "film.gif")
    assert (tmp_path / "film.gif").stat().st_size < fine
    monkeypatch.setattr(film, "LIMIT", 100)
    with pytest.raises(ValueError, match="film fewer steps"):
        film.save(pairs, tmp_path / "film.gif")
