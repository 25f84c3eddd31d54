"""Clear errors for files that are no checkpoint."""

import pickle
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from sb3_hybrid_grpo.common.type_aliases import CheckpointError

# What SB3 and PyTorch raise about a file, by a piece of their messages, and what it means
_CAUSES = {
    "wasn't a zip-file": "is no zip-file: was the run killed while it was saving?",
    "in the saved file": "holds no model of SB3, or lost it.",
    "got set()": "holds no parameters of a model, or lost them.",
    "is no ActorCriticPolicy": "holds another kind of model.",
    "PytorchStreamReader": "is damaged.",
}
_DAMAGE = (zipfile.BadZipFile, zlib.error, EOFError, pickle.UnpicklingError, UnicodeDecodeError)


@contextmanager
def readable_checkpoint(path: Any) -> Iterator[None]:
    """
    Raise ``CheckpointError`` where reading a file fails because of the file.

    :param path: the file, for the message
    :raises CheckpointError: if it is damaged, or no zip-file of a model that fits
    """
    try:
        yield
    except Exception as error:
        causes = (cause for piece, cause in _CAUSES.items() if piece in str(error))
        cause = next(causes, "is damaged." if isinstance(error, _DAMAGE) else None)
        if cause is None:
            raise
        raise CheckpointError(f"{path} {cause} Load another checkpoint of the run. ({error})") from error
