"""What a command's process computes with, said before numpy and torch are loaded: they ask once.

Ray's workers have their own (`actors.connection.WORKER_ENVIRONMENT`); what the environment says already stays.
"""

import os

_ALLOWED = getattr(os, "sched_getaffinity", None)  # Linux alone says which cores a process may have
_CORES = len(_ALLOWED(0)) if _ALLOWED else os.cpu_count() or 1

# What the network makes on these cores another thread composes, marks and codes meanwhile (`generation.ahead`).
os.environ.setdefault("OMP_NUM_THREADS", str(max(1, _CORES - 1)))
# numpy's products are small here. Threads that wait for the next one take a third of two cores and give nothing: ten
# seconds of video cost 15 CPU seconds with them, and 9 without.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
