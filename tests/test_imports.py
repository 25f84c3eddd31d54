"""Imports point one way, see the layers below."""

import ast
from pathlib import Path

import pytest

import sb3_hybrid_grpo

PACKAGE = Path(sb3_hybrid_grpo.__file__).parent
LAYERS = [
    {"common.type_aliases"},
    {"common.checks"},
    {
        "common.estimates",
        "common.advantages",
        "common.reward_transforms",
        "common.losses",
        "common.checkpoints",
        "common.maskable",
        "common.heads",
        "common.networks",
        "branching",
    },
    {"common.buffers"},
    {"common.sampling", "common.symptoms", "common.evaluation"},
    {"common.actors", "common.critic", "common.diagnostics", "common.rollout_transitions"},
    {"common.action_sampling", "common.branch_paths", "common.evaluators"},
    {"common.rollout_branches", "common.device_branches", "common.action_selection"},
    {"hybrid_grpo", "grpo"},
    {"", "check", "compare", "doctor", "hyperparams", "zoo", "__main__"},
]
MODULES = sorted(PACKAGE.rglob("*.py"))


def layer_of(module):
    for level, rooms in enumerate(LAYERS):
        if any(module == room or (room and module.startswith(f"{room}.")) for room in rooms):
            return level
    return None


def module_name(path):
    name = ".".join(path.relative_to(PACKAGE).with_suffix("").parts)
    return name.removesuffix("__init__").rstrip(".")


def own_imports(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "sb3_hybrid_grpo":
            base = node.module.partition(".")[2]
            for alias in node.names:
                as_module = f"{base}.{alias.name}".lstrip(".")
                yield as_module if (PACKAGE / Path(*as_module.split("."))).with_suffix(".py").exists() else base


@pytest.mark.parametrize("path", MODULES, ids=module_name)
def test_imports_point_one_way(path):
    module = module_name(path)
    if module == "common":
        assert not list(own_imports(path))
        return
    level = layer_of(module)
    assert level is not None, f"{module} belongs to no layer"
    for imported in own_imports(path):
        imported_level = layer_of(imported)
        assert imported_level is not None and imported_level <= level, f"{module} must not import {imported}"


def test_branching_knows_nothing_of_learning():
    for path in (PACKAGE / "branching").rglob("*.py"):
        for imported in own_imports(path):
            assert imported == "common.type_aliases" or imported.startswith("branching"), (path, imported)


def test_the_check_can_fail():
    assert layer_of("grpo.grpo") > layer_of("common.buffers") > layer_of("branching.env")
    assert layer_of("common.new_room") is None
