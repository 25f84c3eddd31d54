"""What a function's code reads and writes beyond its arguments, read off its bytecode."""

import dis
import types
from collections.abc import Sequence
from functools import lru_cache
from typing import Any, NamedTuple

_NAMES_OF_ANYTHING = {"getattr", "attrgetter", "methodcaller", "vars", "dir", "eval", "exec"}
_OWNERS = {"model", "opt"}
_WRITERS = {"copyto", "fill", "put", "place", "putmask"}
# How the parts of a MuJoCo model are asked for whose arrays have shorter names
_ACCESSORS = {"dof": "joint", "jnt": "joint", "cam": "camera", "eq": "equality", "mat": "material", "tex": "texture"}
_SETTERS = {"setattr", "vars", "__dict__", "__setattr__"}


class CodeFacts(NamedTuple):
    """
    What a function and those defined in it may touch.

    :param globals: global variables that are read or written
    :param stored_globals: those of them that are given other values
    :param modules: modules that are imported, each with its level
    :param attributes: names of all attributes that are read or written
    :param stored_attributes: names of attributes that are written, but those of the first argument, which is ``self``
    :param own_attributes: names of the attributes of the first argument that are written
    :param targets: global and closure variables of whose objects attributes are written
    :param stored_cells: variables of the functions around it that are given other values
    :param stores_items: whether elements of objects are written
    :param is_dynamic: whether it may use attributes whose names are not in the code
    :param stores_any_attribute: whether it may write attributes whose names are not in the code
    :param may_store_in_class: whether it may write attributes of a class that it got as the type of an object
    """

    globals: frozenset[str]
    stored_globals: frozenset[str]
    modules: frozenset[tuple[str, int]]
    attributes: frozenset[str]
    stored_attributes: frozenset[str]
    own_attributes: frozenset[str]
    targets: frozenset[str]
    stored_cells: frozenset[str]
    stores_items: bool
    is_dynamic: bool
    stores_any_attribute: bool
    may_store_in_class: bool

    def may_write(self, name: str) -> bool:
        """
        Tell whether an array may be written that is an attribute of something, or the field of a part of it.

        :param name: its name, as ``"body_mass"``, which is written as well by ``model.body("torso").mass = 3``
        :return: whether the code may do so
        """
        if self.stores_any_attribute and not _OWNERS.isdisjoint(self.attributes):
            return True
        is_writing = self.stores_items or not _WRITERS.isdisjoint(self.attributes)
        written = self.stored_attributes | (self.attributes if is_writing else frozenset())
        part, _, field = name.partition("_")
        parts = {part, _ACCESSORS.get(part, part)}
        return name in written or (field in written and not parts.isdisjoint(self.attributes))


@lru_cache(maxsize=4096)
def facts_of(code: types.CodeType) -> CodeFacts:
    """
    Read the bytecode of a function.

    :param code: its code
    :return: what it may touch
    """
    instructions = [instruction for instruction in dis.get_instructions(code) if instruction.opname != "EXTENDED_ARG"]
    found: dict[str, set[Any]] = {name: set() for name in CodeFacts._fields[:8]}
    first = code.co_varnames[0] if code.co_argcount else None
    for index, (operation, name) in enumerate((step.opname, step.argval) for step in instructions):
        if operation in ("LOAD_GLOBAL", "LOAD_NAME", "STORE_GLOBAL", "DELETE_GLOBAL"):
            found["globals"].add(name)
        if operation in ("STORE_GLOBAL", "DELETE_GLOBAL"):
            found["stored_globals"].add(name)
        elif operation in ("STORE_DEREF", "DELETE_DEREF"):
            found["stored_cells"].add(name)
        elif operation in ("STORE_ATTR", "DELETE_ATTR"):
            target = _target(instructions, index)
            is_own = first is not None and target in (("LOAD_FAST", first), ("LOAD_DEREF", first))
            found["own_attributes" if is_own else "stored_attributes"].add(name)
            if not is_own and target[0] in ("LOAD_GLOBAL", "LOAD_NAME", "LOAD_DEREF"):
                found["targets"].add(target[1])
        elif operation == "IMPORT_NAME":
            found["modules"].add((name, _level_of_import(instructions, index)))
    found["attributes"] = set(code.co_names) - found["globals"]
    stores_items = False
    for inner in (facts_of(part) for part in code.co_consts if isinstance(part, types.CodeType)):
        stores_items |= inner.stores_items
        for field in ("globals", "stored_globals", "modules", "attributes", "stored_attributes", "targets", "stored_cells"):
            found[field] |= getattr(inner, field)
        found["stored_attributes"] |= inner.own_attributes
    found["stored_cells"] &= set(code.co_freevars)
    stores_items |= any(instruction.opname in ("STORE_SUBSCR", "STORE_SLICE") for instruction in instructions)
    named = found["globals"] | found["attributes"]
    return CodeFacts(
        **{field: frozenset(names) for field, names in found.items()},
        stores_items=stores_items,
        is_dynamic=not _NAMES_OF_ANYTHING.isdisjoint(named),
        stores_any_attribute=not _SETTERS.isdisjoint(named),
        may_store_in_class=bool(found["stored_attributes"]) and not named.isdisjoint(("type", "__class__")),
    )


def _level_of_import(instructions: Sequence[dis.Instruction], index: int) -> int:
    """Return how many packages up a relative import begins: the argument two before it."""
    constant = instructions[index - 2].argval if index >= 2 else 0
    return constant if isinstance(constant, int) else 0


def _target(instructions: Sequence[dis.Instruction], index: int) -> tuple[str, str]:
    """Return how the object is loaded of which an attribute is written, and its name; empty if it is not a variable's."""
    before = instructions[index - 1]
    if before.opname not in ("SWAP", "ROT_TWO"):
        return _loaded(before)
    # In self.name += 1 the object is duplicated before it is asked for the attribute.
    for at in range(index - 2, 1, -1):
        is_read = instructions[at].opname == "LOAD_ATTR" and instructions[at].argval == instructions[index].argval
        if is_read and instructions[at - 1].opname in ("COPY", "DUP_TOP"):
            return _loaded(instructions[at - 2])
    return "", ""


def _loaded(instruction: dis.Instruction) -> tuple[str, str]:
    operation, name = instruction.opname, instruction.argval
    if operation.startswith(("LOAD_FAST", "STORE_FAST_LOAD_FAST")):
        return "LOAD_FAST", name[-1] if isinstance(name, tuple) else name
    return (operation, name) if operation in ("LOAD_GLOBAL", "LOAD_NAME", "LOAD_DEREF") else ("", "")
