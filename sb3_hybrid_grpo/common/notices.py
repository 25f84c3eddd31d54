"""Warnings that point to the line of the user's code which led to them."""

import os
import sys
import warnings
from pathlib import Path
from types import FrameType

import numpy as np
import stable_baselines3
import torch as th

_PASSED_OVER = tuple(
    str(Path(module).parent) + os.sep
    for module in (Path(__file__).parent, stable_baselines3.__file__, np.__file__, th.__file__)
)
"""Folders of code that users only call: this package, and those that stand between it and them."""


def warn(message: str) -> None:
    """
    Warn the user, at the innermost line of the stack that is in no library.

    What ``skip_file_prefixes`` of ``warnings.warn`` does, which Python has from 3.12 on.

    :param message: text of the ``UserWarning``
    """
    frame = _user_frame(sys._getframe(1))
    warnings.warn_explicit(
        message,
        UserWarning,
        frame.f_code.co_filename,
        frame.f_lineno,
        frame.f_globals.get("__name__"),
        frame.f_globals.setdefault("__warningregistry__", {}),
    )


def _user_frame(frame: FrameType) -> FrameType:
    """Return the innermost frame outside the libraries; the outermost one if there is none."""
    while frame.f_code.co_filename.startswith(_PASSED_OVER) and frame.f_back is not None:
        frame = frame.f_back
    return frame
