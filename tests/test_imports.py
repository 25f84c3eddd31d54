"""The floors of the house: what a module imports lies below it, and rooms are entered by their door."""

import ast
import re
from itertools import combinations
from pathlib import Path

import pytest

import sb3_hybrid_grpo

PACKAGE = Path(sb3_hybrid_grpo.__file__).parent
FLOORS = [
    ["common"],
    ["estimation"],
    ["branching.snapshots"],
    ["branching.surroundings"],
    ["branching.batched"],
    ["branching.simulator"],
    ["branching.copies", "branching.models", "branching.functional"],
    ["branching.choice"],
    ["branching.vec_env"],
    ["branching"],
    ["policies"],
    ["rollout"],
    ["diagnostics"],
    ["hybrid_grpo"],
    ["grpo"],
    ["check"],
    ["tracking"],
    ["moved"],
    [""],
    ["zoo", "hyperparams", "doctor", "compare"],
    ["__main__"],
]
"""Rooms and single modules from the ground up. Those of one floor do not know each other."""

MAX_LINES = 400
MAX_MODULES = 12
MODULES = sorted(PACKAGE.rglob("*.py"))
ENDINGS = re.compile(r"(ators?|ations?|ates?|ings?|able|ions?|ors?|ers?|e?s|ed)$")


def module_name(path):
    return ".".join(path.relative_to(PACKAGE).with_suffix("").parts).removesuffix("__init__").rstrip(".")


def place_of(module):
    """Return the floor of a module and its room there: the longest entry that it begins with."""
    places = [
        (len(room), floor, room)
        for floor, rooms in enumerate(FLOORS)
        for room in rooms
        if module == room or (room and module.startswith(f"{room}."))
    ]
    return max(places)[1:] if places else None


def is_module(name):
    path = PACKAGE / Path(*name.split("."))
    return path.with_suffix(".py").exists() or (path / "__init__.py").exists()


def own_imports(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "sb3_hybrid_grpo":
            base = node.module.partition(".")[2]
            for alias in node.names:
                as_module = f"{base}.{alias.name}".lstrip(".")
                yield base, (as_module if is_module(as_module) else base)


@pytest.mark.parametrize("path", MODULES, ids=module_name)
def test_imports_point_down_and_through_doors(path):
    module = module_name(path)
    place = place_of(module)
    assert place is not None, f"{module} lies on no floor"
    floor, room = place
    for door, imported in own_imports(path):
        imported_floor, imported_room = place_of(imported)
        if imported_room == room:
            continue
        assert imported_floor < floor, f"{module} must not import {imported}"
        assert door in (imported_room, imported_room.rpartition(".")[0]), f"{module} imports {imported}, not its room"


def test_branching_knows_nothing_of_learning():
    for path in (PACKAGE / "branching").rglob("*.py"):
        for _, imported in own_imports(path):
            assert imported.split(".")[0] in ("common", "branching"), (path, imported)


def test_the_floors_can_fail():
    assert place_of("grpo.algorithm") > place_of("rollout.buffers") > place_of("branching.simulator.env")
    assert place_of("branching.snapshots.codecs.mujoco") == place_of("branching.snapshots")
    assert place_of("cellar.wine") is None


@pytest.mark.parametrize("path", MODULES, ids=module_name)
def test_files_are_short(path):
    assert len(path.read_text().splitlines()) <= MAX_LINES


@pytest.mark.parametrize("folder", sorted({path.parent for path in MODULES}), ids=lambda folder: folder.name)
def test_folders_are_small(folder):
    assert len([path for path in folder.glob("*.py") if path.name != "__init__.py"]) <= MAX_MODULES


def test_no_two_modules_differ_in_an_ending_alone():
    names = {path.stem for path in MODULES if path.stem != "__init__"}
    for first, second in combinations(sorted(names), 2):
        assert ENDINGS.sub("", first) != ENDINGS.sub("", second), (first, second)
