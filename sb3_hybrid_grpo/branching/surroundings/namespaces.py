"""Variables of classes, modules and functions as roots of a snapshot."""

import types
from collections.abc import Iterable, Iterator, MutableMapping
from typing import Any

from sb3_hybrid_grpo.branching.snapshots import register_builtin

_ABSENT = object()


class GlobalVariables:
    """
    Some variables of a module.

    :param namespace: all of the module's
    :param names: those that are meant; they need not exist yet
    """

    def __init__(self, namespace: MutableMapping[str, Any], names: Iterable[str]) -> None:
        self.namespace = namespace
        self.names = tuple(sorted(names))

    @property
    def key(self) -> tuple[Any, ...]:
        """What is the same for the same variables."""
        return id(self.namespace), self.names

    def parts(self) -> "Iterator[tuple[str, GlobalVariables]]":
        """Yield the variables one by one, each with its name."""
        for name in self.names:
            yield f"{name} of module {self.namespace.get('__name__')}", GlobalVariables(self.namespace, [name])


class ClassVariables:
    """
    Some variables of a class. Those that are added later are taken away by restoring.

    :param cls: the class
    :param candidates: names of those that are meant as soon as the class has them; all but Python's own if ``None``
    :param excluded: names of those that are not meant all the same
    """

    def __init__(self, cls: type, candidates: frozenset[str] | None, excluded: frozenset[str] = frozenset()) -> None:
        self.cls = cls
        self.candidates = candidates
        self.excluded = excluded
        self.known: frozenset[str] = frozenset()
        self.names: tuple[str, ...] = ()

    def look(self) -> None:
        """Bring ``known``, the names of all variables of the class, and ``names``, those that are meant, up to date."""
        if len(vars(self.cls)) != len(self.known):
            self.known = frozenset(vars(self.cls))
            meant = self.known if self.candidates is None else self.known & self.candidates
            self.names = tuple(name for name in meant - self.excluded if not is_special(name))

    @property
    def key(self) -> tuple[Any, ...]:
        """What is the same for the same variables."""
        return id(self.cls), self.candidates, self.excluded

    def parts(self) -> "Iterator[tuple[str, ClassVariables]]":
        """Yield the variables one by one, each with its name, and then those that the class does not have yet."""
        self.look()
        for name in sorted(self.names):
            yield f"{self.cls.__name__}.{name}", ClassVariables(self.cls, frozenset({name}))
        yield f"{self.cls.__name__}.…", ClassVariables(self.cls, self.candidates, self.excluded | set(self.names))


class _GlobalVariablesCodec:
    def save(self, obj: GlobalVariables) -> dict[str, Any]:
        return {name: obj.namespace.get(name, _ABSENT) for name in obj.names}

    def restore(self, obj: GlobalVariables, state: dict[str, Any]) -> None:
        for name, value in state.items():
            if value is not _ABSENT:
                obj.namespace[name] = value
            else:
                obj.namespace.pop(name, None)

    def children(self, state: dict[str, Any]) -> Iterable[Any]:
        return state.values()


class _ClassVariablesCodec:
    def save(self, obj: ClassVariables) -> tuple[dict[str, Any], frozenset[str]]:
        obj.look()
        variables = vars(obj.cls)
        return {name: variables[name] for name in obj.names}, obj.known

    def restore(self, obj: ClassVariables, state: tuple[dict[str, Any], frozenset[str]]) -> None:
        values, known = state
        variables = vars(obj.cls)
        for name, value in values.items():
            # Not needlessly: to write an attribute of a class makes Python forget what it has learned of it.
            if variables.get(name, _ABSENT) is not value:
                type.__setattr__(obj.cls, name, value)
        if len(variables) != len(known):
            for name in [name for name in variables if name not in known and not is_special(name)]:
                type.__delattr__(obj.cls, name)

    def children(self, state: tuple[dict[str, Any], frozenset[str]]) -> Iterable[Any]:
        return state[0].values()


class _CellCodec:
    def save(self, obj: types.CellType) -> dict[str, Any]:
        try:
            return {"cell_contents": obj.cell_contents}
        except ValueError:
            return {}

    def restore(self, obj: types.CellType, state: dict[str, Any]) -> None:
        if state:
            obj.cell_contents = state["cell_contents"]
        elif self.save(obj):
            del obj.cell_contents

    def children(self, state: dict[str, Any]) -> Iterable[Any]:
        return state.values()


def is_special(name: str) -> bool:
    """
    Tell whether a name is Python's own.

    :param name: name of a variable
    :return: whether it begins and ends with two underscores, or is that of an abstract class's registry
    """
    return (name.startswith("__") and name.endswith("__")) or name == "_abc_impl"


register_builtin(GlobalVariables, _GlobalVariablesCodec())
register_builtin(ClassVariables, _ClassVariablesCodec())
register_builtin(types.CellType, _CellCodec())
