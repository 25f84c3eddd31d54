"""Branches of environments whose ``step`` does no more than give their attributes new values."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import gymnasium as gym

from sb3_hybrid_grpo.branching.snapshots.branch_states import known_layers
from sb3_hybrid_grpo.branching.snapshots.codecs.generators import restore_bit_generator, save_bit_generator
from sb3_hybrid_grpo.branching.snapshots.registry import kind_of

_GENERATOR = "_np_random"


class _Place(NamedTuple):
    """Instance dictionaries of all layers, and the state of the random generator among them."""

    attributes: tuple[dict[str, Any], ...]
    generator: Any

    def copy(self) -> "_Place":
        return _Place(tuple(attributes.copy() for attributes in self.attributes), self.generator)


class PrivateAttributes:
    """
    Gives every branch of a classic control environment of Gymnasium instance dictionaries of its own, see ``BranchStates``.

    Nothing but the random generator is saved or restored between the steps of a branch. The objects that the dictionaries
    share otherwise are not changed by these environments: each step makes new ones.

    :param layers: time limits and the environment, outermost first
    """

    branches_at_once = 2048

    def __init__(self, layers: Sequence[Any]) -> None:
        self._layers = tuple(layers)
        self._start: _Place | None = None
        self._branches: dict[int, _Place] = {}
        self._remembered: list[_Place] = []

    @classmethod
    def of(cls, root: gym.Env[Any, Any]) -> "PrivateAttributes | None":
        """
        Decide whether an environment can be served.

        :param root: the outermost wrapper, with those taken out that only watch
        :return: ``None`` unless it is one of Gymnasium's classic control, unchanged and in no wrapper but ``TimeLimit``
        """
        layers = known_layers(root)
        if layers is None or not kind_of(layers[-1]).startswith("gymnasium.envs.classic_control."):
            return None
        return cls(layers)

    def begin(self) -> None:
        """Look up the present state, see ``BranchStates``."""
        self._start = self._present()

    def enter(self, idx: int, is_last: bool) -> None:
        """Exchange the instance dictionaries, see ``BranchStates``."""
        assert self._start is not None
        self._go_to(self._branches.get(idx) or self._start.copy())

    def keep(self, idx: int) -> None:
        """Remember the present state as that of a branch, see ``BranchStates``."""
        self._branches[idx] = self._present()

    def leave(self) -> None:
        """Give the environment its own attributes back, see ``BranchStates``."""
        if self._start is not None:
            self._go_to(self._start)

    def close(self) -> None:
        """Forget the branches."""
        self._branches = {}

    def include(self, shared_roots: tuple[Any, ...]) -> None:
        """Do nothing: these environments use no random generator but their own."""

    def remember(self) -> None:
        """Keep the present state, for branches to come."""
        self._remembered.append(self._present().copy())

    def forget(self) -> None:
        """Forget the states that were kept."""
        self._remembered = []

    def recall(self, n_branches: int) -> None:
        """
        Have branches start from the states that were kept, and forget these.

        :param n_branches: number of branches: of T states each is where ``n_branches`` / T of them start, in their order
        """
        n_states = len(self._remembered)
        self._branches = {idx: self._remembered[idx * n_states // n_branches].copy() for idx in range(n_branches)}
        self.forget()

    def _present(self) -> _Place:
        attributes = tuple(layer.__dict__ for layer in self._layers)
        generator = attributes[-1].get(_GENERATOR)
        return _Place(attributes, None if generator is None else save_bit_generator(generator.bit_generator))

    def _go_to(self, place: _Place) -> None:
        for layer, attributes in zip(self._layers, place.attributes, strict=True):
            layer.__dict__ = attributes
        if place.generator is not None:
            restore_bit_generator(place.attributes[-1][_GENERATOR].bit_generator, place.generator)
