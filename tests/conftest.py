import multiprocessing

import torch as th

# The networks of the tests are too small to share among threads, which would only fight for the cores with xdist's workers.
th.set_num_threads(1)
if "forkserver" in multiprocessing.get_all_start_methods():
    # The workers of vectorised environments are copies of one process, which imports this once for all of them.
    multiprocessing.set_forkserver_preload(["sb3_hybrid_grpo"])
