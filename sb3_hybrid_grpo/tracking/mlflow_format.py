"""MLflow as an output format of SB3's logger."""

import time
from collections.abc import Mapping
from typing import Any

from stable_baselines3.common.logger import Figure, FormatUnsupportedError, Image

from sb3_hybrid_grpo.tracking.output_format import TrackerOutputFormat, close_figure, pixels


class MLflowOutputFormat(TrackerOutputFormat):
    """
    Writes to a run of MLflow: that which is active, else a new one, which ends when the logger is closed.

    Alerts, of which MLflow has none, are tags of the run. Texts, figures and images are artifacts; arrays and videos, which
    MLflow does not draw, raise SB3's ``FormatUnsupportedError`` unless ``exclude=("mlflow",)`` was given with them.

    :param kwargs: arguments of ``mlflow.start_run``, such as ``run_name``
    :raises MissingExtraError: if MLflow is not installed
    """

    package = "mlflow"

    def __init__(self, **kwargs: Any) -> None:
        self._mlflow = self._import()
        active = self._mlflow.active_run()
        self._is_own = active is None or bool(kwargs)
        run = self._mlflow.start_run(**kwargs) if self._is_own else active
        self.run_id: str = run.info.run_id
        """Id of the run."""
        self._client = self._mlflow.MlflowClient()

    def _write_hyperparameters(self, values: Mapping[str, Any]) -> None:
        texts = {name: str(value) for name, value in values.items()}
        known = self._client.get_run(self.run_id).data.params
        params = [self._mlflow.entities.Param(name, text) for name, text in texts.items() if name not in known]
        # MLflow lets no parameter change, and a second `learn` may have others.
        tags = [
            self._mlflow.entities.RunTag(f"changed/{name}", text)
            for name, text in texts.items()
            if known.get(name, text) != text
        ]
        self._client.log_batch(self.run_id, params=params, tags=tags)

    def _write_alert(self, title: str, text: str) -> None:
        self._client.set_tag(self.run_id, f"alerts/{title}", text)

    def _write_metrics(self, metrics: dict[str, float], step: int) -> None:
        now = round(1000 * time.time())
        entities = [self._mlflow.entities.Metric(name, value, now, step) for name, value in metrics.items()]
        self._client.log_batch(self.run_id, metrics=entities)

    def _write_object(self, key: str, value: Any, step: int) -> None:
        if isinstance(value, Figure):
            self._client.log_figure(self.run_id, value.figure, f"{key}/{step}.png")
            close_figure(value)
        elif isinstance(value, Image):
            self._client.log_image(self.run_id, pixels(value), f"{key}/{step}.png")
        elif isinstance(value, str):
            self._client.log_text(self.run_id, value, f"{key}/{step}.txt")
        else:
            raise FormatUnsupportedError([self.package], type(value).__name__)

    def close(self) -> None:
        """
        End the run, if it was begun here.
        """
        if self._is_own:
            self._mlflow.end_run()
