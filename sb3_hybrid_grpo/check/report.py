"""The result of a check, as data and as text."""

import re
from typing import NamedTuple


class Costs(NamedTuple):
    """
    What branching costs, in microseconds.

    :param raw_step: one ``env.step``
    :param snapshot: saving and restoring the environment's state once; ``None`` without snapshots
    :param branch_step: one step of one branch, all included
    """

    raw_step: float
    snapshot: float | None
    branch_step: float

    def __str__(self) -> str:
        snapshot = "" if self.snapshot is None else f"save and restore {self.snapshot:.0f} µs, "
        branch_step = f"{self.branch_step:.0f} µs, {self.branch_step / self.raw_step:.2f} times as much"
        return f"env.step {self.raw_step:.0f} µs, {snapshot}step of a branch {branch_step}"


class Trial(NamedTuple):
    """
    What a verdict rests on.

    :param n_steps: number of committed steps
    :param n_branched: number of them before which branches were tried
    :param n_ends: number of ends of episodes among them
    """

    n_steps: int
    n_branched: int
    n_ends: int

    def __str__(self) -> str:
        steps = f"{self.n_steps} steps" if self.n_branched == self.n_steps else f"{self.n_branched} of {self.n_steps} steps"
        return f"in {steps} with {self.n_ends or 'no'} end{'' if self.n_ends == 1 else 's'} of episodes"


_WAYS = {"snapshot": "by snapshots", "fork": "by forking", "replay": "by replaying episodes"}


class BranchReport(NamedTuple):
    """
    Whether and how an environment can be branched.

    :param name: the environment
    :param brancher: ``"snapshot"``, ``"fork"`` or ``"replay"``, as ``brancher="auto"`` takes them, which prefers replays to
        forks where they are quicker; ``"functional"`` where states are values; ``None`` if none is exact
    :param findings: what stands in the way of snapshots, or of branching at all, and what can be done about it
    :param side_effects: what steps do outside the process, and branches with them
    :param notes: what was checked, and what could not be
    :param variables: variables beside the attributes of the environment that its code names, and what is done about them
    :param codecs: types of the objects that the state consists of, and what saves them
    :param costs: what branching costs; ``None`` if it is impossible
    :param trial: what the verdict rests on; ``None`` if branching is impossible
    """

    name: str
    brancher: str | None
    findings: list[str]
    side_effects: list[str]
    notes: list[str]
    variables: dict[str, str]
    codecs: dict[str, str]
    costs: Costs | None
    trial: Trial | None

    @property
    def is_exact(self) -> bool:
        """Whether branching is exact in one way or another."""
        return self.brancher is not None

    @property
    def verdict(self) -> str:
        """How the environment is branched exactly, or that it cannot be, and what is in the way."""
        if self.brancher is None:
            return f"cannot be branched ({self._reason})"
        kind = "exact, with side effects," if self.side_effects else "exact"
        if self.brancher == "functional":
            return "exact, functional"
        verdict = f"{kind} {_WAYS[self.brancher]}, {self.trial}"
        return verdict if self.brancher == "snapshot" else f"{verdict} ({self._reason})"

    @property
    def _reason(self) -> str:
        first_sentence = re.split(r"\.\s", self.findings[-1])[0]
        return re.sub(r"^.*? cannot be branched( by [a-z ]+)?: ", "", first_sentence).rstrip(".")

    def __str__(self) -> str:
        lines = [f"{self.name}: {self.verdict}"]
        sections = {"in the way": self.findings, "side effects": self.side_effects, "checked": self.notes}
        for title, items in sections.items():
            lines += [f"\n{title}:"] * bool(items) + [f"  - {item}".replace("\n", "\n    ") for item in items]
        for title, table in {"beside the attributes": self.variables, "saved by": self.codecs}.items():
            width = max(map(len, table), default=0)
            lines += [f"\n{title}:"] * bool(table) + [f"  {name:<{width}}  {how}" for name, how in table.items()]
        if self.costs is not None:
            lines += [f"\ncost: {self.costs}"]
        return "\n".join(lines)
