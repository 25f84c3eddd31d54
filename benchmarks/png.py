"""Figures as small files, the same bytes for the same figure: each version of a file stays in the repository for good."""

import io
from pathlib import Path

from matplotlib.figure import Figure
from PIL import Image

LIMIT = 100_000
_COLORS = 64
_RESOLUTIONS = (90, 80, 70, 60, 50)


def save_png(figure: Figure, path: Path) -> None:
    """
    Write a figure as finely as a small file allows.

    :param figure: the figure
    :param path: a PNG file
    :raises ValueError: if it is larger than ``LIMIT`` bytes at the lowest resolution
    """
    for dpi in _RESOLUTIONS:
        drawn, file = io.BytesIO(), io.BytesIO()
        figure.savefig(drawn, format="png", dpi=dpi)
        image = Image.open(drawn).convert("RGB")
        image.quantize(_COLORS, dither=Image.Dither.NONE).save(file, "PNG", optimize=True)
        if file.tell() < LIMIT:
            path.write_bytes(file.getvalue())
            return
    raise ValueError(f"{path.name} would have {file.tell():,} bytes and may have {LIMIT:,}: draw fewer or smaller panels")
