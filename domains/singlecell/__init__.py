"""Single cells: counts of genes, annotations, texts and surface proteins, from file to report."""

import os

# Numba's pool, which scanpy starts, sets OpenMP's number of threads, torch's with it, to all cores. Where a launcher or
# a user has said how many a process may have, several processes would wait for one another's cores.
if "OMP_NUM_THREADS" in os.environ:
    os.environ.setdefault("NUMBA_NUM_THREADS", os.environ["OMP_NUM_THREADS"].partition(",")[0])
