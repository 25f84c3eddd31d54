"""What the output formats of trackers have in common."""

import importlib
import importlib.util
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
from stable_baselines3.common.logger import Figure, HParam, Image, KVWriter

from sb3_hybrid_grpo.common import MissingExtraError


class Alert(str):
    """A logged text that trackers send as an alert, under the name that it is logged by; to other output formats, a text."""


class TrackerOutputFormat(KVWriter, ABC):
    """
    An output format of SB3's logger that writes to a run of a tracker.

    ``package`` names the tracker's, the extra that brings it, and what ``exclude`` of ``Logger.record`` calls the format.
    """

    package: ClassVar[str]

    def write(self, key_values: dict[str, Any], key_excluded: dict[str, tuple[str, ...]], step: int = 0) -> None:
        """
        Write logged values to the run.

        :param key_values: values by their names
        :param key_excluded: output formats that a value is not for, by its name
        :param step: number of committed steps
        """
        metrics: dict[str, float] = {}
        for key, value in key_values.items():
            if self.package in (key_excluded[key] or ()):
                continue
            if isinstance(value, HParam):
                self._write_hyperparameters(value.hparam_dict)
            elif isinstance(value, Alert):
                self._write_alert(key.rpartition("/")[2], value)
            elif isinstance(value, np.ScalarType) and not isinstance(value, str):
                metrics[key] = float(value)  # type: ignore[arg-type]
            else:
                self._write_object(key, value, step)
        self._write_metrics(metrics, step)

    @abstractmethod
    def _write_hyperparameters(self, values: Mapping[str, Any]) -> None: ...

    @abstractmethod
    def _write_alert(self, title: str, text: str) -> None: ...

    @abstractmethod
    def _write_metrics(self, metrics: dict[str, float], step: int) -> None: ...

    @abstractmethod
    def _write_object(self, key: str, value: Any, step: int) -> None:
        """Write a text, a figure, an image, a video or an array."""

    @classmethod
    def _import(cls) -> Any:
        spec = importlib.util.find_spec(cls.package)
        # A folder of runs in the working directory has the name of the package as well, but no code of its own.
        if spec is None or spec.origin is None:
            raise MissingExtraError(
                f'{cls.__name__} needs {cls.package}, which is not installed: pip install "sb3-hybrid-grpo[{cls.package}]"'
            )
        return importlib.import_module(cls.package)


def close_figure(figure: Figure) -> None:
    """
    Take a figure from pyplot's list, if it is to be closed once it has been logged.

    :param figure: what was logged
    """
    if figure.close:
        import matplotlib.pyplot as plt

        plt.close(figure.figure)


def pixels(image: Image) -> np.ndarray:
    """
    Return the pixels of a logged image.

    :param image: what was logged
    :return: its pixels, [height, width] or [height, width, channels]
    """
    axes = image.dataformats.upper()
    return np.transpose(np.asarray(image.image), [axes.index(axis) for axis in "HWC" if axis in axes])
