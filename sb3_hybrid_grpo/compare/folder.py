"""The folder that a comparison writes: what is in it decides which runs are still to do."""

import json
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path

from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm

from sb3_hybrid_grpo import __version__
from sb3_hybrid_grpo.compare.csv_files import read_rows, write_rows
from sb3_hybrid_grpo.compare.settings import Run, Settings
from sb3_hybrid_grpo.compare.training import Evaluation


class ResultsFolder:
    """
    Checkpoints, learning curves and settings of one comparison.

    A run is finished once its curve is in ``runs/``, which is written last. The folder belongs to one
    set of settings and version of this package; more algorithms and seeds can be added to it at any time.

    :param path: the folder, made if it does not exist
    :param settings: settings of the comparison
    :raises ValueError: if the folder holds a comparison with other settings
    """

    def __init__(self, path: Path, settings: Settings) -> None:
        self.path = path
        self._curves = path / "runs"
        self._curves.mkdir(parents=True, exist_ok=True)
        self._claim(path / "settings.json", json.loads(json.dumps({"version": __version__, **asdict(settings)})))

    def checkpoint(self, run: Run) -> Path:
        """
        Where the trained model of a run is.

        :param run: algorithm and seed
        :return: path of the zip file
        """
        return self.path / f"{run.name}.zip"

    def traceback(self, run: Run) -> Path:
        """
        Where the traceback of a failed run is.

        :param run: algorithm and seed
        :return: path of the text file
        """
        return self._curves / f"{run.name}.traceback.txt"

    def normalization(self, run: Run) -> Path:
        """
        Where the statistics of a run's ``VecNormalize`` are, if it has one.

        :param run: algorithm and seed
        :return: path of the pickle
        """
        return self.path / f"{run.name}_vecnormalize.pkl"

    def log(self, run: Run) -> Path:
        """
        Where is what a run has printed.

        :param run: algorithm and seed
        :return: path of the text file
        """
        return self._curves / f"{run.name}.log"

    def is_finished(self, run: Run) -> bool:
        """
        Whether a run has left everything it leaves.

        :param run: algorithm and seed
        :return: True if there is nothing left to do for it
        """
        return self._curve(run).exists() and self.checkpoint(run).exists()

    def save(self, run: Run, model: OnPolicyAlgorithm, evaluations: Iterable[Evaluation]) -> None:
        """
        Keep a finished run.

        :param run: algorithm and seed
        :param model: the trained model
        :param evaluations: its learning curve
        """
        model.save(self.checkpoint(run))
        normalization = model.get_vec_normalize_env()
        if normalization is not None:
            normalization.save(str(self.normalization(run)))
        _write_evaluations(self._curve(run), evaluations)
        self.traceback(run).unlink(missing_ok=True)

    def collect(self) -> list[Evaluation]:
        """
        Collect the learning curves of all finished runs, and write them to ``results.csv``.

        :return: all evaluations, one run after the other
        """
        evaluations = [point for path in sorted(self._curves.glob("*.csv")) for point in read_evaluations(path)]
        _write_evaluations(self.path / "results.csv", evaluations)
        return evaluations

    def _curve(self, run: Run) -> Path:
        return self._curves / f"{run.name}.csv"

    def _claim(self, path: Path, settings: dict[str, object]) -> None:
        if not path.exists():
            path.write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
            return
        found = json.loads(path.read_text(encoding="utf-8"))
        differences = [f"{name} is {found.get(name)} there" for name in settings if found.get(name) != settings[name]]
        if differences:
            raise ValueError(
                f"{self.path} holds a comparison with other settings ({', '.join(differences)}): "
                "choose another folder, or delete it to start over"
            )


def read_evaluations(path: Path) -> list[Evaluation]:
    """
    Read learning curves.

    :param path: a ``results.csv``
    :return: its rows
    """
    types = Evaluation.__annotations__
    return [Evaluation(**{name: types[name](text) for name, text in row.items()}) for row in read_rows(path)]


def _write_evaluations(path: Path, evaluations: Iterable[Evaluation]) -> None:
    write_rows(path, Evaluation._fields, (evaluation._asdict() for evaluation in evaluations))
