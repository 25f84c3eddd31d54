"""
Draw the main job's default run, from its committed evaluations.

``python -m sb3_hybrid_grpo --out FOLDER && python -m benchmarks.pictures.first_run FOLDER`` takes them from a run that is new.
"""

import argparse
import shutil
from collections.abc import Sequence
from pathlib import Path

from benchmarks import HERE
from benchmarks.png import save_png
from sb3_hybrid_grpo.compare import report
from sb3_hybrid_grpo.compare.folder import read_evaluations

ROWS = HERE / "results" / "first_run.csv"
FIGURE = HERE / "figures" / "first_run.png"


def draw(rows: Path, figure: Path) -> None:
    """
    Draw the learning curves of a run.

    :param rows: its ``results.csv``
    :param figure: PNG file to write
    """
    evaluations = read_evaluations(rows)
    save_png(report.draw_curves(report.curves_by_algorithm(evaluations), evaluations[0].env), figure)


def main(argv: Sequence[str] | None = None) -> None:
    """
    Draw.

    :param argv: arguments of the command line, ``sys.argv`` by default
    """
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, nargs="?", help="where the main job has left its results")
    options = parser.parse_args(argv)
    if options.folder:
        shutil.copy(options.folder / "results.csv", ROWS)
    draw(ROWS, FIGURE)


if __name__ == "__main__":
    main()
