"""The inner loops of tokenising, compiled by numba (scanpy brings it): one pass where numpy needs ten to thirty.

Measured on one core at 1,000 non-zeros a cell: bins of counts reach 120,000 cells a second in numpy and 900,000 and
more here, ranks 100,000 and 270,000 (`benchmarks/results/singlecell.md`). Plain functions over blocks call them; tests
compare with a loop over cells. Compiled on first use, a second or two each.
"""

from __future__ import annotations

from functools import cache
from importlib import import_module
from typing import Any, NamedTuple

import numpy as np

from polyfm.shared.errors import MissingExtraError

COUNTED = 4096
"""Counts from here on are sorted instead: a table as long as the largest count of a cell would cost more."""


class Kernels(NamedTuple):
    """What is compiled."""

    bin_counts: Any
    """(indptr, genes, values, keys, steps, limit, out, sorted_instead) to whether all are whole numbers."""
    bin_sorted: Any
    """(indptr, genes, sorted keys, keys of cells, steps, out)."""
    rank_keys: Any
    """(genes, values, divisors, space, out): keys that sort by falling value / divisor, then by gene."""
    low_halves: Any
    """(keys, indptr, indptr of what is wanted, out): of each cell, the first that are wanted."""


@cache
def kernels() -> Kernels:
    """Compile, or rather have numba do it when they are called.

    Raises:
        MissingExtraError: numba is not installed.
    """
    try:
        numba: Any = import_module("numba")
    except ImportError as error:
        raise MissingExtraError("numba", "singlecell") from error
    # Unsigned indices throughout: numba tests signed ones for counting from the end, and then nothing is vectorised.
    i4, u4, u8, counted = numba.int32, numba.uint32, numba.uint64, COUNTED
    compiled = numba.njit(nogil=True, error_model="numpy")

    @compiled  # type: ignore[untyped-decorator]
    def spread_of(below: Any, count: Any, size: Any, steps: Any) -> Any:
        """256 hi + (hi - lo) of a value, see `binning.py`."""
        span = max(size - 1, 1)
        # Divided last: of whole numbers below 2^53, a quotient is never rounded over a whole number.
        low = int(np.ceil(steps * below / span))
        high = int(np.floor(steps * (below + count - 1) / span)) + 1 if size > 1 else steps + 1
        return 256 * high + high - low

    @compiled  # type: ignore[untyped-decorator]
    def draw_bins(genes: Any, key: Any, spread: Any, out: Any) -> None:
        """`blocks.draws` of one cell, and from each draw the bin."""
        for i in range(len(out)):
            x = u4(u4(u4(genes[i]) * u4(0x9E3779B1)) + key)
            x = u4(u4(x ^ (x >> u4(16))) * u4(0x21F0AAAD))
            x = u4(u4(x ^ (x >> u4(15))) * u4(0x735A2D97))
            x = u4(u4(x ^ (x >> u4(15))) >> u4(16))
            s = spread[i]
            out[i] = u4(s >> u4(8)) - u4(u4(x * u4(s & u4(255))) >> u4(16))

    @compiled  # type: ignore[untyped-decorator]
    def longest(indptr: Any) -> Any:
        size = 0
        for c in range(len(indptr) - 1):
            size = max(size, indptr[c + 1] - indptr[c])
        return size

    @compiled  # type: ignore[untyped-decorator]
    def bin_counts(
        indptr: Any, genes: Any, values: Any, keys: Any, steps: Any, limit: Any, out: Any, sorted_instead: Any
    ) -> Any:
        # Four histograms in turn: one counter after the other is incremented, not one and the same four times.
        histogram = np.zeros(4 * (counted + 1), np.uint32)
        table = np.zeros(counted + 1, np.uint16)
        most = longest(indptr)
        counts, spreads = np.empty(most, np.uint32), np.empty(most, np.uint32)
        whole = True
        for c in range(len(keys)):
            begin, end = indptr[c], indptr[c + 1]
            v, size = values[begin:end], end - begin
            small, spread = counts[:size], spreads[:size]
            for i in range(size):
                x = min(v[i], limit)
                small[i] = min(u4(x), u4(counted))
                whole &= x == small[i]
            top = u4(0)
            fours = size // 4 * 4
            for i in range(0, fours, 4):
                j = u8(i)
                a, b, d, e = small[j], small[j + u8(1)], small[j + u8(2)], small[j + u8(3)]
                histogram[u4(a * u4(4))] += u4(1)
                histogram[u4(b * u4(4) + u4(1))] += u4(1)
                histogram[u4(d * u4(4) + u4(2))] += u4(1)
                histogram[u4(e * u4(4) + u4(3))] += u4(1)
                top = max(top, max(max(a, b), max(d, e)))
            for i in range(fours, size):
                a = small[u8(i)]
                histogram[u4(a * u4(4))] += u4(1)
                top = max(top, a)
            size -= histogram[0] + histogram[1] + histogram[2] + histogram[3]  # without those that are 0
            below = 0
            for q in range(top + 1):
                count = 0
                for lane in range(4):
                    count += histogram[4 * q + lane]
                    histogram[4 * q + lane] = 0
                if count and q:
                    table[q] = spread_of(below, count, size, steps)
                    below += count
            if top >= counted:
                sorted_instead[c] = True
                continue
            for i in range(len(small)):
                spread[u8(i)] = u4(table[small[u8(i)]])
            draw_bins(genes[begin:end], keys[c], spread, out[begin:end])
        return whole

    @compiled  # type: ignore[untyped-decorator]
    def bin_sorted(indptr: Any, genes: Any, ordered: Any, keys: Any, steps: Any, out: Any) -> None:
        spreads = np.empty(longest(indptr), np.uint32)
        for c in range(len(keys)):
            begin, end = indptr[c], indptr[c + 1]
            mine, spread, size = ordered[begin:end], spreads[: end - begin], end - begin
            first = 0
            while first < size:
                value = mine[u8(first)] >> u8(32)
                last = first + 1
                while last < size and mine[u8(last)] >> u8(32) == value:
                    last += 1
                found = u4(spread_of(first, last - first, size, steps))
                for i in range(first, last):
                    spread[u8((mine[u8(i)] & u8(0xFFFFFFFF)) - u8(begin))] = found
                first = last
            draw_bins(genes[begin:end], keys[c], spread, out[begin:end])

    @compiled  # type: ignore[untyped-decorator]
    def rank_keys(genes: Any, values: Any, divisors: Any, space: Any, out: Any) -> None:
        for i in range(len(genes)):
            space[i] = values[i] / divisors[u8(genes[i])]
        bits = space.view(np.uint32)
        for i in range(len(genes)):
            # Bits of positive floats rise as the floats do; inverted, they fall.
            out[i] = (u8(u4(~bits[i])) << u8(32)) | u8(genes[i])

    @compiled  # type: ignore[untyped-decorator]
    def low_halves(keys: Any, indptr: Any, wanted: Any, out: Any) -> None:
        for c in range(len(indptr) - 1):
            source, target = keys[indptr[c] : indptr[c + 1]], out[wanted[c] : wanted[c + 1]]
            for i in range(len(target)):
                target[i] = i4(source[i])

    return Kernels(bin_counts, bin_sorted, rank_keys, low_halves)
