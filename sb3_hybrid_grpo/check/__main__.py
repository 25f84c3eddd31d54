"""``python -m sb3_hybrid_grpo.check``: can this environment be branched?"""

import argparse
import importlib
import io
import sys
from collections.abc import Callable, Sequence
from typing import Any

from sb3_hybrid_grpo.check.check import check_branchable
from sb3_hybrid_grpo.common import InvalidArgumentError


def main(arguments: Sequence[str] | None = None) -> int:
    """
    Check an environment and print the report.

    :param arguments: those of the command line
    :return: 0 if it can be branched exactly, 1 if not, 2 if there is no such environment
    """
    parser = argparse.ArgumentParser(
        prog="python -m sb3_hybrid_grpo.check",
        description="Tells whether an environment can be branched exactly, what stands in the way and what it costs.",
    )
    parser.add_argument("env", metavar="ENV_ID", help="id of the environment; module:ENV_ID imports a module first")
    parser.add_argument(
        "--wrapper",
        metavar="MODULE:CLASS",
        action="append",
        default=[],
        help="a wrapper; repeat from the inside out",
    )
    parser.add_argument("--n-envs", type=int, default=1, help="number of environments that are branched together")
    parser.add_argument("--steps", type=int, help="number of steps to take; by default several episodes or 500 steps")
    options = parser.parse_args(arguments)
    try:
        wrappers = [_load(name) for name in options.wrapper]
        report = check_branchable(options.env, wrappers, n_envs=options.n_envs, n_steps=options.steps)
    except InvalidArgumentError as error:
        print(error, file=sys.stderr)
        return 2
    if isinstance(sys.stdout, io.TextIOWrapper):
        # Some code pages have no µ.
        sys.stdout.reconfigure(errors="replace")
    print(report)
    return 0 if report.is_exact else 1


def _load(name: str) -> Callable[[Any], Any]:
    module, _, qualified_name = name.partition(":")
    try:
        found: Any = importlib.import_module(module)
        for part in qualified_name.split("."):
            found = getattr(found, part)
    except (ImportError, AttributeError, ValueError) as error:
        raise InvalidArgumentError(f"There is no wrapper {name!r}; write module:Class. {error}") from error
    wrapper: Callable[[Any], Any] = found
    return wrapper


if __name__ == "__main__":
    sys.exit(main())
