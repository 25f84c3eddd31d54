"""State of the environment's code: on classes, in modules, closures, default arguments and functions."""

import contextvars
import enum
import functools
import os
import types

from gymnasium import spaces

from tests.hiding_places.places import Place, place


@place("plain_counter")
def plain_counter():
    class InAttribute(Place):
        n_visits = 0

        def count(self):
            self.n_visits += 1
            return self.n_visits

    return InAttribute


@place("n_of_class")
def class_attribute():
    class OnClass(Place):
        n_of_class = 0

        def count(self):
            type(self).n_of_class += 1
            return self.n_of_class

    return OnClass


@place("list_of_class")
def mutable_class_attribute():
    class OnClass(Place):
        list_of_class = [0]

        def count(self):
            self.list_of_class[0] += 1
            return self.list_of_class[0]

    return OnClass


n_of_module = 0


@place("n_of_module")
def module_global():
    global n_of_module
    n_of_module = 0

    class InModule(Place):
        def count(self):
            global n_of_module
            n_of_module += 1
            return n_of_module

    return InModule


scores_of_module: dict[str, int] = {}


def add_score():
    scores_of_module["n"] = scores_of_module.get("n", 0) + 1
    return scores_of_module["n"]


@place("scores_of_module")
def function_of_the_module():
    scores_of_module.clear()

    class ByFunction(Place):
        def count(self):
            return add_score()

    return ByFunction


settings_module = types.ModuleType("settings_module")


@place("n_of_settings", "settings_module")
def other_module():
    settings_module.n_of_settings = 0

    class InOtherModule(Place):
        def count(self):
            settings_module.n_of_settings += 1
            return settings_module.n_of_settings

    return InOtherModule


@place("HIDING_PLACE", "os.environ")
def environment_variable():
    os.environ["HIDING_PLACE"] = "0"

    class InEnviron(Place):
        def count(self):
            os.environ["HIDING_PLACE"] = str(int(os.environ["HIDING_PLACE"]) + 1)
            return int(os.environ["HIDING_PLACE"])

    return InEnviron


@place("n_of_closure")
def closure():
    n_of_closure = 0

    class InClosure(Place):
        def count(self):
            nonlocal n_of_closure
            n_of_closure += 1
            return n_of_closure

    return InClosure


@place("list_of_closure")
def mutable_closure():
    list_of_closure = [0]

    class InClosure(Place):
        def count(self):
            list_of_closure[0] += 1
            return list_of_closure[0]

    return InClosure


@place("default argument", "list_of_default")
def default_argument():
    class InDefault(Place):
        def count(self, list_of_default=[0]):  # noqa: B006
            list_of_default[0] += 1
            return list_of_default[0]

    return InDefault


@place("n_of_function")
def function_attribute():
    class OnFunction(Place):
        def count(self):
            OnFunction.count.n_of_function += 1
            return OnFunction.count.n_of_function

    OnFunction.count.n_of_function = 0
    return OnFunction


@place("n_of_member", "Mode.ONLY")
def enumeration_member():
    class Mode(enum.Enum):
        ONLY = 1

    Mode.ONLY.n_of_member = 0

    class OnMember(Place):
        def set_up(self):
            self.mode = Mode.ONLY

        def count(self):
            self.mode.n_of_member += 1
            return self.mode.n_of_member

    return OnMember


@place("n_by_descriptor")
def descriptor():
    class Stored:
        def __init__(self):
            self.values = {}

        def __get__(self, owner, cls=None):
            return self.values.get(id(owner), 0)

        def __set__(self, owner, value):
            self.values[id(owner)] = value

    class ByDescriptor(Place):
        n_by_descriptor = Stored()

        def count(self):
            self.n_by_descriptor += 1
            return self.n_by_descriptor

    return ByDescriptor


@place("counter_of_class")
def callable_class_attribute():
    class Counter:
        n_calls = 0

        def __call__(self):
            self.n_calls += 1
            return self.n_calls

    class ByCall(Place):
        counter_of_class = Counter()

        def count(self):
            return self.counter_of_class()

    return ByCall


n_dispatched = [0]


@place("n_dispatched")
def dispatched_method():
    n_dispatched[0] = 0

    class ByDispatch(Place):
        @functools.singledispatchmethod
        def add(self, number):
            raise TypeError(number)

        @add.register
        def _(self, number: int):
            n_dispatched[0] += number
            return n_dispatched[0]

        def count(self):
            return self.add(1)

    return ByDispatch


n_of_context = contextvars.ContextVar("n_of_context", default=0)


@place("n_of_context")
def context_variable():
    n_of_context.set(0)

    class InContext(Place):
        def count(self):
            n_of_context.set(n_of_context.get() + 1)
            return n_of_context.get()

    return InContext


space_of_module = spaces.Discrete(10**6)


@place("space_of_module")
def space_in_a_module():
    space_of_module.seed(0)

    class InSpace(Place):
        n_visits = drawn = 0

        def level(self):
            self.n_visits += 1
            if self.n_visits % self.period == 0:
                self.drawn = int(space_of_module.sample())
            return self.drawn

    return InSpace


@place("n_of_held_function")
def attribute_of_a_held_function():
    class InHeldFunction(Place):
        def set_up(self):
            def counter():
                pass

            self.counter = counter
            self.counter.n_of_held_function = 0

        def count(self):
            self.counter.n_of_held_function += 1
            return self.counter.n_of_held_function

    return InHeldFunction


@place("n_of_held_module")
def variable_of_a_held_module():
    class InHeldModule(Place):
        def set_up(self):
            self.settings = types.ModuleType("settings_of_a_place")
            self.settings.n_of_held_module = 0

        def count(self):
            self.settings.n_of_held_module += 1
            return self.settings.n_of_held_module

    return InHeldModule


@place("n_of_metaclass", "n_of_made_class")
def metaclass():
    class Meta(type):
        n_of_metaclass = 0

        @property
        def count(cls):
            Meta.n_of_metaclass += 1
            cls.n_of_made_class += 1
            return min(Meta.n_of_metaclass, cls.n_of_made_class)

    class Counted(metaclass=Meta):
        n_of_made_class = 0

    class InMetaclass(Place):
        def count(self):
            return Counted.count

    return InMetaclass
