"""scGPT's values: each cell's non-zeros to quantile bins, of whole counts by counting, of anything else by sorting.

Cui et al., Nature Methods 2024, and scGPT's `preprocess.py`. The non-zeros of a cell have quantiles q_0 … q_(bins-2),
at equal steps from the smallest to the largest (linear between neighbours, as numpy's). A value v has lo = how many of
them lie below v and hi = how many do not lie above. Its bin is hi; where several quantiles fall on v itself it is
drawn evenly from lo+1 … hi: half of a cell's counts may be 1, and they spread over the bins that they fill. Zero is
bin 0.

Both ways compute lo and hi from ranks, in whole numbers: with C non-zeros below v, D not above, m in all and
e = bins - 2, lo = ⌈e C / (m - 1)⌉ and hi = ⌊e (D - 1) / (m - 1)⌋ + 1. So they are exact where scGPT's floating-point
quantiles may miss a value that they should hit.
"""

from __future__ import annotations

from functools import cache
from importlib import import_module
from typing import Any

import numpy as np
from numpy.typing import NDArray

from polyfm.domains.singlecell.blocks import Array, chunks, draws, halves, keep, sort_cells, sort_keys, take_cells
from polyfm.shared.errors import DataError, MissingExtraError, require

BINS = 51
_COUNTED = 4096
"""Counts from here on are sorted: a table as long as the largest count of a cell would cost more."""


def bin_counts(indptr: Array, genes: Array, values: Array, keys: Array, bins: int = BINS) -> NDArray[np.uint8]:
    """Quantile bins of whole counts: a counting sort per cell, 2 to 3 ns per non-zero.

    The same numbers as `bin_values`. Compiled by numba, which scanpy brings: in numpy alone a histogram per cell,
    tables, look-up and draws are some thirty passes and reach 40 % of the speed.

    Args:
        indptr: (n+1,) int64.
        genes: (nnz,) int32; decide, with the cell's key, what is drawn.
        values: (nnz,) counts of any type.
        keys: (n,) uint32, one per cell: `blocks.cell_keys`.
        bins: With that of zero; 51 in scGPT.

    Raises:
        DataError: A value is negative, missing or not whole.
    """
    require(3 <= bins <= 256, "data.bins", "from 3 to 256", bins)
    indptr, genes, keys = np.asarray(indptr, np.int64), np.asarray(genes, np.int32), np.asarray(keys, np.uint32)
    out = np.empty(len(values), np.uint8)
    sorted_instead = np.zeros(len(indptr) - 1, np.bool_)
    bin_cells = _kernel()
    for first, last in chunks(indptr):
        cut = slice(int(indptr[first]), int(indptr[last]))
        counts = np.minimum(values[cut], _COUNTED)
        with np.errstate(invalid="ignore"):
            small = counts.astype(np.int32)
        if len(small) and not (small.min() >= 0 and np.array_equal(small.astype(counts.dtype), counts)):
            _check(values[cut])
            raise DataError(
                "these values are no counts: some are not whole numbers",
                remedy="Bin them as values, or say where the counts are (--data.layer)",
            )
        local = indptr[first : last + 1] - indptr[first]
        small = small.view(np.uint32)
        bin_cells(local, genes[cut], small, keys[first:last], bins - 2, out[cut], sorted_instead[first:last])
    if sorted_instead.any():
        cells = np.flatnonzero(sorted_instead)
        theirs, places = take_cells(indptr, cells)
        out[places] = bin_values(theirs, genes[places], values[places], keys[cells], bins)
    return out


def bin_values(indptr: Array, genes: Array, values: Array, keys: Array, bins: int = BINS) -> NDArray[np.uint8]:
    """Quantile bins of any values, by sorting each cell.

    Args:
        indptr: (n+1,) int64.
        genes: (nnz,) int32; decide, with the cell's key, what is drawn.
        values: (nnz,) counts or normalised, compared as float32.
        keys: (n,) uint32, one per cell: `blocks.cell_keys`.
        bins: With that of zero; 51 in scGPT.

    Raises:
        DataError: A value is negative or missing.
    """
    require(3 <= bins <= 256, "data.bins", "from 3 to 256", bins)
    _check(values)
    out = np.zeros(len(values), np.uint8)
    if len(values) and values.min() == 0:
        kept = np.flatnonzero(values)
        out[kept] = bin_values(keep(indptr, kept), genes[kept], values[kept], keys, bins)
        return out
    for first, last in chunks(indptr):
        cut = slice(int(indptr[first]), int(indptr[last]))
        local = indptr[first : last + 1] - indptr[first]
        spread = _ranks(local, values[cut].astype(np.float32), bins - 2)
        drawn = draws(local, genes[cut], keys[first:last]) >> np.uint32(16)
        drawn *= spread & np.uint16(255)
        out[cut] = (spread >> np.uint16(8)) - (drawn >> np.uint32(16)).astype(np.uint16)
    return out


def _check(values: Array) -> None:
    if len(values) and not (values.min() >= 0 and values.max() < np.inf):
        raise DataError(
            "negative, missing or infinite values cannot be binned",
            remedy="Give counts or log-normalised values, not scaled ones (--data.layer)",
        )


def _ranks(indptr: Array, values: NDArray[np.float32], steps: int) -> NDArray[np.uint16]:
    """256 hi + (hi - lo) of each non-zero; all are positive."""
    # Bits of positive floats rise as the floats do.
    keys = sort_keys(values.view(np.uint32), np.arange(len(values), dtype=np.uint32))
    sort_cells(keys, indptr)
    bits, places = halves(keys)
    sizes = np.diff(indptr)
    new = np.ones(len(keys), np.bool_)
    np.not_equal(bits[1:], bits[:-1], out=new[1:])
    new[indptr[:-1][sizes > 0]] = True
    first = np.flatnonzero(new)
    count = np.diff(first, append=len(keys))
    groups = np.diff(np.searchsorted(first, indptr))  # of equal values, in each cell
    # Divided last: of whole numbers below 2^53, a quotient is never rounded over a whole number.
    span = np.repeat(np.maximum(sizes - 1, 1).astype(np.float64), groups)
    below = steps * (first - np.repeat(indptr[:-1], groups))
    low = np.ceil(below / span)
    high = np.floor((below + steps * (count - 1)) / span)
    high[np.searchsorted(first, indptr[:-1][sizes == 1])] = steps  # every quantile is the one value
    high += 1
    packed = np.empty(len(keys), np.uint16)
    packed[places] = np.repeat((256 * high + high - low).astype(np.uint16), count)
    return packed


@cache
def _kernel() -> Any:
    """Compiled on first use, about a second; a process that forks workers should have used it before."""
    try:
        numba: Any = import_module("numba")
    except ImportError as error:
        raise MissingExtraError("numba", "singlecell") from error
    # Unsigned indices throughout: numba tests signed ones for counting from the end, and then nothing is vectorised.
    u4, u8, counted = numba.uint32, numba.uint64, _COUNTED

    @numba.njit(nogil=True, error_model="numpy")  # type: ignore[misc]
    def bin_cells(
        indptr: Any, genes: Any, values: Any, keys: Any, steps: Any, out: Any, sorted_instead: Any
    ) -> None:  # pragma: no cover  # compiled
        # Four histograms in turn: one counter after the other is incremented, not one and the same four times.
        histogram = np.zeros(4 * (counted + 1), np.uint32)
        table = np.zeros(counted + 1, np.uint16)
        longest = 0
        for c in range(len(keys)):
            longest = max(longest, indptr[c + 1] - indptr[c])
        spread = np.empty(longest, np.uint32)
        for c in range(len(keys)):
            begin, end = indptr[c], indptr[c + 1]
            v, g, o = values[begin:end], genes[begin:end], out[begin:end]
            size, top = len(v), u4(0)
            fours = size // 4 * 4
            for i in range(0, fours, 4):
                j = u8(i)
                a, b, d, e = v[j], v[j + u8(1)], v[j + u8(2)], v[j + u8(3)]
                histogram[u4(a * u4(4))] += u4(1)
                histogram[u4(b * u4(4) + u4(1))] += u4(1)
                histogram[u4(d * u4(4) + u4(2))] += u4(1)
                histogram[u4(e * u4(4) + u4(3))] += u4(1)
                top = max(top, max(max(a, b), max(d, e)))
            for i in range(fours, size):
                a = v[u8(i)]
                histogram[u4(a * u4(4))] += u4(1)
                top = max(top, a)
            size -= histogram[0] + histogram[1] + histogram[2] + histogram[3]  # without those that are 0
            span = max(size - 1, 1)
            below = 0
            for q in range(top + 1):
                count = 0
                for lane in range(4):
                    count += histogram[4 * q + lane]
                    histogram[4 * q + lane] = 0
                if count and q:
                    low = int(np.ceil(steps * below / span))
                    high = int(np.floor(steps * (below + count - 1) / span)) + 1 if size > 1 else steps + 1
                    table[q] = 256 * high + high - low
                    below += count
            if top >= counted:
                sorted_instead[c] = True
                continue
            for i in range(len(v)):
                spread[u8(i)] = u4(table[v[u8(i)]])
            key = keys[c]
            for i in range(len(v)):  # `blocks.draws`, and the bin
                x = u4(u4(u4(g[i]) * u4(0x9E3779B1)) + key)
                x = u4(u4(x ^ (x >> u4(16))) * u4(0x21F0AAAD))
                x = u4(u4(x ^ (x >> u4(15))) * u4(0x735A2D97))
                x = u4(u4(x ^ (x >> u4(15))) >> u4(16))
                s = spread[i]
                o[i] = u4(s >> u4(8)) - u4(u4(x * u4(s & u4(255))) >> u4(16))

    return bin_cells
