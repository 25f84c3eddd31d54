"""The example notebooks run from top to bottom."""

import json
from pathlib import Path

import matplotlib.pyplot as plt
import pytest

from sb3_hybrid_grpo.branching.snapshots import registry

NOTEBOOKS = sorted((Path(__file__).parents[1] / "examples").glob("*.ipynb"))


def code_cells(path):
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    return ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]


def test_there_are_notebooks():
    assert len(NOTEBOOKS) == 4 and all(map(code_cells, NOTEBOOKS))


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebooks(path, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(registry, "_user_registry", {})
    monkeypatch.setattr(plt, "show", plt.close)
    namespace = {"__name__": path.stem}
    for cell in code_cells(path):
        exec(compile(cell, str(path), "exec"), namespace)
    assert EXPECTED[path.stem] in capsys.readouterr().out


EXPECTED = {
    "bring_your_own_simulator": "exact by snapshots",
    "branches_of_several_steps": "simulator steps per committed step",
    "compare_with_ppo": "16384 committed steps",
    "diagnose_a_bad_run": "Healthy",
}
"""Something that each of them prints if all is well."""
