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


@pytest.mark.parametrize("is_short", [True, pytest.param(False, marks=pytest.mark.slow)], ids=["short", "whole"])
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebooks(path, is_short, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(registry, "_user_registry", {})
    monkeypatch.setattr(plt, "show", plt.close)
    namespace = {"__name__": path.stem}
    for cell in shortened(path) if is_short else code_cells(path):
        exec(compile(cell, str(path), "exec"), namespace)
    expected = EXPECTED_OF_SHORT if is_short else EXPECTED
    assert expected[path.stem] in capsys.readouterr().out


def shortened(path):
    """Return the cells with fewer steps of training."""
    cells = code_cells(path)
    for steps, fewer in FEWER_STEPS[path.stem].items():
        assert any(steps in cell for cell in cells), f"the notebook has no {steps} any more"
        cells = [cell.replace(steps, fewer) for cell in cells]
    return cells


FEWER_STEPS = {
    "bring_your_own_simulator": {"learn(4096)": "learn(1024)"},
    "branches_of_several_steps": {"learn(8_192)": "learn(2_048)", "4 * 2048": "2048"},
    "compare_with_ppo": {"TIMESTEPS = 16_384": "TIMESTEPS = 4_096"},
    "diagnose_a_bad_run": {"20_480": "6_144"},
}
EXPECTED = {
    "bring_your_own_simulator": "exact by snapshots",
    "branches_of_several_steps": "simulator steps per committed step",
    "compare_with_ppo": "16384 committed steps",
    "diagnose_a_bad_run": "Healthy",
}
"""Something that each of them prints if all is well."""

EXPECTED_OF_SHORT = EXPECTED | {"compare_with_ppo": "4096 committed steps"}
