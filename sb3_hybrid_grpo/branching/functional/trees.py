"""Arrays in tuples, lists, dicts and dataclasses, as JAX has its pytrees."""

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any


def map_trees(function: Callable[..., Any], tree: Any, *others: Any) -> Any:
    """
    Call a function with each array of a structure.

    :param function: called with an array, and those in the same place of the other structures
    :param tree: arrays in tuples, lists, dicts and dataclasses
    :param others: the same structure of other arrays
    :return: its results in the same structure
    """
    if tree is None:
        return None
    if isinstance(tree, dict):
        return {key: map_trees(function, part, *(other[key] for other in others)) for key, part in tree.items()}
    if isinstance(tree, tuple | list):
        parts = [map_trees(function, *part) for part in zip(tree, *others, strict=True)]
        return type(tree)(*parts) if hasattr(tree, "_fields") else type(tree)(parts)
    if dataclasses.is_dataclass(tree) and not isinstance(tree, type):
        fields = [field.name for field in dataclasses.fields(tree)]
        changed = {name: map_trees(function, *(getattr(each, name) for each in (tree, *others))) for name in fields}
        return dataclasses.replace(tree, **changed)
    return function(tree, *others)


def leaves(tree: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """
    List the arrays of a structure.

    :param tree: arrays in tuples, lists, dicts and dataclasses
    :param path: where it is
    :return: where each array is, and the array
    """
    if tree is None:
        return
    if isinstance(tree, dict):
        parts = [(f"{path}[{key!r}]", part) for key, part in tree.items()]
    elif isinstance(tree, tuple | list):
        names = [f".{name}" for name in tree._fields] if hasattr(tree, "_fields") else [f"[{i}]" for i in range(len(tree))]
        parts = [(path + name, part) for name, part in zip(names, tree, strict=True)]
    elif dataclasses.is_dataclass(tree) and not isinstance(tree, type):
        parts = [(f"{path}.{field.name}", getattr(tree, field.name)) for field in dataclasses.fields(tree)]
    else:
        yield path, tree
        return
    for part_path, part in parts:
        yield from leaves(part, part_path)
