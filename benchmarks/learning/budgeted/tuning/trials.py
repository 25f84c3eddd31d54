"""Finished trials of studies as rows of a CSV file, from which a study is made again on another machine."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import optuna
from optuna.trial import TrialState

from benchmarks.learning.budgeted.rows import read_rows
from benchmarks.learning.budgeted.tuning.search_space import search_space

_ENOUGH_TO_BORROW = 6
_BEFORE = {"natural": False, "noise_together": False, "max_learning_rate": 1e-2}


class TrialRow(NamedTuple):
    """
    A finished trial, or the repetition of one with another seed.

    :param family: name of the family of tasks
    :param algorithm: ``"ppo"`` or ``"hybrid_grpo"``
    :param number: how many trials of its study were finished before
    :param seed: seed of its trainings
    :param state: ``"complete"``, ``"pruned"`` or ``"repeated"``
    :param value: mean of its scores
    :param params: its parameters
    :param scores: score of each task it was trained on, in order
    :param curves: points of each training: processor seconds, committed steps, simulator steps, mean return
    :param errors: what ended trainings early, by task
    :param seconds: processor seconds of each training
    :param provenance: code and machine
    """

    family: str
    algorithm: str
    number: int
    seed: int
    state: str
    value: float
    params: Mapping[str, Any]
    scores: Mapping[str, float]
    curves: Mapping[str, Sequence[Sequence[float]]]
    errors: Mapping[str, str]
    seconds: float
    provenance: Mapping[str, str]


def rows_of(rows: Sequence[TrialRow], family: str, algorithm: str) -> Iterator[TrialRow]:
    """
    Pick the trials of a study, without repetitions.

    :param rows: finished trials of all studies
    :param family: name of the family of tasks
    :param algorithm: name of the algorithm
    :return: its rows
    """
    return (row for row in rows if (row.family, row.algorithm) == (family, algorithm) and row.state != "repeated")


def finished_trials(folder: Path) -> list[TrialRow]:
    """
    Read the finished trials of all studies.

    :param folder: where they are
    :return: their rows
    """
    rows = read_rows(folder / "trials.csv", TrialRow)
    return [row._replace(params=with_former_choices(row.family, row.algorithm, row.params)) for row in rows]


def with_former_choices(family: str, algorithm: str, params: Mapping[str, Any]) -> dict[str, Any]:
    """
    Complete parameters that are older than a choice: no natural-gradient steps were taken then, and each dimension of an
    action had the noise that it had.

    :param family: name of the family of tasks
    :param algorithm: ``"ppo"`` or ``"hybrid_grpo"``
    :param params: parameters of a trial
    :return: the same with what they lacked
    """
    space = search_space(family, algorithm)
    return {**params, **{name: value for name, value in _BEFORE.items() if name in space}, **params}


def ranking(rows: Sequence[TrialRow], family: str, algorithm: str) -> list[tuple[TrialRow, list[float]]]:
    """
    Order the complete trials of a study: those that were repeated first, by the mean of their repetitions alone, since the
    value that had them chosen is biased; then the others, by their value.

    :param rows: finished trials of all studies
    :param family: name of the family of tasks
    :param algorithm: name of the algorithm
    :return: trials, each with the values of its repetitions
    """
    repeated = [row for row in rows if (row.family, row.algorithm, row.state) == (family, algorithm, "repeated")]
    complete = [row for row in rows_of(rows, family, algorithm) if row.state == "complete"]
    pairs = [(row, [again.value for again in repeated if again.number == row.number]) for row in complete]
    return sorted(pairs, key=lambda pair: (bool(pair[1]), np.mean(pair[1]) if pair[1] else pair[0].value), reverse=True)


def borrowed_params(
    rows: Sequence[TrialRow], family: str, algorithm: str, own_starts: Sequence[Mapping[str, Any]] = ()
) -> list[dict[str, Any]]:
    """
    Join what the other algorithm has found for the parameters of both, and what this one has found for those of its own.

    :param rows: finished trials of all studies
    :param family: name of the family of tasks
    :param algorithm: name of the algorithm
    :param own_starts: further settings of its own to join
    :return: parameters to try, none if there is too little to go by
    """
    rankings = [ranking(rows, family, name) for name in (algorithm, "ppo" if algorithm == "hybrid_grpo" else "hybrid_grpo")]
    if min(map(len, rankings)) < _ENOUGH_TO_BORROW:
        return []
    best_of_own, best_of_others = (trials[0][0].params for trials in rankings)
    shared = {name: value for name, value in best_of_others.items() if name in best_of_own}
    return [{**best_of_own, **start, **shared} for start in ({}, *own_starts)]


def means_so_far(row: TrialRow) -> list[float]:
    """
    Return what a trial reports to its study.

    :param row: a finished trial
    :return: the mean score after each of its tasks
    """
    scores = list(row.scores.values())
    return [sum(scores[: i + 1]) / (i + 1) for i in range(len(scores))]


def restore(study: optuna.Study, rows: Sequence[TrialRow]) -> None:
    """
    Bring a study in line with the rows: it learns what other machines have tried, and tries once more what was killed.

    :param study: a study whose name is family and algorithm
    :param rows: finished trials of all studies
    """
    family, algorithm = study.study_name.split("/")
    finished = list(rows_of(rows, family, algorithm))
    for trial in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
        row = next((row for row in finished if row.params == trial.params), None)
        if row is None:
            study.tell(trial.number, state=TrialState.FAIL)
            study.enqueue_trial(trial.params)
        else:
            tell(study, trial.number, row)
    known = [trial.params for trial in study.get_trials(deepcopy=False) if trial.state != TrialState.FAIL]
    space = search_space(family, algorithm)
    for row in finished:
        if row.params not in known:
            means = dict(enumerate(means_so_far(row)))
            study.add_trial(
                optuna.create_trial(
                    state=_state(row),
                    value=row.value if row.state == "complete" else None,
                    params=dict(row.params),
                    distributions=space,
                    intermediate_values=means,
                )
            )


def tell(study: optuna.Study, trial: int, row: TrialRow) -> None:
    """
    Tell a study how a trial went.

    :param study: the study
    :param trial: the trial's number there
    :param row: the finished trial
    """
    study.tell(trial, row.value if row.state == "complete" else None, _state(row))


def _state(row: TrialRow) -> TrialState:
    return TrialState.COMPLETE if row.state == "complete" else TrialState.PRUNED
