"""Arithmetic on blocks of cells in CSR form: ``indptr`` (n+1,), then one array per thing known of each non-zero.

Nothing here loops over cells but one line, `sort_cells`; a Python object per cell would cost more than the rest.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]

LOW, HIGH = (0, 1) if sys.byteorder == "little" else (1, 0)
"""Where the halves of a 64-bit key lie in memory."""


def cell_keys(seed: int, epoch: int, cells: Array) -> NDArray[np.uint32]:
    """One key for the draws of each cell: the same in every batch, another one in every pass.

    splitmix64 (Steele et al., OOPSLA 2014) of (seed, epoch, cell).

    Args:
        seed: Of the run.
        epoch: Which pass; a fixed one where draws should not change (validation, new files).
        cells: (n,) int64, by which a cell is known: its row in the corpus, or a hash of its id.
    """
    start = np.random.SeedSequence([seed, epoch]).generate_state(1, np.uint64)
    with np.errstate(over="ignore"):
        x = start + np.asarray(cells).astype(np.int64).view(np.uint64) * np.uint64(0x9E3779B97F4A7C15)
        x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    keys: NDArray[np.uint32] = ((x ^ (x >> np.uint64(31))) >> np.uint64(32)).astype(np.uint32)
    return keys


def draws(indptr: Array, genes: Array, keys: Array) -> NDArray[np.uint32]:
    """(nnz,) uint32, uniform: a pure function of a cell's key and the gene, whatever else is in the block.

    Args:
        indptr: (n+1,).
        genes: (nnz,) int32.
        keys: (n,) uint32, see `cell_keys`.
    """
    # An integer hash with good avalanche (lowbias32, Wellons 2018); every step is one pass of vector instructions.
    x = genes.astype(np.uint32)
    x *= np.uint32(0x9E3779B1)
    x += np.repeat(keys, np.diff(indptr))
    x ^= x >> np.uint32(16)
    x *= np.uint32(0x21F0AAAD)
    x ^= x >> np.uint32(15)
    x *= np.uint32(0x735A2D97)
    x ^= x >> np.uint32(15)
    return x


def chunks(indptr: Array, size: int = 1 << 15) -> Iterator[tuple[int, int]]:
    """Ranges of cells [first, last) of about ``size`` non-zeros: what fits a core's cache is several times as fast.

    Args:
        indptr: (n+1,).
        size: Non-zeros; a larger cell stands alone.
    """
    first, end = 0, len(indptr) - 1
    while first < end:
        last = int(np.searchsorted(indptr, indptr[first] + size, side="right")) - 1
        last = min(max(last, first + 1), end)
        yield first, last
        first = last


def longest_chunk(indptr: Array) -> int:
    """Non-zeros of the largest of the `chunks`.

    Args:
        indptr: (n+1,).
    """
    return max((int(indptr[last] - indptr[first]) for first, last in chunks(indptr)), default=0)


def sort_keys(high: Array, low: Array, out: NDArray[np.uint64] | None = None) -> NDArray[np.uint64]:
    """(m,) uint64 keys of two halves, the second deciding ties; `halves` takes them apart.

    Args:
        high: (m,) uint32.
        low: (m,) integers from 0.
        out: (m,) memory to use.
    """
    keys = np.empty(len(high), np.uint64) if out is None else out
    split = keys.view(np.uint32)
    split[LOW::2], split[HIGH::2] = low, high
    return keys


def halves(keys: Array) -> tuple[Array, Array]:
    """(high, low) of keys, views of (m,) uint32.

    Args:
        keys: (m,) as made by `sort_keys`.
    """
    split = keys.view(np.uint32)
    return split[HIGH::2], split[LOW::2]


def sort_cells(keys: Array, indptr: Array) -> None:
    """Sort within each cell, in place.

    numpy sorts 64-bit keys with vector instructions, several times as fast as it sorts indices by a key; so what must
    travel along is part of the key. A call per cell costs less than the row's number in the key: it makes one more
    pass, and long sorts have more rounds.

    Args:
        keys: (m,) uint64.
        indptr: (n+1,) from 0 to m.
    """
    cuts = indptr.tolist()
    for first, last in pairwise(cuts):
        keys[first:last].sort()


def take_cells(indptr: Array, cells: Array) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Non-zeros of some cells, in the order asked for.

    Args:
        indptr: (n+1,).
        cells: (k,) int64; repeats are allowed.

    Returns:
        (k+1,) indptr of the cells taken, and (m,) places of their non-zeros in the block.
    """
    sizes = np.diff(indptr)[cells]
    taken = np.zeros(len(sizes) + 1, np.int64)
    np.cumsum(sizes, out=taken[1:])
    return taken, np.arange(taken[-1]) + np.repeat(indptr[:-1][cells] - taken[:-1], sizes)


def keep(indptr: Array, kept: Array) -> NDArray[np.int64]:
    """(n+1,) indptr when only some of the non-zeros stay.

    Args:
        indptr: (n+1,).
        kept: (m,) places of those that stay, rising.
    """
    return np.searchsorted(kept, indptr).astype(np.int64)
