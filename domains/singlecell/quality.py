"""Quality control as scanpy does it: genes per cell, cells per gene, the share of mitochondrial counts.

The figures are those of ``scanpy.pp.calculate_qc_metrics`` on the counts as they stand in the file, and the limits
those of ``scanpy.pp.filter_cells`` and, on the cells that are left, ``scanpy.pp.filter_genes``. Nothing is left out
unless a limit is given; what is left out is quarantined with its figure.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from polyfm.shared.errors import require

MITOCHONDRIAL = "MT-"
"""How mitochondrial genes begin, whatever the case (mouse: mt-)."""


@dataclass(frozen=True)
class QualityControl:
    """Limits, 0 where there is none."""

    min_genes: int = 0
    """Leave out cells of fewer genes."""
    min_cells: int = 0
    """Leave out genes that are in fewer cells."""
    max_mt: float = 0.0
    """Leave out cells of a larger share of mitochondrial counts, percent."""

    def __post_init__(self) -> None:
        require(self.min_genes >= 0, "data.min_genes", "a number of genes from 0", self.min_genes)
        require(self.min_cells >= 0, "data.min_cells", "a number of cells from 0", self.min_cells)
        require(0 <= self.max_mt <= 100, "data.max_mt", "a percentage from 0 to 100", self.max_mt)

    def __bool__(self) -> bool:
        return bool(self.min_genes or self.min_cells or self.max_mt)

    def reason(self, num_genes: int, mt_percent: float) -> tuple[str, str] | None:
        """Why a cell is left out, as kind and detail; None if it stays.

        Args:
            num_genes: Its genes with a count.
            mt_percent: Its share of mitochondrial counts, percent, NaN without any count.
        """
        if num_genes < self.min_genes:
            return "few genes", f"{num_genes} genes, fewer than {self.min_genes}"
        if self.max_mt and mt_percent > self.max_mt:
            return "high mitochondrial share", f"{mt_percent:.1f} % of the counts, more than {self.max_mt:g} %"
        return None


@dataclass(frozen=True)
class CellMetrics:
    """Figures of n cells, named as scanpy names them."""

    n_genes_by_counts: NDArray[np.int64]
    """(n,) genes with a count."""
    total_counts: NDArray[np.float64]
    """(n,) counts of all genes."""
    pct_counts_mt: NDArray[np.float64]
    """(n,) share of mitochondrial counts, percent; NaN without any count."""

    @classmethod
    def concat(cls, parts: Sequence[Self]) -> Self:
        """Figures of several blocks of cells.

        Args:
            parts: In order.
        """
        return cls(
            np.concatenate([part.n_genes_by_counts for part in parts]),
            np.concatenate([part.total_counts for part in parts]),
            np.concatenate([part.pct_counts_mt for part in parts]),
        )

    def select(self, cells: NDArray[Any]) -> Self:
        """Figures of some cells.

        Args:
            cells: (m,) places, or (n,) bool.
        """
        return type(self)(self.n_genes_by_counts[cells], self.total_counts[cells], self.pct_counts_mt[cells])

    def summary(self) -> str:
        """One line: medians."""
        if not len(self.total_counts):
            return "no cells"
        mt = self.pct_counts_mt[~np.isnan(self.pct_counts_mt)]
        share = f", {np.median(mt):.1f} % mitochondrial" if len(mt) and mt.any() else ""
        return (
            f"a cell has {np.median(self.n_genes_by_counts):,.0f} genes and {np.median(self.total_counts):,.0f} counts"
            f"{share} (medians)"
        )


def row_sums(indptr: NDArray[Any], values: NDArray[Any]) -> NDArray[np.float64]:
    """(n,) sums of the values of each cell.

    Args:
        indptr: (n + 1,).
        values: (nnz,).
    """
    sums = np.zeros(len(indptr) - 1)
    full = np.flatnonzero(np.diff(indptr))
    if len(full):
        sums[full] = np.add.reduceat(values, indptr[:-1][full], dtype=np.float64)
    return sums


def measure(
    indptr: NDArray[Any], indices: NDArray[Any], values: NDArray[Any], mitochondrial: NDArray[np.bool_]
) -> CellMetrics:
    """Figures of a block of cells.

    Args:
        indptr: (n + 1,) where cells begin and end.
        indices: (nnz,) genes of the file.
        values: (nnz,) counts; zeros may be stored.
        mitochondrial: (G,) which genes are.
    """
    totals = row_sums(indptr, values)
    with np.errstate(invalid="ignore", divide="ignore"):
        share = 100 * row_sums(indptr, np.where(mitochondrial[indices], values, 0)) / totals
    return CellMetrics(row_sums(indptr, values > 0).astype(np.int64), totals, share)


def is_mitochondrial(symbols: Sequence[str]) -> NDArray[np.bool_]:
    """(G,) which genes are of the mitochondrion.

    Args:
        symbols: G gene symbols.
    """
    return np.array([symbol.upper().startswith(MITOCHONDRIAL) for symbol in symbols], dtype=bool)
