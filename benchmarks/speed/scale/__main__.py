"""
What more workers bring to HybridGRPO (K=8, N=2), measured with one and two of them, and projected to 512.

    python -m benchmarks.speed.scale
    python -m benchmarks.speed.scale --report

Environments are in processes, and messages are held up as if the workers were further away. Written are the processor time of
the main process (collecting, updating) and of the workers, messages, bytes, and the seconds that these were on the way: none
of that depends on who else uses the cores, as wall-clock does. A row per measurement goes to
``benchmarks/results/scale.csv``; what is there is not measured again.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

import torch as th

from benchmarks import HERE
from benchmarks.speed.scale.measure import TASKS, measure, measure_messages
from benchmarks.speed.scale.report import report
from sb3_hybrid_grpo.compare.csv_files import read_rows

RESULTS = HERE / "results" / "scale.csv"


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """
    Read the command line.

    :param argv: its arguments, those of the process if ``None``
    :return: the options
    """
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--envs", nargs="+", choices=TASKS, default=TASKS)
    parser.add_argument("--workers", nargs="+", type=int, default=[1, 2])
    parser.add_argument("--envs-per-worker", nargs="+", type=int, default=[1, 4, 8])
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--output", type=Path, default=RESULTS, help="CSV file of rows")
    parser.add_argument("--report", action="store_true", help="print the tables of the documentation, and measure nothing")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> None:
    """
    Measure, or report.

    :param argv: arguments of the command line
    """
    options = parse(argv)
    if not options.report:
        th.set_num_threads(1)
        measure_messages(options.output, options.rounds)
        for env_id in options.envs:
            for workers in options.workers:
                for envs_per_worker in options.envs_per_worker:
                    measure(options.output, env_id, workers, envs_per_worker, options.rounds)
    print("\n".join(report(read_rows(options.output))))


if __name__ == "__main__":
    main()
