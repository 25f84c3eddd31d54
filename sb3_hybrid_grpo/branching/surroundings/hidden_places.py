"""
Finds the variables that an environment's code may change and to which no attribute of it leads.

Nothing is run for it: from ``step`` and ``reset`` on, the bytecode of the environment's own functions tells which global
variables, class attributes, closure variables and default arguments they name, and which functions they may call.
"""

import builtins
import enum
import functools
import importlib.util
import os
import sys
import types
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import gymnasium as gym
from gymnasium import spaces
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.buffers import BaseBuffer
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.logger import Logger
from stable_baselines3.common.vec_env import VecEnv

from sb3_hybrid_grpo.branching.snapshots import CONSTANT, STATEFUL_MODULES, Mark, codec_of, find, known_layers
from sb3_hybrid_grpo.branching.surroundings.code_facts import CodeFacts, facts_of
from sb3_hybrid_grpo.branching.surroundings.namespaces import ClassVariables, GlobalVariables, is_special

_LIBRARIES = {
    *sys.stdlib_module_names,
    *("gymnasium", "gym", "numpy", "scipy", "pandas", "torch", "jax", "jaxlib", "numba", "sympy", "networkx", "sklearn"),
    *("stable_baselines3", "sb3_contrib", "sb3_hybrid_grpo", "mujoco", "ale_py", "pygame", "cv2", "PIL", "matplotlib"),
    *("Box2D", "moviepy", "imageio", "tqdm", "rich", "yaml", "pytest", "_pytest", "hypothesis", "cloudpickle"),
} - {"__main__"}
"""Packages whose code is taken to keep no state of an environment beyond the objects that the environment holds."""

_LEARNERS = (BaseAlgorithm, BaseBuffer, BaseCallback, Logger, VecEnv)
_ENTRANCES = ("step", "reset", "action_masks")
_CACHE = type(functools.lru_cache(lambda: None))
_UNREPEATABLE = frozenset(
    "np_random random rng normal standard_normal uniform integers randint choice rand randn sample shuffle permutation "
    "exponential poisson binomial time perf_counter monotonic now urandom".split()
)
_BUILT_IN_DESCRIPTORS = (
    types.MemberDescriptorType,
    types.GetSetDescriptorType,
    types.MethodDescriptorType,
    types.WrapperDescriptorType,
    types.ClassMethodDescriptorType,
)
_PLAIN = {int, float, bool, str, bytes, type(None)}
_MISSING = object()


class Place(NamedTuple):
    """
    A hiding place.

    :param name: what it is, in words
    :param root: where a snapshot starts to save it
    :param is_fleeting: whether a function leads to it that an attribute of the environment holds, and that a later one may
        take the place of
    """

    name: str
    root: Any
    is_fleeting: bool = False


class Findings(NamedTuple):
    """
    What a search found.

    :param places: the hiding places
    :param caches: names of caches that keep the results of functions which return something else each time
    :param simulators: names of modules that are simulators themselves
    :param code: what each function may touch that the environment may call
    """

    places: list[Place]
    caches: list[str]
    simulators: list[str]
    code: list[CodeFacts]


def hidden_places(root: gym.Env[Any, Any], roots: tuple[Any, ...]) -> Findings:
    """
    Look for variables beside the attributes of an environment.

    :param root: the outermost wrapper
    :param roots: where snapshots of the environment start
    :return: what may change
    """
    return _Search(root, roots).findings()


def find_in_code(root: gym.Env[Any, Any], roots: tuple[Any, ...], is_wanted: Callable[[Any], bool]) -> tuple[str, Any] | None:
    """
    Look among the variables beside the attributes of an environment for an object of some kind, like ``find``.

    :param root: the outermost wrapper
    :param roots: where snapshots of the environment start
    :param is_wanted: tells that kind
    :return: the name of the variable, and the object; ``None`` if there is no such object
    """
    if known_layers(root) is not None:
        return None
    for place in hidden_places(root, roots).places:
        found = find((place.root,), is_wanted)
        if found is not None:
            return place.name, found[1]
    return None


class _Search:
    def __init__(self, root: gym.Env[Any, Any], roots: tuple[Any, ...]) -> None:
        self._names = set(_ENTRANCES)
        self._stored: set[str] = set()
        self._is_dynamic = self._stores_in_classes = self._stores_anything = False
        self._classes: dict[type, bool] = {}
        self._libraries: set[type] = set()
        self._members: dict[int, enum.Enum] = {}
        self._functions: dict[types.FunctionType, tuple[str, bool]] = {}
        self._held: set[types.FunctionType] = set()
        self._modules: set[types.ModuleType] = set()
        self._globals: dict[int, tuple[str, Any, set[str]]] = {}
        self._found: dict[int, Place] = {}
        self._caches: set[str] = set()
        self._simulators: set[str] = set()
        self._walked: dict[int, Any] = {}
        self._packages: set[str] = set()
        self._layers = set(type(root).__mro__)
        while isinstance(root, gym.Wrapper):
            root = root.env
            self._layers.update(type(root).__mro__)
        self._walk(roots, "", is_fleeting=True)

    def findings(self) -> Findings:
        size = -1
        # Each function that is reached names others, by names that lead to functions passed by before.
        while size != (size := self._size()):
            for cls in list(self._classes):
                self._enter_class(cls)
            for cls in list(self._libraries):
                self._enter_library(cls)
            for module in list(self._modules):
                self._enter_module(module)
            for function, (label, is_fleeting) in list(self._functions.items()):
                if vars(function).keys() & self._names or (self._stored and function in self._held):
                    self._note(vars(function), f"the attributes of function {label}", is_fleeting)
        code = [facts_of(function.__code__) for function in self._functions]
        return Findings(list(self._places()), sorted(self._caches), sorted(self._simulators), code)

    def _size(self) -> int:
        parts: tuple[Any, ...] = (self._names, self._classes, self._libraries, self._functions, self._modules, self._walked)
        return sum(map(len, parts)) + sum(self._classes.values()) + self._is_dynamic

    def _places(self) -> Iterator[Place]:
        for module, namespace, names in self._globals.values():
            text = f"the global variable {', '.join(sorted(names))} of module {module}"
            yield Place(text, GlobalVariables(namespace, names))
        candidates = None if self._stores_anything else frozenset(self._stored)
        for cls in self._classes:
            own = [vars(base) for base in cls.__mro__ if base in self._classes]
            variables = {name for part in own for name, value in part.items() if _is_variable(name, value)}
            meant = sorted(variables if candidates is None else variables & candidates)
            if meant or self._stores_in_classes:
                text = ", ".join(f"{cls.__name__}.{name}" for name in meant) or f"{cls.__name__}.…"
                yield Place(f"the class attribute {text}", ClassVariables(cls, candidates))
        if self._stored:
            for member in self._members.values():
                yield Place(f"the attributes of {member}", vars(member))
        if "environ" in self._names:
            yield Place("os.environ", os.environ)
        yield from self._found.values()

    def _enter_class(self, cls: type) -> None:
        for name, value in list(vars(cls).items()):
            is_called = (
                name in self._names or self._is_dynamic or (is_special(name) and not self._is_mere_constructor(cls, name))
            )
            functions = list(_functions_in(value))
            if functions and is_called:
                self._note_cache(value, f"{cls.__name__}.{name}")
                for function in functions:
                    is_of_class = (
                        isinstance(value, classmethod | staticmethod)
                        or name in ("__new__", "__init_subclass__")
                        or (issubclass(cls, enum.Enum) and not is_special(name))
                        or issubclass(cls, type)
                    )
                    self._enter_function(function, f"{cls.__name__}.{name}", is_of_class=is_of_class)
            elif is_called and _is_object(name, value):
                self._note(value, f"the class attribute {cls.__name__}.{name}")

    def _is_mere_constructor(self, cls: type, name: str) -> bool:
        return name in ("__init__", "__new__", "__del__") and not self._classes[cls] and name not in self._names

    def _enter_library(self, cls: type) -> None:
        for name, value in vars(cls).items():
            if name in self._names or (is_special(name) and name != "__init__"):
                for function in _functions_in(value):
                    self._names |= facts_of(function.__code__).attributes

    def _enter_module(self, module: types.ModuleType) -> None:
        namespace = vars(module)
        for name in self._names & namespace.keys():
            self._enter_global(namespace, name, name in self._stored or self._stores_anything)

    def _enter_function(
        self, function: types.FunctionType, label: str, is_fleeting: bool = False, is_of_class: bool = False
    ) -> None:
        if function in self._functions or not self._is_own(function.__module__):
            return
        self._functions[function] = label, is_fleeting
        facts = facts_of(function.__code__)
        self._names |= facts.attributes
        self._stored |= facts.stored_attributes | (facts.own_attributes if is_of_class else set())
        self._is_dynamic |= facts.is_dynamic
        self._stores_anything |= facts.stores_any_attribute
        self._stores_in_classes |= facts.may_store_in_class or (is_of_class and bool(facts.own_attributes))
        self._enter_globals(function, facts)
        self._enter_cells(function, facts, label, is_fleeting)
        for name, default in _defaults_of(function):
            self._note(default, f"the default argument {name} of {label}", is_fleeting)

    def _enter_globals(self, function: types.FunctionType, facts: CodeFacts) -> None:
        namespace = function.__globals__
        for name in facts.globals:
            self._enter_global(namespace, name, name in facts.stored_globals)
            value = namespace.get(name)
            if name in facts.targets:
                self._enter_target(value)
        if "globals" in facts.globals:
            for name in [name for name, value in namespace.items() if _is_variable(name, value)]:
                self._enter_global(namespace, name, is_stored=True)
        for name, level in facts.modules:
            absolute = importlib.util.resolve_name("." * level + name, namespace.get("__package__") or "") if level else name
            if absolute in sys.modules:
                self._note(sys.modules[absolute], "")

    def _enter_global(self, namespace: dict[str, Any], name: str, is_stored: bool) -> None:
        value = namespace.get(name, _MISSING)
        if is_special(name) or (value is _MISSING and hasattr(builtins, name)):
            return
        module = str(namespace.get("__name__"))
        if is_stored or value is _MISSING:
            self._globals.setdefault(id(namespace), (module, namespace, set()))[2].add(name)
        self._note(value, f"the global variable {name} of module {module}", is_named=True)

    def _enter_cells(self, function: types.FunctionType, facts: CodeFacts, label: str, is_fleeting: bool) -> None:
        for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
            text = f"the closure variable {name} of {label}"
            if name in facts.stored_cells:
                self._found.setdefault(id(cell), Place(text, cell, is_fleeting))
            try:
                value = cell.cell_contents
            except ValueError:
                continue
            if name in facts.targets:
                self._enter_target(value)
            self._note(value, text, is_fleeting, is_named=name != "__class__")

    def _enter_target(self, value: Any) -> None:
        """Take up an object whose attributes are written."""
        self._stores_in_classes |= isinstance(value, type) and self._is_own(value.__module__)
        if isinstance(value, types.FunctionType) and self._is_own(value.__module__):
            self._note(vars(value), f"the attributes of function {_short_name(value)}")

    def _note(self, value: Any, name: str, is_fleeting: bool = False, is_named: bool = False) -> None:
        """Take up what a variable holds: code to be followed, or an object that may change."""
        functions = list(_functions_in(value))
        if functions:
            self._note_cache(value, name)
            for function in functions:
                self._enter_function(function, _short_name(function), is_fleeting)
        elif isinstance(value, type):
            self._add_class(value, is_made=is_named)
        elif isinstance(value, types.ModuleType):
            self._simulators.update({value.__name__.split(".")[0]} & STATEFUL_MODULES.keys())
            if self._is_own(value.__name__):
                self._modules.add(value)
        elif value is not _MISSING and self._may_change(value) and id(value) not in self._found:
            self._found[id(value)] = Place(name, value, is_fleeting)
            self._walk((value,), name, is_fleeting)

    def _may_change(self, value: Any) -> bool:
        codec = codec_of(type(value))
        is_namespace = isinstance(value, dict) and {"__builtins__", "__name__"} <= value.keys()
        # Such as functions that were compiled.
        is_function = codec is Mark.UNKNOWN and callable(value)
        # Those of the environment itself are saved with its attributes.
        is_own_space = isinstance(value, spaces.Space) and id(value) in self._walked
        return codec is not CONSTANT and not (is_namespace or is_function or is_own_space or isinstance(value, _LEARNERS))

    def _note_cache(self, value: Any, name: str) -> None:
        if isinstance(value, _CACHE) and isinstance(value.__wrapped__, types.FunctionType):
            facts = facts_of(value.__wrapped__.__code__)
            if self._is_own(value.__wrapped__.__module__) and (
                _UNREPEATABLE & (facts.attributes | facts.globals)
                or facts.own_attributes | facts.stored_attributes | facts.stored_globals | facts.stored_cells
            ):
                self._caches.add(_short_name(value.__wrapped__))

    def _add_class(self, cls: type, is_made: bool = False) -> None:
        if not self._is_own(cls.__module__):
            return
        if type(cls) is not type:
            self._add_class(type(cls), is_made=True)
        for base in cls.__mro__[:-1]:
            if self._is_own(base.__module__):
                self._classes[base] = self._classes.get(base, False) or (is_made and base not in self._layers)
            else:
                self._libraries.add(base)
        if issubclass(cls, enum.Enum):
            self._members.update((id(member), member) for member in cls)

    def _walk(self, roots: Iterable[Any], name: str, is_fleeting: bool) -> None:
        """Look for own classes and functions among the objects that some lead to."""
        pending = list(roots)
        while pending:
            obj = pending.pop()
            if id(obj) in self._walked:
                continue
            codec = codec_of(type(obj))
            if isinstance(obj, types.FunctionType | type):
                self._walked[id(obj)] = obj
                if isinstance(obj, type):
                    self._add_class(obj, is_made=True)
                else:
                    self._held.add(obj)
                    self._enter_function(obj, _short_name(obj), is_fleeting)
                continue
            if isinstance(obj, types.ModuleType):
                self._note(obj, "")
            if isinstance(obj, enum.Enum):
                self._add_class(type(obj))
            if isinstance(codec, Mark) or isinstance(obj, _LEARNERS):
                continue
            self._walked[id(obj)] = obj
            self._packages.add((type(obj).__module__ or "").split(".")[0])
            self._add_class(type(obj))
            try:
                pending += [child for child in codec.children(codec.save(obj)) if type(child) not in _PLAIN]
            except Exception:
                # What cannot be saved, the snapshot of the environment will say.
                continue

    def _is_own(self, module: str | None) -> bool:
        package = (module or "builtins").split(".")[0]
        return package not in _LIBRARIES and (package in self._packages or not _is_installed(package))


def _functions_in(value: Any) -> Iterator[types.FunctionType]:
    """Yield the Python functions that a function, or what stands for one, is made of."""
    if isinstance(value, types.FunctionType):
        yield value
    elif isinstance(value, staticmethod | classmethod):
        yield from _functions_in(value.__func__)
    elif isinstance(value, property):
        for accessor in (value.fget, value.fset, value.fdel):
            yield from _functions_in(accessor)
    elif isinstance(value, functools.cached_property | functools.partialmethod):
        yield from _functions_in(value.func)
    elif isinstance(value, functools.singledispatchmethod):
        for function in value.dispatcher.registry.values():
            yield from _functions_in(function)
    elif isinstance(value, _CACHE):
        yield from _functions_in(value.__wrapped__)


def _defaults_of(function: types.FunctionType) -> Iterator[tuple[str, Any]]:
    positional = function.__code__.co_varnames[: function.__code__.co_argcount]
    defaults = function.__defaults__ or ()
    yield from zip(positional[len(positional) - len(defaults) :], defaults, strict=True)
    yield from (function.__kwdefaults__ or {}).items()


@functools.cache
def _is_installed(package: str) -> bool:
    """Tell whether a package was installed, rather than written beside the program."""
    if package == "__main__":
        return False
    file = getattr(sys.modules.get(package), "__file__", None) or ""
    return "site-packages" in file or "dist-packages" in file


def _is_object(name: str, value: Any) -> bool:
    return not (is_special(name) or isinstance(value, (type, types.ModuleType, *_BUILT_IN_DESCRIPTORS, *_LEARNERS)))


def _is_variable(name: str, value: Any) -> bool:
    return _is_object(name, value) and not (callable(value) or hasattr(type(value), "__get__"))


def _short_name(function: types.FunctionType) -> str:
    around, _, name = function.__qualname__.rpartition("<locals>.")
    return name if not name.startswith("<") else around.rstrip(".").rpartition("<locals>.")[2] + f".{name}"
