"""`Expression`: the matrix of one file as it is read: its values checked and turned into counts, its genes numbered."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray

from polyfm.domains.singlecell.layers import UNDO, Kind, Rows, Source, find_steps, negative, not_finite, recover
from polyfm.domains.singlecell.quality import CellMetrics, QualityControl, measure, row_sums
from polyfm.domains.singlecell.store import CellStore
from polyfm.shared.errors import DataError

BLOCK_CELLS = 2048
_LOOKED_BLOCKS, _LOOKED_CELLS = 16, 64
_WHOLE = 1e-3
_EXACT = 2.0**24
"""Larger counts are not exact in float32."""


@dataclass(frozen=True)
class Scan:
    """What one pass over a matrix told of its n cells and G genes."""

    metrics: CellMetrics
    """Of all cells."""
    recovered: NDArray[np.bool_]
    """(n,) False where counts could not be recovered."""
    known: NDArray[np.int64]
    """(n,) values of genes of the vocabulary."""
    seen: NDArray[np.int64]
    """(G,) in how many of the cells that quality control keeps a gene has a count."""
    others: NDArray[np.float32]
    """(n, P) values of the columns that were asked for besides."""


class Expression:
    """A matrix of a file. Picklable: the store is opened anew in each process.

    Args:
        store: Reads rows.
        source: What it holds, and what is made of it.
        is_gene: (G,) False for antibodies, peaks and the like, which count for nothing.
    """

    def __init__(self, store: CellStore, source: Source, is_gene: NDArray[np.bool_]) -> None:
        self.store, self.source, self.is_gene = store, source, is_gene
        self.steps: NDArray[np.float64] | None = None
        """(n,) what one count became, where counts are recovered: set by `scan`."""
        self.checked = False
        """All values were looked at."""
        self.number(np.full(int(is_gene.sum()), -1, np.int32))

    def number(self, ids: NDArray[np.int32]) -> None:
        """Number the genes.

        Args:
            ids: (genes,) ids of the vocabulary, -1 outside, of the columns that are genes.
        """
        self.ids = np.full(len(self.is_gene), -1, np.int32)
        """(G,) ids of the vocabulary by column of the file, -1 outside."""
        self.ids[self.is_gene] = ids
        known = self.ids[self.ids >= 0]
        self._rising = bool((np.diff(known) > 0).all())
        self._whole = bool(self.is_gene.all())

    def rows(self, rows: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[Any], NDArray[np.float32]]:
        """Cells as they are in the file, their values as models want them.

        Args:
            rows: (n,) rising.

        Returns:
            (n + 1,) indptr, (nnz,) genes of the file, (nnz,) values.

        Raises:
            DataError: A value is negative, not finite, or no whole number among counts.
        """
        indptr, indices, values = self.store.read_rows(rows)
        if not self.checked:
            self._check(rows, indptr, values)
        if self.source.undo is not None:
            steps = self._steps(rows)[0] if self.steps is None else self.steps[rows]
            counts = recover(values.astype(np.float64), self.source.undo, np.repeat(steps, np.diff(indptr)))
            return indptr, indices, counts
        values = values.astype(np.float32, copy=False)
        return indptr, indices, np.rint(values) if self.source.kind == Kind.COUNTS else values

    def read(
        self, rows: NDArray[np.int64]
    ) -> tuple[NDArray[np.int64], NDArray[np.int32], NDArray[np.float32], NDArray[np.float32]]:
        """Cells in the numbers of the vocabulary.

        Args:
            rows: (n,) rising.

        Returns:
            (n,) genes of each, (nnz,) ids rising within a cell, (nnz,) values, (n,) totals over all genes of the file.
        """
        indptr, indices, values = self.rows(rows)
        totals = self.totals(indptr, indices, values)
        genes = self.ids[indices]
        keep = (genes >= 0) & (values > 0)
        if not keep.all():
            indptr = np.concatenate([[0], np.cumsum(keep)])[indptr].astype(np.int64)
            genes, values = genes[keep], values[keep]
        if not self._rising or not _rises(indptr, genes):
            shape = (len(indptr) - 1, int(self.ids.max(initial=0)) + 1)
            block = sp.csr_array((values, genes, indptr), shape=shape)
            block.sum_duplicates()
            indptr, genes, values = block.indptr.astype(np.int64), block.indices.astype(np.int32), block.data
        return np.diff(indptr), genes, values, totals

    def totals(self, indptr: NDArray[Any], indices: NDArray[Any], values: NDArray[Any]) -> NDArray[np.float32]:
        """(n,) library sizes: sums over all genes of the file, of logarithms undone.

        Args:
            indptr: (n + 1,).
            indices: (nnz,) genes of the file.
            values: (nnz,) as `rows` gives them.
        """
        values = values if self.source.kind == Kind.COUNTS else np.expm1(values)
        if not self._whole:
            values = np.where(self.is_gene[indices], values, 0)
        return row_sums(indptr, values).astype(np.float32)

    def scan(self, mitochondrial: NDArray[np.bool_], quality: QualityControl, others: NDArray[np.int64]) -> Scan:
        """Look at every value once: check it, recover counts, measure cells.

        Args:
            mitochondrial: (genes,) which of the columns that are genes.
            quality: Genes are counted in the cells that it keeps.
            others: (P,) columns that are no genes, to be read besides.

        Raises:
            DataError: As of `rows`.
        """
        n, genes = self.store.num_cells, self.store.num_genes
        recovered, known, parts = np.ones(n, bool), np.zeros(n, np.int64), []
        seen, besides = np.zeros(genes, np.int64), np.zeros((n, len(others)), np.float32)
        steps = np.ones(n) if self.source.undo is not None else None
        self.steps = steps
        mt = np.zeros(genes, bool)
        mt[self.is_gene] = mitochondrial
        for start in range(0, n, BLOCK_CELLS):
            block = slice(start, min(start + BLOCK_CELLS, n))
            wanted = np.arange(block.start, block.stop)
            if steps is not None:
                steps[block], recovered[block] = self._steps(wanted)
            indptr, indices, values = self.rows(wanted)
            if len(others):
                matrix = sp.csr_array((values, indices, indptr), shape=(len(wanted), genes))
                besides[block] = matrix[:, others].toarray()
            plain = values if self.source.kind == Kind.COUNTS else np.expm1(values)
            plain = plain if self._whole else np.where(self.is_gene[indices], plain, 0)
            found = measure(indptr, indices, plain, mt)
            parts.append(found)
            known[block] = row_sums(indptr, (self.ids[indices] >= 0) & (values > 0)).astype(np.int64)
            good = found.n_genes_by_counts >= max(quality.min_genes, 1)
            if quality.max_mt:
                good &= ~(found.pct_counts_mt > quality.max_mt)
            counted = indices[np.repeat(good, np.diff(indptr)) & (plain > 0)]
            seen += np.bincount(counted, minlength=genes)
        self.checked = True
        return Scan(CellMetrics.concat(parts), recovered, known, seen, besides)

    def _steps(self, rows: NDArray[np.int64]) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
        indptr, _, values = self.store.read_rows(rows)
        found = nonzero(indptr, np.maximum(values, 0))
        return find_steps(found.indptr, UNDO[self.source.undo or ""](found.values))

    def _check(self, rows: NDArray[np.int64], indptr: NDArray[Any], values: NDArray[Any]) -> None:
        if not len(values):
            return
        low, high = float(values.min()), float(values.max())
        if not (low >= 0 and high < np.inf):
            wrong = ~np.isfinite(values)
            problem = not_finite(values) if wrong.any() else negative(values)
            raise self._at(problem, rows, indptr, wrong if wrong.any() else values < 0)
        if self.source.kind == Kind.COUNTS and self.source.undo is None:
            away = np.abs(values - np.rint(values)) > _WHOLE if values.dtype.kind == "f" else np.zeros(1, bool)
            if away.any():
                problem = DataError(
                    f"{int(away.sum()):,} values among counts are no whole numbers, such as {values[away][0]:g}",
                    remedy="Round them if they are estimated counts: adata.X = np.rint(adata.X)",
                )
                raise self._at(problem, rows, indptr, away)
            if high > _EXACT:
                problem = DataError(
                    f"a count is {high:,.0f}, which no cell can have",
                    remedy="Look for an overflow of integers where the file was written",
                )
                raise self._at(problem, rows, indptr, values > _EXACT)

    def _at(
        self, problem: DataError, rows: NDArray[np.int64], indptr: NDArray[Any], wrong: NDArray[np.bool_]
    ) -> DataError:
        entry = int(np.flatnonzero(wrong)[0])
        row = int(rows[np.searchsorted(indptr, entry, side="right") - 1]) + 1
        where = self.source.where
        return DataError(f"{where}, row {row}: {problem.message}", where=self.store.path, remedy=problem.remedy)


def look(store: CellStore) -> Rows:
    """Some cells of a matrix, from blocks that lie evenly over it.

    Args:
        store: Of the matrix.
    """
    n = store.num_cells
    starts = np.linspace(0, max(n - _LOOKED_CELLS, 0), _LOOKED_BLOCKS).astype(np.int64)
    rows = np.unique(starts[:, None] + np.arange(_LOOKED_CELLS))
    rows = rows[rows < n]
    indptr, _, values = store.read_rows(rows)
    return nonzero(indptr, values, rows)


def nonzero(indptr: NDArray[np.int64], values: NDArray[Any], rows: NDArray[np.int64] | None = None) -> Rows:
    """Sparse rows without stored zeros.

    Args:
        indptr: (n + 1,).
        values: (nnz,).
        rows: (n,) which cells of the matrix.
    """
    keep = values != 0
    ends = np.concatenate([[0], np.cumsum(keep)])[indptr].astype(np.int64)
    return Rows(ends, values[keep].astype(np.float64), rows)


def _rises(indptr: NDArray[np.int64], genes: NDArray[np.int32]) -> bool:
    """Whether the ids rise within each cell."""
    if len(genes) < 2:
        return True
    falls = np.flatnonzero(np.diff(genes) <= 0) + 1
    return len(falls) < len(indptr) and bool(np.isin(falls, indptr).all())
