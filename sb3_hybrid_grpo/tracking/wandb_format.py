"""Weights & Biases as an output format of SB3's logger."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch as th
from stable_baselines3.common.logger import Figure, Image, Video

from sb3_hybrid_grpo.tracking.output_format import TrackerOutputFormat, close_figure, pixels

_STEP = "global_step"
_MAX_TITLE = 63


class WandbOutputFormat(TrackerOutputFormat):
    """
    Writes to a run of Weights & Biases: that which is active, else a new one, which ends when the logger is closed.

    Curves are drawn over ``global_step``, the number of committed steps, as with ``wandb.init(sync_tensorboard=True)``.

    :param kwargs: arguments of ``wandb.init``, such as ``project`` or ``mode="offline"``
    :raises MissingExtraError: if wandb is not installed
    """

    package = "wandb"

    def __init__(self, **kwargs: Any) -> None:
        self._wandb = self._import()
        active = self._wandb.run
        self.run: Any = active if active is not None and not kwargs else self._wandb.init(**kwargs)
        """The run."""
        self._is_own = self.run is not active
        # W&B's own steps cannot go back, as those of a second training do.
        self.run.define_metric(_STEP)
        self.run.define_metric("*", step_metric=_STEP)

    def _write_hyperparameters(self, values: Mapping[str, Any]) -> None:
        self.run.config.update(dict(values), allow_val_change=True)

    def _write_alert(self, title: str, text: str) -> None:
        self.run.alert(title=title[:_MAX_TITLE], text=text, level="WARN")

    def _write_metrics(self, metrics: dict[str, float], step: int) -> None:
        self.run.log({**metrics, _STEP: step})

    def _write_object(self, key: str, value: Any, step: int) -> None:
        if isinstance(value, Figure):
            logged = self._wandb.Image(value.figure)
            close_figure(value)
        elif isinstance(value, Image):
            logged = self._wandb.Image(pixels(value))
        elif isinstance(value, Video):
            logged = self._wandb.Video(np.asarray(value.frames), fps=round(value.fps), format="mp4")
        elif isinstance(value, th.Tensor | np.ndarray):
            logged = self._wandb.Histogram(np.asarray(th.as_tensor(value).cpu()))
        else:
            logged = value
        self.run.log({key: logged, _STEP: step})

    def close(self) -> None:
        """
        End the run, if it was begun here.
        """
        if self._is_own:
            self.run.finish()
