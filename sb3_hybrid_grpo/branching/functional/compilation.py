"""Whether functions of JAX are pure, as far as their traces tell. Imported only when JAX is used."""

from typing import Any

import jax
import numpy as np

from sb3_hybrid_grpo.branching.functional.contract import Functions, Rows
from sb3_hybrid_grpo.common import FunctionalEnvError


def traces(functions: Functions) -> list[Any]:
    """
    Trace a start and a step, without compiling or taking them.

    :param functions: an environment's functions
    :return: what would be computed, with all constants
    :raises FunctionalEnvError: if a function calls back into Python
    """
    keys = [jax.random.PRNGKey(idx) for idx in range(4)]
    space = functions.env.action_space
    state = jax.eval_shape(lambda keys: functions.start(keys)[0], keys)
    action = jax.ShapeDtypeStruct(space.shape, jax.dtypes.canonicalize_dtype(space.dtype))
    rows = Rows(state, jax.ShapeDtypeStruct((), np.int32))
    result: list[Any] = []
    for function, arguments in ((functions.start, (keys,)), (functions.step, (rows, action, keys))):
        traced = jax.make_jaxpr(function)(*arguments)
        if traced.effects:
            raise FunctionalEnvError(
                f"{type(functions.env).__name__} calls Python from compiled code ({', '.join(map(str, traced.effects))}): "
                f"its steps "
                "are no functions. Leave callbacks and prints out of them."
            )
        result += [str(traced.jaxpr), *(np.asarray(const).tobytes() for const in traced.consts)]
    return result
