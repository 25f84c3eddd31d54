"""What a copy of the process would share with the original, or would not have."""

import mmap
import subprocess
import sys
import threading
from collections.abc import Iterable
from multiprocessing.process import BaseProcess
from multiprocessing.synchronize import SemLock
from typing import Any

import gymnasium as gym
import numpy as np
import torch as th

from sb3_hybrid_grpo.branching.copies.child import CAN_REOPEN, is_regular_file
from sb3_hybrid_grpo.branching.simulator import Simulator
from sb3_hybrid_grpo.branching.snapshots import find, kind_of
from sb3_hybrid_grpo.branching.surroundings import find_in_code, is_outlet

_STANDARD_STREAMS = (sys.__stdin__, sys.__stdout__, sys.__stderr__)


def obstacle_to_fork(envs: Iterable[gym.Env[Any, Any]]) -> str | None:
    """
    Look for what a copy of the process would share with the original, or would not have.

    :param envs: environments
    :return: a description of the first such thing; ``None`` if there is none
    """
    for env in envs:
        simulator = Simulator(env)
        with simulator.unwatched():
            found = find(simulator.roots, is_shared) or find_in_code(simulator.root, simulator.roots, is_shared)
        if found is not None:
            path, obj = found
            return (
                f"{env} cannot be branched by forking: {path} is a {kind_of(obj)}, which a copy of the process does not "
                "have, or shares with the original.\n"
                f"Ways out: (1) register_codec({type(obj).__name__}, CONSTANT) of sb3_hybrid_grpo.branching if steps do not "
                "use it; (2) train without branching, with n_samples=1."
            )
    return None


def is_shared(obj: Any) -> bool:
    """
    Tell whether an object stands for something of which a copy of the process has no copy.

    :param obj: any object
    :return: whether it is a living thread or process, an open file, socket, pipe or data base, a lock between processes, or
        memory that other processes or devices see
    """
    if isinstance(obj, threading.Thread | BaseProcess):
        return obj.is_alive()
    if isinstance(obj, subprocess.Popen):
        return obj.returncode is None
    if isinstance(obj, np.ndarray):
        return _is_shared_array(obj)
    if isinstance(obj, th.Tensor):
        return bool(obj.device.type != "cpu" or obj.is_shared())  # type: ignore[no-untyped-call]
    return isinstance(obj, SemLock) or _is_open_file(obj) or is_outlet(obj)


def _is_open_file(obj: Any) -> bool:
    """Tell whether an object is an open file, socket or pipe, with a position or a peer that two processes would share."""
    if not hasattr(type(obj), "fileno") or any(obj is stream for stream in _STANDARD_STREAMS):
        return False
    try:
        descriptor = int(obj.fileno())
        if descriptor < 0:
            return False
        is_only_read = CAN_REOPEN and is_regular_file(descriptor) and not obj.writable()
    except (OSError, ValueError):
        return False
    except AttributeError:
        return True
    return not is_only_read


def _is_shared_array(array: np.ndarray) -> bool:
    if isinstance(array, np.memmap):
        return array.mode in ("r+", "w+")
    if not array.flags.writeable:
        return False
    memory: Any = array
    while isinstance(memory, np.ndarray | memoryview):
        memory = memory.base if isinstance(memory, np.ndarray) else memory.obj
    # The last is how multiprocessing marks its RawArray and RawValue.
    return isinstance(memory, mmap.mmap) or hasattr(memory, "_wrapper")
