import multiprocessing

import pytest
import torch as th

# The networks of the tests are too small to share among threads, which would only fight for the cores with xdist's workers.
th.set_num_threads(1)
if "forkserver" in multiprocessing.get_all_start_methods():
    # The workers of vectorised environments are copies of one process, which imports this once for all of them.
    multiprocessing.set_forkserver_preload(["sb3_hybrid_grpo"])


@pytest.fixture
def quick_processes(monkeypatch):
    """Let the runs of comparisons and benchmarks start as copies of that process, too, where the system can."""
    pool = pytest.importorskip("sb3_hybrid_grpo.compare.pool")
    if "forkserver" in multiprocessing.get_all_start_methods():
        monkeypatch.setattr(pool, "get_context", lambda method: multiprocessing.get_context("forkserver"))
