"""What a run prints, in a file: it must not scroll through the progress of all runs."""

import os
import re
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

_WARNING = "Warning: "
_STDOUT, _STDERR = 1, 2


@contextmanager
def printing_to(path: Path) -> Iterator[None]:
    """
    Let whatever the process prints within the context go to a file, libraries that are not written in Python included.

    :param path: the file
    """
    with path.open("w", encoding="utf-8") as file, warnings.catch_warnings():
        warnings.showwarning = _show  # type: ignore[assignment]
        _flush()
        saved = {stream: os.dup(stream) for stream in (_STDOUT, _STDERR)}
        try:
            for stream in saved:
                os.dup2(file.fileno(), stream)
            yield
        finally:
            _flush()
            for stream, copy in saved.items():
                os.dup2(copy, stream)
                os.close(copy)


def warnings_in(path: Path) -> list[str]:
    """
    Find the warnings in a log.

    :param path: a file that ``printing_to`` has written, or none
    :return: their messages
    """
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines() if path.exists() else []
    return [line.removeprefix(_WARNING) for line in lines if line.startswith(_WARNING)]


def _show(message: Warning | str, *_: Any) -> None:
    # Gymnasium's have colours and a prefix.
    text = re.sub(r"\x1b\[[\d;]*m", "", str(message)).removeprefix("WARN: ")
    print(_WARNING + " ".join(text.split()), file=sys.stderr)


def _flush() -> None:
    sys.stdout.flush()
    sys.stderr.flush()
