"""What trackers are told beside the metrics."""

from collections.abc import Sequence

from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.logger import HParam

from sb3_hybrid_grpo.check import BranchReport
from sb3_hybrid_grpo.diagnostics import Symptom, Watch
from sb3_hybrid_grpo.tracking.hyperparameters import hyperparameters
from sb3_hybrid_grpo.tracking.output_format import Alert

_ONLY_NUMBERS = ("stdout", "log", "json", "csv")
"""SB3's output formats that take no texts and no hyperparameters."""


class TrackingCallback(BaseCallback):
    """
    Logs hyperparameters, how the environment is branched, and what the doctor would find, as soon as he would.

    All of it goes to TensorBoard (hyperparameters to its HParams tab) and to ``WandbOutputFormat`` and ``MLflowOutputFormat``,
    whichever the logger has. It works with PPO as well, whose logs have some of the symptoms' metrics.

    :param support: what ``check_branchable`` says of the environment: its verdict becomes the hyperparameter ``support``
    :param metrics: metrics that TensorBoard shows beside hyperparameters
    :param verbose: Verbosity level, as in SB3
    """

    def __init__(
        self,
        support: BranchReport | None = None,
        metrics: Sequence[str] = ("rollout/ep_rew_mean", "train/explained_variance"),
        verbose: int = 0,
    ) -> None:
        super().__init__(verbose)
        self.support = support
        self.metrics = metrics
        self._watch = Watch(self._alert)

    def _on_training_start(self) -> None:
        values = hyperparameters(self.model)
        if self.support is not None:
            values["support"] = self.support.verdict
            self.logger.record("support/report", str(self.support), exclude=_ONLY_NUMBERS)
        self.logger.record("hparams", HParam(values, dict.fromkeys(self.metrics, 0.0)), exclude=_ONLY_NUMBERS)

    def _on_rollout_end(self) -> None:
        # With the metrics of the update before.
        self._watch.look(self.logger.name_to_value)

    def _on_step(self) -> bool:
        return True

    def _alert(self, symptom: Symptom, text: str) -> None:
        self.logger.record(f"alerts/{symptom.name}", Alert(text), exclude=_ONLY_NUMBERS)
