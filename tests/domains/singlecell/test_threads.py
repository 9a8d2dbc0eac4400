"""How many threads a process uses stays as its launcher said."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

PROGRAM = """
import re, torch
import polyfm.domains.singlecell
import numba

@numba.njit(parallel=True)
def total(count):
    found = 0
    for i in numba.prange(count):
        found += i
    return found

assert total(10) == 45
print(re.search(r"omp_get_max_threads\\(\\) : (\\d+)", torch.__config__.parallel_info()).group(1))
"""


@pytest.mark.parametrize(("given", "threads"), [("1", "1"), ("1,2", "1")])
def test_numbas_pool_leaves_torch_its_number_of_threads(given: str, threads: str) -> None:
    environment = {**os.environ, "OMP_NUM_THREADS": given}
    environment.pop("NUMBA_NUM_THREADS")
    ran = subprocess.run([sys.executable, "-c", PROGRAM], env=environment, capture_output=True, text=True, check=False)
    assert ran.stdout.strip() == threads, ran.stderr
