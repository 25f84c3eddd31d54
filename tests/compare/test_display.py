import io
from typing import NamedTuple

import pytest
from rich.console import Console

from sb3_hybrid_grpo.compare.display import follow
from sb3_hybrid_grpo.compare.pool import State, Update


class Job(NamedTuple):
    name: str


@pytest.mark.parametrize("is_terminal", [True, False])
def test_every_run_has_a_line(is_terminal):
    good, bad = Job("good"), Job("bad [x]")
    updates = [
        Update(good),
        Update(bad),
        Update(good, steps=50, last_return=1.0),
        Update(bad, State.FAILED, error="no [luck]"),
        Update(good, State.FINISHED, 120, 2.25),
    ]
    output = io.StringIO()
    console = Console(file=output, force_terminal=is_terminal, width=100, color_system=None)
    assert follow(iter(updates), {good: 100, bad: 100}, console) == {bad: "no [luck]"}
    printed = output.getvalue()
    assert "1/2 bad [x] failed: no [luck]" in printed
    assert "2/2 good finished: return 2.2 after 120 steps\n" in printed.replace("\r", "")
    if not is_terminal:
        assert len(printed.strip().splitlines()) == 2
