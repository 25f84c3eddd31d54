"""Which engine serves a functional environment."""

import importlib.util

import torch as th

from sb3_hybrid_grpo.branching.functional.contract import Engine, Functions
from sb3_hybrid_grpo.branching.functional.eager_engine import EagerEngine
from sb3_hybrid_grpo.common import InvalidArgumentError, MissingExtraError

_ARRAYS = ("jax", "numpy", "torch")
_DEVICES = ("auto", "cpu", "cuda")


def make_engine(arrays: str, functions: Functions, device: str) -> Engine:
    """
    Make the engine of an environment.

    :param arrays: ``"jax"``, ``"numpy"`` or ``"torch"``
    :param functions: the environment's functions
    :param device: ``"auto"``, ``"cpu"`` or ``"cuda"``
    :return: the engine
    :raises InvalidArgumentError: if there is no such library or device
    :raises MissingExtraError: if JAX is not installed
    """
    if arrays not in _ARRAYS:
        raise InvalidArgumentError(f"arrays={arrays!r}: choose one of {', '.join(map(repr, _ARRAYS))}.")
    if device not in _DEVICES:
        raise InvalidArgumentError(f"device={device!r}: choose one of {', '.join(map(repr, _DEVICES))}.")
    if arrays == "numpy":
        if device == "cuda":
            raise InvalidArgumentError("device='cuda' is not possible: arrays of NumPy are in the machine's own memory.")
        return EagerEngine(functions)
    if arrays == "torch":
        if device == "cuda" and not th.cuda.is_available():
            raise InvalidArgumentError("device='cuda' is not possible: PyTorch finds no GPU. Use device='cpu'.")
        return EagerEngine(functions, th.device("cpu" if device == "auto" else device))
    require_jax(type(functions.env).__name__)
    from sb3_hybrid_grpo.branching.functional.jax_engine import JaxEngine, device_of

    try:
        return JaxEngine(functions, device_of(device))
    except RuntimeError as error:
        raise InvalidArgumentError(
            "device='cuda' is not possible: JAX finds no GPU. Install a JAX for it, such as `pip install \"jax[cuda13]\"`, "
            f"or use device='cpu'. ({error})"
        ) from error


def require_jax(name: str) -> None:
    """
    Check that JAX is there.

    :param name: what needs it
    :raises MissingExtraError: if it is not
    """
    if importlib.util.find_spec("jax") is None:
        raise MissingExtraError(
            f'{name} needs JAX, which is not installed: pip install "sb3-hybrid-grpo[jax]". An environment in NumPy or '
            'PyTorch needs none: give it an attribute `arrays = "numpy"` or `arrays = "torch"`.'
        )
