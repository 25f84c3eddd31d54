"""How long the runs of a check last, and where they are branched."""

import time
from collections.abc import Callable, Sequence

from sb3_hybrid_grpo.check.laws import Pace

MOST_STEPS = 500
_FEWEST_STEPS = 200
_ENOUGH_ENDS = 10
_FIRST_STEPS = 5


class FixedPace:
    """
    A number of steps.

    :param n_steps: the number
    """

    def __init__(self, n_steps: int) -> None:
        self._n_steps = n_steps

    def goes_on(self, step: int, n_ends: int) -> bool:
        """Go on up to the number of steps."""
        return step < self._n_steps

    def is_branched(self, step: int) -> bool:
        """Branch everywhere."""
        return True


class EnoughPace(FixedPace):
    """
    Several whole episodes or 500 steps, within a time.

    :param seconds: the time
    """

    def __init__(self, seconds: float) -> None:
        super().__init__(MOST_STEPS)
        self._deadline = time.monotonic() + seconds

    def goes_on(self, step: int, n_ends: int) -> bool:
        """Go on until it is enough."""
        is_enough = step >= _FEWEST_STEPS and n_ends >= _ENOUGH_ENDS
        return super().goes_on(step, n_ends) and not is_enough and (step == 0 or time.monotonic() < self._deadline)


class BudgetPace(FixedPace):
    """
    The steps of a run that was played before, of which as many are branched as the time allows, but always the first ones and
    those with which episodes end.

    :param n_steps: number of steps
    :param ends: steps with which episodes ended
    :param seconds: the time, over which branches are spread
    """

    def __init__(self, n_steps: int, ends: Sequence[int], seconds: float) -> None:
        super().__init__(n_steps)
        self._critical = {*range(_FIRST_STEPS), *ends, *(step - 1 for step in ends), *(step + 1 for step in ends)}
        self._seconds = seconds
        self._start = time.monotonic()

    def is_branched(self, step: int) -> bool:
        """Branch if it is in time, or if it matters."""
        elapsed = time.monotonic() - self._start
        is_in_time = elapsed <= self._seconds * (step + 1) / self._n_steps
        return is_in_time or (step in self._critical and elapsed <= 2 * self._seconds)


class TickingPace:
    """
    A pace that tells that it goes on.

    :param pace: the pace
    :param tick: tells it
    """

    def __init__(self, pace: Pace, tick: Callable[[], None]) -> None:
        self._pace = pace
        self._tick = tick

    def goes_on(self, step: int, n_ends: int) -> bool:
        """Go on as the pace does."""
        self._tick()
        return self._pace.goes_on(step, n_ends)

    def is_branched(self, step: int) -> bool:
        """Branch as the pace does."""
        return self._pace.is_branched(step)
