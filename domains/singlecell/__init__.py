"""Single cells: counts of genes, annotations, texts and surface proteins, from file to report."""

import os
import sys

# Numba's pool, which scanpy starts, sets OpenMP's number of threads, torch's with it, to all cores. Where a launcher or
# a user has said how many a process may have, several processes would wait for one another's cores.
_threads = os.environ.get("OMP_NUM_THREADS", "").partition(",")[0]
if _threads.isdecimal() and int(_threads) >= 1 and "numba" not in sys.modules:  # a pool that runs cannot be changed
    os.environ.setdefault("NUMBA_NUM_THREADS", _threads)
