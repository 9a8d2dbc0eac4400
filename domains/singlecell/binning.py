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

import numpy as np
from numpy.typing import NDArray

from polyfm.domains.singlecell.blocks import Array, chunks, keep, longest_chunk, sort_cells, sort_keys, take_cells
from polyfm.domains.singlecell.kernels import COUNTED, kernels
from polyfm.shared.errors import DataError, require

BINS = 51


def bin_counts(indptr: Array, genes: Array, values: Array, keys: Array, bins: int = BINS) -> NDArray[np.uint8]:
    """Quantile bins of whole counts: a counting sort per cell, 2 to 3 ns per non-zero.

    The same numbers as `bin_values`.

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
    values = np.ascontiguousarray(values)
    if values.dtype.itemsize == 1:
        values = values.astype(np.int16)  # which holds the limit
    limit = values.dtype.type(COUNTED)
    out = np.empty(len(values), np.uint8)
    sorted_instead = np.zeros(len(indptr) - 1, np.bool_)
    if not kernels().bin_counts(indptr, genes, values, keys, bins - 2, limit, out, sorted_instead):
        _check(values)
        raise DataError(
            "these values are no counts: some are not whole numbers",
            remedy="Bin them as values, or say where the counts are (--data.layer)",
        )
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
    indptr, genes, keys = np.asarray(indptr, np.int64), np.asarray(genes, np.int32), np.asarray(keys, np.uint32)
    _check(values)
    out = np.zeros(len(values), np.uint8)
    if len(values) and values.min() == 0:
        kept = np.flatnonzero(values)
        out[kept] = bin_values(keep(indptr, kept), genes[kept], values[kept], keys, bins)
        return out
    most = longest_chunk(indptr)
    memory, places = np.empty(most, np.uint64), np.arange(most, dtype=np.uint32)
    for first, last in chunks(indptr):
        cut = slice(int(indptr[first]), int(indptr[last]))
        local = indptr[first : last + 1] - indptr[first]
        # Bits of positive floats rise as the floats do.
        bits = values[cut].astype(np.float32, copy=False).view(np.uint32)
        ordered = sort_keys(bits, places[: len(bits)], memory[: len(bits)])
        sort_cells(ordered, local)
        kernels().bin_sorted(local, genes[cut], ordered, keys[first:last], bins - 2, out[cut])
    return out


def _check(values: Array) -> None:
    if len(values) and not (values.min() >= 0 and values.max() < np.inf):
        raise DataError(
            "negative, missing or infinite values cannot be binned",
            remedy="Give counts or log-normalised values, not scaled ones (--data.layer)",
        )
