"""Experiments and measurements; not part of the package that is installed."""

from pathlib import Path

HERE = Path(__file__).parent
