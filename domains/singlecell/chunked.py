"""Vectors in HDF5 files, chunk by chunk: what gzip has compressed is decompressed here, and no further than needed.

Nearly all h5ad files are written with gzip, and reading one is decompressing it. HDF5 always decompresses whole chunks;
of the last chunk of a range we need the beginning only. And it uses zlib, where ISA-L does the same in half the time
(the package `isal`, where there are wheels of it). The bytes are HDF5's own (`read_direct_chunk`); what is stored
otherwise is left to it altogether. Both decompress without holding Python's lock, so that threads may read at once.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable
from functools import cache, partial
from importlib import import_module
from typing import Any

import numpy as np
from numpy.typing import NDArray

from polyfm.shared.errors import DataError, MissingExtraError

try:
    import h5py
except ImportError as error:
    raise MissingExtraError("h5py", "singlecell") from error

Read = Callable[[int, NDArray[Any]], None]
"""Of a vector: fills an array with what lies from a place on. Into memory that is there: to touch new memory for every
block costs as much as to copy it."""


@cache
def inflater() -> Callable[[], Any]:
    """What makes a decompressor of zlib's format: of ISA-L, or of zlib itself."""
    try:
        return import_module("isal.isal_zlib").decompressobj  # type: ignore[no-any-return]
    except ImportError:
        return zlib.decompressobj


def open_vector(vector: Any) -> Read:
    """How to read ranges of a vector.

    Args:
        vector: One-dimensional data set of h5py, or array of zarr.
    """
    if isinstance(vector, h5py.Dataset) and _is_gzip(vector):
        return partial(_read_chunks, vector)
    return partial(_read, vector)


def _is_gzip(vector: h5py.Dataset) -> bool:
    made = vector.id.get_create_plist()
    filters = [made.get_filter(at)[0] for at in range(made.get_nfilters())]
    gzip, shuffle = h5py.h5z.FILTER_DEFLATE, h5py.h5z.FILTER_SHUFFLE
    return filters in ([gzip], [shuffle, gzip]) and vector.dtype.kind in "iuf"


def _read(vector: Any, start: int, out: NDArray[Any]) -> None:
    out[:] = vector[start : start + len(out)]


def _read_chunks(vector: h5py.Dataset, start: int, out: NDArray[Any]) -> None:
    length, width, stop = vector.chunks[0], vector.dtype.itemsize, start + len(out)
    for first in range(start - start % length, stop, length):
        begin, end = max(start - first, 0), min(stop - first, length)
        target = out[first + begin - start : first + end - start]
        wanted = length if vector.shuffle else end  # shuffled, the first bytes of all values come first
        mask, raw = vector.id.read_direct_chunk((first,))
        if mask:  # written without one of the filters
            target[:] = vector[first + begin : first + end]
            continue
        try:
            plain = inflater()().decompress(raw, wanted * width)
        except Exception as error:  # each library has its own kind
            raise DataError(f"a chunk cannot be decompressed ({error})") from error
        if len(plain) < wanted * width:
            raise DataError(f"a chunk holds {len(plain):,} bytes where {wanted * width:,} should be")
        if vector.shuffle:
            plain = np.frombuffer(plain, np.uint8).reshape(width, length)[:, begin:end].T.copy()
            target[:] = plain.view(vector.dtype)[:, 0]
        else:
            target[:] = np.frombuffer(plain, vector.dtype, end - begin, begin * width)
