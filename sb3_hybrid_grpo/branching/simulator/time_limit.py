"""An end for environments that hang in a branch."""

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from sb3_hybrid_grpo.common import BranchTimeoutError

_AT_ONCE = 1e-6


@contextmanager
def time_limit(seconds: float, what: str = "A branch took longer than branch_timeout=") -> Iterator[None]:
    """
    Raise in the running code when time is up. A timer of the user's own goes on, and rings afterwards if it has run out.

    It takes a POSIX signal and the main thread of a process; elsewhere, and for code that never returns to Python, there is
    no limit here, only the one that the main process sets to its workers.

    :param seconds: the limit
    :param what: beginning of the error's message, to which the limit is added
    :raises BranchTimeoutError: inside the block
    """
    is_possible = hasattr(signal, "setitimer") and threading.current_thread() is threading.main_thread()
    if not is_possible:
        yield
        return

    def interrupt(signum: int, frame: Any) -> None:
        raise BranchTimeoutError(f"{what}{seconds:g} s.")

    start, (remaining, interval) = time.monotonic(), signal.setitimer(signal.ITIMER_REAL, 0)
    previous = signal.signal(signal.SIGALRM, interrupt)
    try:
        signal.setitimer(signal.ITIMER_REAL, seconds)
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)
        if remaining:
            signal.setitimer(signal.ITIMER_REAL, max(remaining - (time.monotonic() - start), _AT_ONCE), interval)
