"""Packages that a command needs and that come with an extra of this one."""

from argparse import ArgumentParser
from collections.abc import Collection, Iterator
from contextlib import contextmanager


@contextmanager
def extra(parser: ArgumentParser, requirement: str, packages: Collection[str]) -> Iterator[None]:
    """
    Explain how to install what an import within the context does not find.

    :param parser: ends the command with the explanation
    :param requirement: what pip has to install
    :param packages: names of the packages that may be missing
    """
    try:
        yield
    except ModuleNotFoundError as error:
        if error.name not in packages:
            raise
        parser.exit(1, f'{error.name} is missing: pip install "{requirement}" installs what this command needs\n')
