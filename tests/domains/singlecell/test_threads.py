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


def run(program: str, threads: str) -> str:
    environment = {**os.environ, "OMP_NUM_THREADS": threads}
    environment.pop("NUMBA_NUM_THREADS")
    ran = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    return ran.stdout.strip()


@pytest.mark.parametrize("given", ["1", "1,2"])
def test_numbas_pool_leaves_torch_its_number_of_threads(given: str) -> None:
    assert run(PROGRAM, given) == "1"


@pytest.mark.parametrize("given", ["", "0", "many"])
def test_what_is_no_number_of_threads_is_left_to_the_libraries(given: str) -> None:
    program = "import os, polyfm.domains.singlecell; print(os.environ.get('NUMBA_NUM_THREADS'))"
    assert run(program, given) == "None"


def test_a_pool_that_runs_already_is_left_alone() -> None:
    again = "\n".join(
        ["import numba", *PROGRAM.splitlines()[4:], "import polyfm.domains.singlecell", *PROGRAM.splitlines()[4:]]
    )
    assert run(f"import re, torch\n{again}", "1")
