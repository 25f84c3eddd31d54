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


_VERDICTS = {
    "snapshot": "exact by snapshots",
    "fork": "exact by forking",
    "replay": "exact by replaying episodes",
    "functional": "exact, functional",
    None: "cannot be branched",
}


class BranchReport(NamedTuple):
    """
    Whether and how an environment can be branched.

    :param name: the environment
    :param brancher: ``"snapshot"``, ``"fork"`` or ``"replay"``, as ``brancher="auto"`` takes them, which prefers replays to
        forks where they are quicker; ``"functional"`` where states are values; ``None`` if none is exact
    :param findings: what stands in the way of snapshots, or of branching at all, and what can be done about it
    :param notes: what was checked, and what could not be
    :param codecs: types of the objects that the state consists of, and what saves them
    :param costs: what branching costs; ``None`` if it is impossible
    """

    name: str
    brancher: str | None
    findings: list[str]
    notes: list[str]
    codecs: dict[str, str]
    costs: Costs | None

    @property
    def is_exact(self) -> bool:
        """Whether branching is exact in one way or another."""
        return self.brancher is not None

    @property
    def verdict(self) -> str:
        """How the environment is branched exactly, or that it cannot be, and what is in the way."""
        verdict = _VERDICTS[self.brancher]
        if self.brancher in ("snapshot", "functional"):
            return verdict
        reason = re.sub(r"^.*? cannot be branched( by [a-z ]+)?: ", "", re.split(r"\.\s", self.findings[-1])[0]).rstrip(".")
        return f"{verdict} ({reason})"

    def __str__(self) -> str:
        lines = [f"{self.name}: {self.verdict}"]
        for title, items in (("in the way", self.findings), ("checked", self.notes)):
            lines += [f"\n{title}:"] * bool(items) + [f"  - {item}".replace("\n", "\n    ") for item in items]
        if self.codecs:
            width = max(map(len, self.codecs))
            lines += ["\nsaved by:", *(f"  {kind:<{width}}  {codec}" for kind, codec in self.codecs.items())]
        if self.costs is not None:
            lines += [f"\ncost: {self.costs}"]
        return "\n".join(lines)
