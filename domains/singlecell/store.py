"""`CellStore`: rows of a matrix of cells × genes, read from its file when they are needed and as they lie there.

AnnData's own files (h5ad, zarr of format 2 and 3) and 10x .h5 hold sparse rows as three arrays, and only what is asked
for of those is read: no AnnData object, no table of cells, nothing of the other layers. The file must have been checked
before: `hdf5.check_hdf5`, `zarr_folder.check_zarr`.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from itertools import pairwise
from pathlib import Path
from threading import Lock
from typing import Any, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csc_array, csr_array

from polyfm.domains.singlecell.chunked import Read, open_vector
from polyfm.shared.errors import DataError, MissingExtraError

try:
    import h5py
    import zarr
except ImportError as error:
    raise MissingExtraError(str(error.name), "singlecell") from error

MAX_TURNED = 1 << 27
"""Non-zeros of a matrix stored by genes that are turned into rows in memory: about 3 GB while that is done."""
AT_ONCE = 256
"""Rows of a dense matrix that are in memory before their zeros are left out."""
OPENING = Lock()
"""Threads that read open a file once."""
GAP = 32
"""Rows that are read and thrown away rather than making one read two: a compressed chunk has about as many."""


class Rows(NamedTuple):
    """n cells in CSR form, columns as in their file."""

    indptr: NDArray[np.int64]
    """(n+1,) from 0."""
    genes: NDArray[np.int32]
    """(nnz,) columns of the file, in its order."""
    values: NDArray[Any]
    """(nnz,) in the file's own type."""


class CellStore:
    """One matrix of one file. It opens on first use, in each process for itself, and travels as a path.

    Args:
        path: A .h5ad, .zarr or 10x .h5; it has been checked.
        where: The matrix: X, layers/NAME, raw/X, or the group of a 10x file.
        in_memory: Whether all of it is read at first use and kept. A matrix that is stored by genes always is.
    """

    def __init__(self, path: str | Path, where: str = "X", *, in_memory: bool = False) -> None:
        self.path, self.where, self.in_memory = Path(path), where, in_memory
        self._opened: _Sparse | _Dense | None = None
        self._process = 0
        self._given = False

    @classmethod
    def of(cls, matrix: Any, path: str | Path, where: str = "X") -> Self:
        """Of a matrix that is in memory, whatever it was read from; it travels with the store.

        Args:
            matrix: (n, genes) sparse or dense.
            path: Where it comes from, for messages.
            where: In that file.
        """
        store = cls(path, where, in_memory=True)
        rows = csr_array(matrix)
        loaded = Rows(rows.indptr.astype(np.int64), rows.indices.astype(np.int32), rows.data)
        store._opened, store._given = _in_memory(loaded, rows.shape), True
        return store

    def __getstate__(self) -> dict[str, Any]:
        """Without the open file: handles of HDF5 must not be shared by processes."""
        return self.__dict__ if self._given else {**self.__dict__, "_opened": None}

    def __len__(self) -> int:
        return self.num_cells

    def hold(self) -> None:
        """Have all of it in memory from now on, and wherever the store travels: the file may go."""
        self._opened = self._source().load()
        self._process, self.in_memory, self._given = os.getpid(), True, True

    @property
    def is_held(self) -> bool:
        """Whether all of it is in memory; what is stored by genes is, whether asked for or not."""
        return self._source().in_memory

    @property
    def num_cells(self) -> int:
        """Rows."""
        return self._source().shape[0]

    @property
    def num_genes(self) -> int:
        """Columns of the file."""
        return self._source().shape[1]

    @property
    def num_bytes(self) -> int:
        """What it takes in memory; of a dense matrix, whose zeros nobody has counted, at most."""
        source = self._source()
        values = int(source.indptr[-1]) if isinstance(source, _Sparse) else source.shape[0] * source.shape[1]
        return values * (np.dtype(np.int32).itemsize + source.dtype.itemsize)

    def sizes(self) -> NDArray[np.int64] | None:
        """(n,) stored values of each cell, known without reading them; None for a dense matrix."""
        source = self._source()
        return np.diff(source.indptr) if isinstance(source, _Sparse) else None

    def read(self, start: int, stop: int) -> csr_array:
        """Neighbouring cells.

        Args:
            start: The first.
            stop: After the last.
        """
        rows = self.read_rows(np.arange(start, stop))
        shape = (len(rows.indptr) - 1, self.num_genes)
        return csr_array((rows.values, rows.genes, rows.indptr.astype(np.int32)), shape=shape)

    def read_rows(self, rows: NDArray[np.int64]) -> Rows:
        """Any cells; what lies together is read together.

        Args:
            rows: (n,) rising.

        Raises:
            DataError: The file is damaged where they are.
        """
        source = self._source()
        if not len(rows):
            return Rows(np.zeros(1, np.int64), np.zeros(0, np.int32), np.zeros(0, source.dtype))
        if rows[0] < 0 or rows[-1] >= source.shape[0]:
            raise IndexError(f"cells {rows[0]} to {rows[-1]} of {source.shape[0]}")
        what = f"cells {rows[0]:,} to {rows[-1]:,}"
        with self._reading(f" at {what}"):
            found = source.rows(rows)
        if len(found.genes) and not (found.genes.min() >= 0 and found.genes.max() < source.shape[1]):
            raise DataError(
                f"{self.where} is damaged: {what} have values of genes that are not there, of {source.shape[1]:,}",
                where=self.path,
                remedy="Copy or fetch the file again",
            )
        return found

    def _source(self) -> _Sparse | _Dense:
        # A fork has its parent's handles, and HDF5 does not allow for that; what is in memory it may share.
        mine = self._process == os.getpid()
        if self._opened is None or not (mine or self._opened.in_memory):
            with OPENING, self._reading(""):
                if self._opened is None or self._process != os.getpid():  # no other thread was quicker
                    source = _open(self.path, self.where)
                    self._opened = source.load() if self.in_memory else source
                    self._process = os.getpid()
        return self._opened

    @contextmanager
    def _reading(self, what: str) -> Iterator[None]:
        try:
            yield
        except DataError as error:
            error.where = error.where or self.path
            raise
        except (OSError, KeyError, ValueError, TypeError, RuntimeError) as error:
            short = str(error).strip("'\"").partition("\n")[0][:200]
            raise DataError(
                f"{self.where} cannot be read{what} ({short})", where=self.path, remedy="Copy or fetch the file again"
            ) from error


class _Sparse:
    """Sparse rows: three vectors, in memory or in a file; of the first all is kept, 8 bytes a cell."""

    def __init__(
        self,
        indptr: NDArray[Any],
        genes: Read,
        values: Read,
        shape: tuple[int, int],
        dtype: np.dtype[Any],
        in_memory: bool = False,
    ) -> None:
        self.indptr = np.asarray(indptr, np.int64)
        self.genes, self.values, self.shape, self.dtype, self.in_memory = genes, values, shape, dtype, in_memory

    def rows(self, rows: NDArray[np.int64]) -> Rows:
        indptr = np.zeros(len(rows) + 1, np.int64)
        np.cumsum(self.indptr[rows + 1] - self.indptr[rows], out=indptr[1:])
        genes, values = np.empty(indptr[-1], np.int32), np.empty(indptr[-1], self.dtype)
        step = np.diff(rows)
        runs = np.append(0, np.flatnonzero(step != 1) + 1)  # rows that follow one another
        for first, last in _ranges(np.flatnonzero(step > (0 if self.in_memory else GAP)) + 1, len(rows)):
            begin, end = int(self.indptr[rows[first]]), int(self.indptr[rows[last - 1] + 1])
            mine = slice(int(indptr[first]), int(indptr[last]))
            if end - begin == mine.stop - mine.start:
                self.genes(begin, genes[mine])
                self.values(begin, values[mine])
                continue
            more_genes, more_values = np.empty(end - begin, np.int32), np.empty(end - begin, self.dtype)
            self.genes(begin, more_genes)
            self.values(begin, more_values)
            inside = runs[np.searchsorted(runs, first) : np.searchsorted(runs, last)] - first
            for start, stop in _ranges(inside[1:], last - first):
                source = slice(
                    int(self.indptr[rows[first + start]]) - begin, int(self.indptr[rows[first + stop - 1] + 1]) - begin
                )
                target = slice(int(indptr[first + start]), int(indptr[first + stop]))
                genes[target], values[target] = more_genes[source], more_values[source]
        return Rows(indptr, genes, values)

    def load(self) -> _Sparse:
        return self if self.in_memory else _in_memory(self.rows(np.arange(self.shape[0])), self.shape)


class _Dense:
    """A dense matrix in a file; zeros are left out as it is read."""

    in_memory = False

    def __init__(self, array: Any) -> None:
        self.array, self.shape, self.dtype = array, (int(array.shape[0]), int(array.shape[1])), array.dtype

    def rows(self, rows: NDArray[np.int64]) -> Rows:
        genes: list[NDArray[np.int32]] = []
        values: list[NDArray[Any]] = []
        sizes: list[NDArray[np.int64]] = []
        for first, last in _ranges(np.flatnonzero(np.diff(rows) > GAP) + 1, len(rows)):
            for start in range(first, last, AT_ONCE):
                some = rows[start : min(start + AT_ONCE, last)]
                dense = np.asarray(self.array[some[0] : some[-1] + 1])[some - some[0]]
                cell, gene = np.nonzero(dense)
                genes.append(gene.astype(np.int32))
                values.append(dense[cell, gene])
                sizes.append(np.bincount(cell, minlength=len(some)))
        indptr = np.append(0, np.cumsum(np.concatenate(sizes)))
        return Rows(indptr, np.concatenate(genes), np.concatenate(values))

    def load(self) -> _Sparse:
        return _in_memory(self.rows(np.arange(self.shape[0])), self.shape)


def _ranges(cuts: NDArray[np.int64], end: int) -> Iterator[tuple[int, int]]:
    return pairwise([0, *cuts.tolist(), end])


def _in_memory(rows: Rows, shape: tuple[int, int]) -> _Sparse:
    genes, values = partial(_copy, rows.genes), partial(_copy, rows.values)
    return _Sparse(rows.indptr, genes, values, shape, rows.values.dtype, in_memory=True)


def _copy(array: NDArray[Any], start: int, out: NDArray[Any]) -> None:
    out[:] = array[start : start + len(out)]


def _open(path: Path, where: str) -> _Sparse | _Dense:
    root: Any = zarr.open_group(str(path), mode="r") if path.is_dir() else h5py.File(path, "r")
    found = root[where]
    if hasattr(found, "dtype"):
        return _Dense(found)
    by_genes, shape = _layout(found)
    indptr, genes, values = np.asarray(found["indptr"][:]).astype(np.int64), found["indices"], found["data"]
    length = shape[1] if by_genes else shape[0]
    stored = genes.shape[0]
    if len(indptr) != length + 1 or indptr[0] or indptr[-1] != stored or values.shape[0] != stored:
        raise ValueError(
            f"{len(indptr):,} boundaries for {length:,} rows, {stored:,} places, {values.shape[0]:,} values"
        )
    if (np.diff(indptr) < 0).any():
        raise ValueError("rows end before they begin")
    if not by_genes:
        return _Sparse(indptr, open_vector(genes), open_vector(values), shape, values.dtype)
    if stored > MAX_TURNED:
        raise DataError(
            f"{where} is stored by genes, and {stored:,} values are too many to turn into cells in memory",
            remedy="Write it by cells once: adata.X = adata.X.tocsr(); adata.write_h5ad(NEW)",
        )
    cells, counts = np.empty(stored, np.int32), np.empty(stored, values.dtype)
    open_vector(genes)(0, cells)
    open_vector(values)(0, counts)
    if stored and not (cells.min() >= 0 and cells.max() < shape[0]):
        raise ValueError(f"values of cells that are not there, of {shape[0]:,}")
    turned = csc_array((counts, cells, indptr), shape=shape).tocsr()
    return _in_memory(Rows(turned.indptr.astype(np.int64), turned.indices.astype(np.int32), turned.data), shape)


def _layout(group: Any) -> tuple[bool, tuple[int, int]]:
    """(whether stored by genes, (cells, genes)) of a sparse matrix."""
    attributes = dict(group.attrs)
    shape = attributes.get("shape", attributes.get("h5sparse_shape"))
    if shape is None:  # 10x: columns of genes × cells, so rows of cells × genes
        genes, cells = (int(length) for length in group["shape"][:])
        return False, (cells, genes)
    kind = str(attributes.get("encoding-type", attributes.get("h5sparse_format", "csr")))
    return kind.startswith("csc"), (int(shape[0]), int(shape[1]))
