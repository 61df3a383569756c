"""What runs on every box: kernels, checkpoints, expert stores, the service and a worker process."""

import os

# Both are read when torch is loaded, so they stand here, before any module that imports it.
# Several workers share a machine's cores: OpenMP's default, to spin between parallel regions, takes the core
# from the worker that has something to do. Huge pages make reading weights a tenth faster.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
