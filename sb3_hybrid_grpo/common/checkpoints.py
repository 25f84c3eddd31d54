"""Clear errors for files that are no checkpoint."""

import pickle
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from sb3_hybrid_grpo.common.type_aliases import CheckpointError

_DAMAGE = (zipfile.BadZipFile, zlib.error, EOFError, pickle.UnpicklingError, UnicodeDecodeError)


@contextmanager
def readable_checkpoint(path: Any) -> Iterator[None]:
    """
    Raise ``CheckpointError`` where reading a file fails because of the file.

    :param path: the file, for the message
    :raises CheckpointError: if it is damaged, or no zip-file of an SB3 model
    """
    try:
        yield
    except _DAMAGE as error:
        raise CheckpointError(f"{path} is damaged: {error}. Load another checkpoint of the run.") from error
    except ValueError as error:
        if "wasn't a zip-file" not in str(error):
            raise
        raise CheckpointError(
            f"{path} is no zip-file, or a truncated one: was the run killed while it was saving? Load another checkpoint."
        ) from error
    except AssertionError as error:
        if "in the saved file" not in str(error):
            raise
        raise CheckpointError(f"{path} is a zip-file, but holds no SB3 model: {error}.") from error
    except RuntimeError as error:
        if "PytorchStreamReader" not in str(error):
            raise
        raise CheckpointError(f"{path} is damaged: {error}. Load another checkpoint of the run.") from error
