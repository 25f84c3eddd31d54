"""How fast a machine is while it trains: processor seconds of one are not those of another, nor of the same an hour later."""

import time

import numpy as np
import torch as th

_REPETITIONS = 300


def work_seconds() -> float:
    """
    Time a fixed piece of work that is made of what trainings are made of: a loop in Python, small arrays, small products
    of matrices, and their gradients.

    :return: processor seconds that it takes now
    """
    array, weights = np.linspace(-1.0, 1.0, 256), th.linspace(-1.0, 1.0, 64 * 64).view(64, 64).requires_grad_()
    batch = th.ones(16, 64)
    start = time.process_time()
    for i in range(_REPETITIONS):
        array = np.clip(0.9 * array + 0.1 * array.mean(), -1.0, 1.0)
        sum(j % 7 for j in range(100 + i % 2))
        th.tanh(batch @ weights).sum().backward()
    return time.process_time() - start
