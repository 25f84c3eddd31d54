"""Tables for people."""

from collections.abc import Iterable, Sequence


def print_aligned(lines: Iterable[Sequence[str]]) -> None:
    """
    Print a table, its numbers to the right.

    :param lines: its cells, the header first
    """
    lines = list(lines)
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    for line in lines:
        print("  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True)))
