import torch as th

# The networks of the tests are too small to share among threads, which would only fight for the cores with xdist's workers.
th.set_num_threads(1)
