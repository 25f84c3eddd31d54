"""Branches of functional environments: rows that are stepped beside the committed ones."""

import traceback
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch as th
from gymnasium import spaces

from sb3_hybrid_grpo.branching.functional.contract import Engine, Rows, Stepped
from sb3_hybrid_grpo.branching.functional.trees import map_trees
from sb3_hybrid_grpo.branching.functional.vec_env import FunctionalVecEnv
from sb3_hybrid_grpo.common import BranchError, BranchOutcome

_MOST_ROWS, _MOST_BYTES = 8192, 2**25
_MOST_ROWS_OF_GPU, _MOST_BYTES_OF_GPU = 65_536, 2**30


class _Moment(NamedTuple):
    rows: Rows
    keys: Any
    time: int


class _Slab(NamedTuple):
    """
    Blocks that are stepped together.

    :param places: which branches of each environment they are; the last one again where there are fewer than blocks
    :param rows: their states
    :param keys: keys of the environments
    :param times: their times
    """

    places: np.ndarray
    rows: Rows
    keys: Any
    times: np.ndarray

    @property
    def n_places(self) -> int:
        """Number of branches, without the one that is repeated."""
        return int(self.places[-1] - self.places[0]) + 1


class FunctionalBranches:
    """
    Branches from the present states of a ``FunctionalVecEnv`` or from those that were remembered, see ``RememberedStates``.

    One block of rows holds a branch of each environment. Several blocks are stepped together where this makes no difference to
    any bit, which is looked at in the first step of each size; elsewhere one after the other, as the environments themselves
    are.

    Actions may be tensors: the outcomes then are, and stay on their device.

    :param venv: the environments
    """

    announcement: str | None = None
    is_outdated = False

    def __init__(self, venv: FunctionalVecEnv) -> None:
        self._venv = venv
        self._engine: Engine = venv.engine
        self._moments: list[_Moment] = []
        self._slabs: list[_Slab] = []
        self._with_masks = False
        is_on_cpu = self._engine.can_differ
        most_rows, most_bytes = (_MOST_ROWS, _MOST_BYTES) if is_on_cpu else (_MOST_ROWS_OF_GPU, _MOST_BYTES_OF_GPU)
        self.most_rows = max(1, min(most_rows, most_bytes // (4 * spaces.flatdim(venv.observation_space))))
        self._most_blocks = max(1, self.most_rows // venv.num_envs)
        self._n_blocks = 1
        self._tried: set[int] = {1}
        self.remembered = self

    def include_masks(self) -> None:
        """Have outcomes include masks of invalid actions from now on."""
        self._with_masks = self._venv.n_masks > 0

    def remember(self) -> None:
        """Keep the present states."""
        self._moments.append(self._now)

    def confirm(self) -> None:
        """Do nothing: they are kept."""

    def forget(self) -> None:
        """Forget the states that were kept."""
        self._moments = []

    @property
    def _now(self) -> _Moment:
        return _Moment(self._venv.rows, self._venv.keys, self._venv.time)

    def open(self, actions: Any, alive: Any, horizon: int) -> BranchOutcome:
        """
        Open branches and take their first steps, at the states that were kept or else at the present ones.

        :param actions: actions as the environments take them, [E, n, \\*action_shape]
        :param alive: which of them are branched, [E, n]
        :param horizon: number of steps that a branch may take in all
        :return: the outcomes, zero where not ``alive``
        :raises BranchError: if the environment raises
        """
        moments = self._moments or [self._now]
        self.forget()
        n_places = alive.shape[1]
        self._n_blocks = max(self._n_blocks, min(self._most_blocks, n_places))
        self._slabs = []
        while True:
            slabs = self._slabs_of(moments, n_places)
            if self._n_blocks in self._tried or self._is_exact(slabs[0], actions, alive):
                break
            self._most_blocks = self._n_blocks = 1
        self._tried.add(self._n_blocks)
        self._slabs = slabs
        return self.advance(actions, alive)

    def advance(self, actions: Any, alive: Any) -> BranchOutcome:
        """
        Take a further step in the open branches.

        :param actions: actions as the environments take them, [E, n, \\*action_shape]
        :param alive: which branches go on, [E, n]
        :return: the outcomes, zero where not ``alive``
        :raises BranchError: if the environment raises
        """
        results = []
        for idx, slab in enumerate(self._slabs):
            stepped = self._step(slab, *_blocks(slab, actions, alive))
            results.append(stepped[1:])
            self._slabs[idx] = slab._replace(rows=stepped.rows, times=slab.times + 1)
        hand_out = self._engine.to_torch if isinstance(actions, th.Tensor) else self._engine.to_numpy
        parts = [_by_env(hand_out(result[:4]), alive.shape[0]) for result in results]
        n_places = [slab.n_places for slab in self._slabs]
        outcome = BranchOutcome(*(_together(each, n_places) for each in zip(*parts, strict=True)))
        if not self._with_masks:
            return outcome
        masks = [_by_env(hand_out(result[4].reshape(len(result[4]), -1)), alive.shape[0]) for result in results]
        return outcome._replace(action_masks=_together(masks, n_places))

    def close(self) -> None:
        """Forget the open branches."""
        self._slabs = []

    def _slabs_of(self, moments: list[_Moment], n_places: int) -> list[_Slab]:
        slabs: list[_Slab] = []
        origins = [moments[place * len(moments) // n_places] for place in range(n_places)]
        start = 0
        while start < n_places:
            # Environments that were seeded have other keys, and those of a slab are of one time.
            end = start
            while end < n_places and end < start + self._n_blocks and origins[end].keys is origins[start].keys:
                end += 1
            places = np.minimum(start + np.arange(self._n_blocks), end - 1)
            blocks = [origins[place] for place in places]
            rows = blocks[0].rows if len(blocks) == 1 else self._engine.join([block.rows for block in blocks])
            slabs.append(_Slab(places, rows, origins[start].keys, np.array([block.time for block in blocks])))
            start = end
        return slabs

    def _step(self, slab: _Slab, actions: Any, alive: Any) -> Stepped:
        try:
            return self._engine.step(slab.rows, slab.keys, slab.times, actions, alive)
        except Exception as error:
            raise BranchError(
                f"{type(self._venv.env).__name__} raised in a branch. The environments are as they "
                f"were.\n{traceback.format_exc()}"
            ) from error

    def _is_exact(self, slab: _Slab, actions: Any, alive: Any) -> bool:
        """Compare a step of several blocks with as many steps of one, bit for bit."""
        if not self._engine.can_differ:
            return True
        actions, alive = _blocks(slab, actions, alive)
        n_envs = self._venv.num_envs
        has_ordered_sums = getattr(self._engine, "has_ordered_sums", None)
        if has_ordered_sums is not None and has_ordered_sums(self._rows(slab, slice(n_envs)), slab.keys, actions[:n_envs]):
            return False
        together = self._step(slab, actions, alive)
        for block, time in enumerate(slab.times):
            which = slice(block * n_envs, (block + 1) * n_envs)
            block_alone = slab._replace(rows=self._rows(slab, which), times=np.array([time]))
            alone = self._step(block_alone, actions[which], alive[which])
            parts, others = (self._engine.leaves(self._engine.to_numpy(stepped)) for stepped in (together, alone))
            if any(part[which].tobytes() != others[path].tobytes() for path, part in parts.items()):
                return False
        return True

    def _rows(self, slab: _Slab, which: slice) -> Rows:
        rows: Rows = self._engine.map(lambda part: part[which], slab.rows)
        return rows


def _blocks(slab: _Slab, actions: Any, alive: Any) -> tuple[Any, Any]:
    """Return the actions of a slab's rows, and which of them are alive: one of each branch."""
    actions, alive = (part[:, slab.places].swapaxes(0, 1).reshape(-1, *part.shape[2:]) for part in (actions, alive))
    n_repeats = int((slab.places == slab.places[-1]).sum()) - 1
    if n_repeats:
        n_envs = len(alive) // len(slab.places)
        alive[-n_repeats * n_envs :] = False
    return actions, alive


def _by_env(tree: Any, n_envs: int) -> Any:
    """Bring results of rows [G · E, ...] into the order of environments, [E, G, ...]."""
    return map_trees(lambda part: part.reshape(-1, n_envs, *part.shape[1:]).swapaxes(0, 1), tree)


def _together(parts: Any, n_places: Sequence[int]) -> Any:
    """Put the results of slabs side by side, without the repeated ones."""
    if len(parts) == 1:
        return map_trees(lambda part: part[:, : n_places[0]], parts[0])

    def join(*each: Any) -> Any:
        distinct = [part[:, :n] for part, n in zip(each, n_places, strict=True)]
        return th.cat(distinct, dim=1) if isinstance(each[0], th.Tensor) else np.concatenate(distinct, axis=1)

    return map_trees(join, *parts)
