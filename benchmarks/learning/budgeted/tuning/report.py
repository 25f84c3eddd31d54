"""What a tuning has found."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import optuna
from optuna.importance import FanovaImportanceEvaluator, get_param_importances

from benchmarks.learning.budgeted.tuning.search_space import search_space
from benchmarks.learning.budgeted.tuning.trials import TrialRow, finished_trials, ranking, restore, rows_of

_FEWEST_FOR_IMPORTANCE = 10


def importances(rows: Sequence[TrialRow], family: str, algorithm: str) -> dict[str, float]:
    """
    Share the variance of the values among the parameters (functional ANOVA of a random forest). Only complete trials count.

    :param rows: finished trials of all studies
    :param family: name of the family of tasks
    :param algorithm: name of the algorithm
    :return: shares by parameter, the largest first; none if there are too few trials
    """
    complete = [row for row in rows_of(rows, family, algorithm) if row.state == "complete"]
    if len(complete) < _FEWEST_FOR_IMPORTANCE:
        return {}
    study = optuna.create_study(study_name=f"{family}/{algorithm}", direction="maximize")
    restore(study, rows)
    names = list(search_space(family, algorithm))
    return dict(get_param_importances(study, evaluator=FanovaImportanceEvaluator(seed=0), params=names))


def best_settings(rows: Sequence[TrialRow], families: Sequence[str]) -> dict[str, dict[str, Any]]:
    """
    Pick what each study has found.

    :param rows: finished trials of all studies
    :param families: names of families of tasks
    :return: parameters by family and algorithm
    """
    return {
        family: {algorithm: dict(ranking(rows, family, algorithm)[0][0].params) for algorithm in ("ppo", "hybrid_grpo")}
        for family in families
    }


def print_report(folder: Path, families: Sequence[str]) -> None:
    """
    Print tables in Markdown.

    :param folder: where rows are
    :param families: names of families of tasks
    """
    rows = finished_trials(folder)
    for family in families:
        for algorithm in ("ppo", "hybrid_grpo"):
            own = list(rows_of(rows, family, algorithm))
            n_complete = sum(row.state == "complete" for row in own)
            print(f"\n## {family}, {algorithm}: {len(own)} trials, {n_complete} complete\n")
            print("| trial | value | repeated | scores | parameters |\n|---|---|---|---|---|")
            for row, values in ranking(rows, family, algorithm)[:10]:
                scores = ", ".join(f"{task} {score:.2f}" for task, score in row.scores.items())
                params = ", ".join(f"{name} {_text(value)}" for name, value in row.params.items())
                again = f"{np.mean(values):.3f} ({', '.join(f'{value:.2f}' for value in values)})" if values else ""
                print(f"| {row.number} | {row.value:.3f} | {again} | {scores} | {params} |")
            shares = importances(rows, family, algorithm)
            if shares:
                print("\nImportance: " + ", ".join(f"{name} {share:.2f}" for name, share in shares.items()))


def _text(value: object) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)
