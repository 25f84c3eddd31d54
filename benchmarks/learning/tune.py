"""
Tune PPO and Hybrid GRPO alike, by the area under the learning curve over processor seconds.

    python -m benchmarks.learning.tune --trials 60
    python -m benchmarks.learning.tune --repeat 5
    python -m benchmarks.learning.tune --report

A trial is one set of settings, trained on each task of its family for a budget of processor seconds; the mean of its scores
so far is compared with the median of other trials after each task, and trials below it end there (what is known to be good
is judged whole where trainings take minutes). Both algorithms have their
turns in one process, so that they meet the same machine, and each tries what the other has found best for their common
parameters. Finished trials are rows of ``trials.csv``; ``studies.db`` beside it
is Optuna's own, and is made again from the rows where it is missing. A tuning that was killed goes on where it was; no two may
go on in one folder at a time.
"""

import argparse
import json
import sys
import time
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import optuna
import torch as th

from benchmarks.learning.budgeted.rows import append_row
from benchmarks.learning.budgeted.tasks.families import FAMILIES
from benchmarks.learning.budgeted.tuning.known_good import CHEAP, first_trials
from benchmarks.learning.budgeted.tuning.report import best_settings, print_report
from benchmarks.learning.budgeted.tuning.search_space import search_space
from benchmarks.learning.budgeted.tuning.trial import ALGORITHMS, run_trial
from benchmarks.learning.budgeted.tuning.trials import (
    TrialRow,
    borrowed_params,
    finished_trials,
    ranking,
    restore,
    rows_of,
    tell,
)

FOLDER = Path(__file__).parents[1] / "results" / "tuning"
SECONDS = 25.0
FIRST_PRUNED = 8
MINUTES = 60.0
REPEATED_SEEDS = (1000, 1001, 1002)
FINAL_SEEDS = (*REPEATED_SEEDS, 1003, 1004, 1005, 1006)


def storage_in(folder: Path) -> optuna.storages.BaseStorage:
    """
    Open Optuna's own file.

    :param folder: where it is, or will be
    :return: the storage of all studies
    """
    folder.mkdir(parents=True, exist_ok=True)
    return optuna.storages.RDBStorage(f"sqlite:///{folder / 'studies.db'}")


def open_study(folder: Path, family: str, algorithm: str, in_minutes: bool = False) -> optuna.Study:
    """
    Open a study, in line with the rows beside it.

    :param folder: where rows and Optuna's own file are
    :param family: name of the family of tasks
    :param algorithm: name of the algorithm
    :param in_minutes: whether trainings take minutes rather than half of one
    :return: the study
    """
    study = optuna.create_study(
        study_name=f"{family}/{algorithm}",
        storage=storage_in(folder),
        load_if_exists=True,
        direction="maximize",
        pruner=optuna.pruners.MedianPruner(n_startup_trials=FIRST_PRUNED),
    )
    restore(study, finished_trials(folder))
    for params in [*first_trials(family, algorithm, in_minutes), *_borrowed(folder, family, algorithm)]:
        study.enqueue_trial(params, skip_if_exists=True)
    # A process that goes on must not draw what it drew before.
    study.sampler = optuna.samplers.TPESampler(multivariate=True, n_startup_trials=12, seed=len(study.trials))
    return study


def _borrowed(folder: Path, family: str, algorithm: str) -> list[dict[str, Any]]:
    own_starts = CHEAP if algorithm == "hybrid_grpo" else ()
    return borrowed_params(finished_trials(folder), family, algorithm, own_starts)


def next_trial(folder: Path, family: str, algorithm: str, seconds: float) -> TrialRow:
    """
    Try one set of settings more.

    :param folder: where rows and Optuna's own file are
    :param family: name of the family of tasks
    :param algorithm: name of the algorithm
    :param seconds: processor seconds of each training
    :return: its row, which is written
    """
    in_minutes = seconds >= MINUTES
    study = open_study(folder, family, algorithm, in_minutes)
    number = len(list(rows_of(finished_trials(folder), family, algorithm)))
    trial = study.ask(search_space(family, algorithm))
    # These are judged whole: at the ceiling of a task half of all trials are below the median.
    to_finish = [*_borrowed(folder, family, algorithm), *(first_trials(family, algorithm, True) if in_minutes else ())]

    def is_hopeless(step: int, mean_so_far: float) -> bool:
        trial.report(mean_so_far, step)
        return trial.should_prune() and trial.params not in to_finish

    # All trials of a number have one seed, whatever their algorithm, and no seed decides a study.
    row = run_trial(family, algorithm, number, trial.params, number, seconds, is_hopeless)
    append_row(folder / "trials.csv", row)
    tell(study, trial.number, row)
    return row


def repeat_best(
    folder: Path, family: str, how_many: int, seconds: float, algorithms: Sequence[str], seeds: Sequence[int]
) -> None:
    """
    Train the best settings with other seeds.

    :param folder: where rows are
    :param family: name of the family of tasks
    :param how_many: number of trials of each algorithm to repeat
    :param seconds: processor seconds of each training
    :param algorithms: names of the algorithms
    :param seeds: the seeds
    """
    for seed in seeds:
        for algorithm in algorithms:
            complete = [row for row in rows_of(finished_trials(folder), family, algorithm) if row.state == "complete"]
            for row in sorted(complete, key=lambda row: -row.value)[:how_many]:
                _repeat(folder, row, seed, seconds)


def repeat_finalists(folder: Path, family: str, how_many: int, seconds: float) -> None:
    """
    Train with further seeds what was best when it was repeated.

    :param folder: where rows are
    :param family: name of the family of tasks
    :param how_many: number of trials of each algorithm
    :param seconds: processor seconds of each training
    """
    finalists = [row for algorithm in ALGORITHMS for row, _ in ranking(finished_trials(folder), family, algorithm)[:how_many]]
    for seed in FINAL_SEEDS:
        for row in finalists:
            _repeat(folder, row, seed, seconds)


def _repeat(folder: Path, row: TrialRow, seed: int, seconds: float) -> None:
    done = {(again.family, again.algorithm, again.number, again.seed) for again in finished_trials(folder)}
    if (row.family, row.algorithm, row.number, seed) not in done:
        again = run_trial(row.family, row.algorithm, row.number, row.params, seed, seconds)
        append_row(folder / "trials.csv", again._replace(state="repeated"))
        announce(again)


def announce(row: TrialRow) -> None:
    """
    Say how a trial went.

    :param row: the finished trial
    """
    scores = " ".join(f"{task.partition('-')[0]}={score:.3f}" for task, score in row.scores.items())
    errors = " ".join(f"[{task}: {error}]" for task, error in row.errors.items())
    print(time.strftime("%H:%M:%S"), *row[:5], f"{row.value:.3f}", scores, errors, flush=True)


def main(argv: Sequence[str] | None = None) -> int:
    """
    Tune, repeat or report.

    :param argv: arguments of the command line, ``sys.argv`` by default
    :return: exit code
    """
    parser = argparse.ArgumentParser(prog="python -m benchmarks.learning.tune", description=__doc__.partition("\n\n")[0])
    parser.add_argument("--family", nargs="+", choices=list(FAMILIES), default=list(FAMILIES), help="default: all, in turn")
    parser.add_argument("--algorithms", nargs="+", choices=list(ALGORITHMS), default=list(ALGORITHMS), help="default: in turn")
    parser.add_argument("--trials", type=int, default=0, help="number of trials that each study shall have")
    parser.add_argument("--repeat", type=int, default=0, metavar="BEST", help="repeat this many with other seeds")
    parser.add_argument("--seeds", nargs="+", type=int, default=REPEATED_SEEDS, help="with which (%(default)s)")
    parser.add_argument("--finalists", type=int, default=0, metavar="BEST", help="repeat these, of those repeated, with seven")
    parser.add_argument("--report", action="store_true", help="print the best settings and what matters")
    parser.add_argument("--settings", type=Path, metavar="FILE", help="write the best settings of each study")
    parser.add_argument("--seconds", type=float, default=SECONDS, help="processor seconds of a training (%(default)s)")
    parser.add_argument("--folder", type=Path, default=FOLDER, help="where trials.csv is (%(default)s)")
    options = parser.parse_args(argv)
    th.set_num_threads(1)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    warnings.simplefilter("ignore")
    for family in options.family:
        for _ in range(len(options.algorithms) * options.trials):
            rows = finished_trials(options.folder)
            finished = {algorithm: len(list(rows_of(rows, family, algorithm))) for algorithm in options.algorithms}
            algorithm = min(finished, key=lambda name: finished[name])
            if finished[algorithm] >= options.trials:
                break
            announce(next_trial(options.folder, family, algorithm, options.seconds))
        if options.repeat:
            repeat_best(options.folder, family, options.repeat, options.seconds, options.algorithms, options.seeds)
        if options.finalists:
            repeat_finalists(options.folder, family, options.finalists, options.seconds)
    if options.settings:
        best = best_settings(finished_trials(options.folder), options.family)
        options.settings.write_text(json.dumps(best, indent=2) + "\n", encoding="utf-8")
    if options.report:
        print_report(options.folder, options.family)
    return 0


if __name__ == "__main__":
    sys.exit(main())
