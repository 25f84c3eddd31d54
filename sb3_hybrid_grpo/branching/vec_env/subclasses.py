"""Subclasses of SB3's vectorised environments and of ours, which may record steps, but must not change them."""

import copy
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv, VecEnv

from sb3_hybrid_grpo.branching.vec_env.workers import WorkersVecEnv
from sb3_hybrid_grpo.common import UnbranchableEnvError, identical

_STOCK_CLASSES: tuple[type[VecEnv], ...] = (DummyVecEnv, SubprocVecEnv, WorkersVecEnv)
_MAY_RECORD = ("step_async", "step_wait")
_MUST_BE_STOCK = ("step", "_save_obs", "_obs_from_buf")
_WAYS_OUT = (
    "Ways out: (1) do it in a wrapper of the single environments; (2) do it in a VecEnvWrapper, and tell branching with "
    "sb3_hybrid_grpo.branching.register_vec_wrapper; (3) train without branching, with n_samples=1."
)


def stock_class_of(venv: VecEnv) -> type[VecEnv] | None:
    """
    Find the class of SB3, or of this package, that a vectorised environment derives from.

    :param venv: the vectorised environment
    :return: ``DummyVecEnv``, ``SubprocVecEnv`` or ``WorkersVecEnv``; ``None`` if it is none of them
    :raises UnbranchableEnvError: if it overrides a method whose work branches would miss
    """
    stock = next((cls for cls in _STOCK_CLASSES if isinstance(venv, cls)), None)
    for name in _MUST_BE_STOCK:
        if stock is not None and getattr(type(venv), name, None) is not getattr(stock, name, None):
            raise UnbranchableEnvError(
                f"{type(venv).__name__} overrides {name} of {stock.__name__}, which branches do not go through. "
                f"It may override {' and '.join(_MAY_RECORD)}, to record what goes in and out.\n{_WAYS_OUT}"
            )
    return stock


def watch_steps(venv: VecEnv, stock: type[VecEnv], user: Any) -> None:
    """
    Compare what methods of a subclass take and return with what the stock methods, which they call, take and return.

    :param venv: the vectorised environment
    :param stock: its stock class
    :param user: who relies on it: nothing is compared any more when this is gone
    """
    for name in _MAY_RECORD:
        if getattr(type(venv), name) is not getattr(stock, name):
            vars(venv)[name] = _Witness(venv, stock, name, user)


class _Witness:
    """
    Takes the place of a method of a vectorised environment.

    :param venv: the vectorised environment
    :param stock: its stock class
    :param name: name of the method
    :param user: who relies on it, ``None`` in a copy
    """

    def __init__(self, venv: VecEnv, stock: type[VecEnv], name: str, user: Any = None) -> None:
        self._venv = venv
        self._stock = stock
        self._name = name
        self._user = None if user is None else weakref.ref(user)

    def __reduce__(self) -> tuple[Any, ...]:
        return _Witness, (self._venv, self._stock, self._name)

    def __call__(self, *arguments: Any) -> Any:
        method = getattr(type(self._venv), self._name)
        if self._user is None or self._user() is None:
            return method(self._venv, *arguments)
        given = copy.deepcopy(arguments)
        with self._spied() as seen:
            returned = method(self._venv, *arguments)
        if not seen:
            self._refuse("does not call")
        stock_arguments, stock_returned = seen[-1]
        if not _same(given, stock_arguments):
            self._refuse("gives other actions to")
        if stock_returned is not None and not _same(returned[:3], stock_returned):
            self._refuse("returns other observations, rewards or ends of episodes than")
        return returned

    @contextmanager
    def _spied(self) -> Iterator[list[tuple[Any, Any]]]:
        """Note what the stock method takes and returns for this environment, before anybody can change it in place."""
        stock, name, venv = self._stock, self._name, self._venv
        original, seen = getattr(stock, name), []

        def spy(other: VecEnv, *arguments: Any) -> Any:
            returned = original(other, *arguments)
            if other is venv:
                seen.append(copy.deepcopy((arguments, returned and returned[:3])))
            return returned

        setattr(stock, name, spy)
        try:
            yield seen
        finally:
            setattr(stock, name, original)

    def _refuse(self, what: str) -> None:
        raise UnbranchableEnvError(
            f"{type(self._venv).__name__}.{self._name} {what} {self._stock.__name__}.{self._name}: branches, which do "
            f"not go through it, are other steps than those of the run.\n{_WAYS_OUT}"
        )


def _same(first: Any, second: Any) -> bool:
    return all(
        identical(*pair) if isinstance(pair[0], dict | tuple) else identical(*map(np.asarray, pair))
        for pair in zip(first, second, strict=True)
    )
