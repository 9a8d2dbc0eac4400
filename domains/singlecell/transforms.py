"""From counts to what models read: normalised values, ranks, a choice of genes. Whole blocks of cells at a time.

Blocks are CSR: ``indptr`` (n+1,), then one entry per non-zero. Quantile bins stand in `binning.py`.
"""

from __future__ import annotations

from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from polyfm.domains.singlecell.blocks import (
    Array,
    chunks,
    draws,
    halves,
    keep,
    longest_chunk,
    sort_cells,
    sort_keys,
    take_cells,
)
from polyfm.domains.singlecell.kernels import kernels
from polyfm.shared.errors import DataError, require

TARGET = 1e4
"""Counts that a cell is scaled to, as by scanpy's `normalize_total(target_sum=1e4)` and in Geneformer."""
FARTHEST = 9.0
"""Scores of proteins are cut there: farther out stands what means that a value is hidden."""
MOST_RANKED = 2048
"""Genes of a cell that Geneformer reads."""


def normalise(indptr: Array, values: Array, totals: Array, target: float = TARGET, log: bool = True) -> Array:
    """(nnz,) float32: log(1 + count · target / total).

    Args:
        indptr: (n+1,).
        values: (nnz,) counts.
        totals: (n,) library size of each cell, over all genes of its file.
        target: What each cell is scaled to.
        log: Whether to take the logarithm.
    """
    totals = np.asarray(totals, np.float64)
    scale = np.divide(target, totals, out=np.zeros_like(totals), where=totals > 0).astype(np.float32)
    scaled: Array = np.asarray(values, np.float32) * np.repeat(scale, np.diff(indptr))
    return np.log1p(scaled, out=scaled) if log else scaled


# --- Ranks ------------------------------------------------------------------------------------------------------------


def rank_genes(
    indptr: Array, genes: Array, values: Array, medians: Array, most: int = MOST_RANKED
) -> tuple[NDArray[np.int64], NDArray[np.int32]]:
    """Geneformer's rank encoding: the genes of each cell by falling count / non-zero median of the gene.

    Theodoris et al., Nature 2023. There, counts are scaled to 10,000 per cell first; that moves all genes of a cell
    alike and cannot change their order. Ties go by gene id.

    Args:
        indptr: (n+1,).
        genes: (nnz,) int32 ids; none twice in a cell.
        values: (nnz,) counts, or scaled by one factor per cell; not logarithms.
        medians: (G,) of each gene, positive: `Medians.divisors`.
        most: Genes that are kept of each cell.

    Returns:
        (n+1,) indptr, and (m,) gene ids.
    """
    require(most >= 1, "data.max_genes", "at least 1", most)
    divisors, genes = np.asarray(medians, np.float32), np.asarray(genes, np.int32)
    taken = np.zeros(len(indptr), np.int64)
    np.cumsum(np.minimum(np.diff(indptr), most), out=taken[1:])
    ranked = np.empty(taken[-1], np.int32)
    most_keys = longest_chunk(indptr)
    # One piece of memory for all chunks: to touch new memory costs as much as what is done in it.
    all_keys, all_space = np.empty(most_keys, np.uint64), np.empty(most_keys, np.float32)
    for first, last in chunks(indptr):
        cut = slice(int(indptr[first]), int(indptr[last]))
        local = indptr[first : last + 1] - indptr[first]
        keys, space = all_keys[: local[-1]], all_space[: local[-1]]
        kernels().rank_keys(genes[cut], values[cut], divisors, space, keys)
        sort_cells(keys, local)
        kernels().low_halves(keys, local, taken[first : last + 1], ranked)
    return taken, ranked


def _heads(indptr: Array, most: int) -> NDArray[np.int64]:
    """Places of the first ``most`` of each cell."""
    sizes = np.minimum(np.diff(indptr), most)
    ends = np.cumsum(sizes)
    heads: NDArray[np.int64] = np.arange(ends[-1]) + np.repeat(indptr[:-1] - (ends - sizes), sizes)
    return heads


class Medians:
    """Median of each gene over the cells that have it, counts scaled to 10,000 per cell; fitted in one pass.

    Exact while the corpus has at most ``exact`` non-zeros. Then they are counted in bins of 1/32 octave instead, and a
    median is the geometric middle of its bin: at most 1.1 % off, whatever the order or the parts that it was read in.

    Args:
        num_genes: G.
        exact: Non-zeros that are kept as they are, 8 bytes each.

    Attributes:
        medians: (G,) float32; 0 where a gene was never seen.
    """

    OCTAVE = 32
    LEAST, MOST = -6, 14
    """Octaves: below 2^-6 of 10,000 counts, or above all of them, values share the outermost bin."""

    def __init__(self, num_genes: int, exact: int = 1 << 23) -> None:
        self.num_genes, self.exact = num_genes, exact
        self.medians = np.zeros(num_genes, np.float32)
        self._genes: list[Array] = []
        self._values: list[Array] = []
        self._kept = 0
        self._bins: Array | None = None

    def add(self, indptr: Array, genes: Array, values: Array, totals: Array) -> Self:
        """Take in some cells of the training part; `fit` ends the pass.

        Args:
            indptr: (n+1,).
            genes: (nnz,) ids below G.
            values: (nnz,) counts.
            totals: (n,) library sizes.
        """
        scaled = normalise(indptr, values, totals, log=False)
        seen = np.flatnonzero(scaled)
        genes, scaled = np.asarray(genes)[seen].astype(np.int32), scaled[seen]
        if self._bins is None and self._kept + len(genes) <= self.exact:
            self._genes.append(genes)
            self._values.append(scaled)
            self._kept += len(genes)
            return self
        if self._bins is None:
            self._bins = np.zeros(self.num_genes * self.OCTAVE * (self.MOST - self.LEAST), np.int32)
            for some, theirs in zip(self._genes, self._values, strict=True):
                self._count(self._bins, some, theirs)
            self._genes, self._values = [], []
        self._count(self._bins, genes, scaled)
        return self

    def _count(self, bins: Array, genes: Array, values: Array) -> None:
        width = self.OCTAVE * (self.MOST - self.LEAST)
        place = np.floor((np.log2(values) - self.LEAST) * self.OCTAVE).astype(np.int64)
        np.add.at(bins, genes.astype(np.int64) * width + np.clip(place, 0, width - 1), 1)

    def fit(self) -> Self:
        """Medians of all that was added.

        Raises:
            DataError: Nothing was.
        """
        if self._bins is not None:
            self.medians = self._of_bins(self._bins.reshape(self.num_genes, -1))
        elif self._kept:
            self.medians = self._of_values(np.concatenate(self._genes), np.concatenate(self._values))
        else:
            raise DataError("no cell of the training part has a gene of the vocabulary; medians need some")
        self._genes, self._values, self._kept, self._bins = [], [], 0, None
        return self

    def _of_values(self, genes: Array, values: Array) -> NDArray[np.float32]:
        keys = sort_keys(genes.astype(np.uint32), values.view(np.uint32))
        keys.sort()
        high, low = halves(keys)
        ordered = low.copy().view(np.float32)
        first = np.searchsorted(high, np.arange(self.num_genes + 1))
        count = np.diff(first)
        found = count > 0
        start = first[:-1][found]
        medians = np.zeros(self.num_genes, np.float32)
        middle = ordered[start + (count[found] - 1) // 2].astype(np.float64) + ordered[start + count[found] // 2]
        medians[found] = middle / 2
        return medians

    def _of_bins(self, bins: Array) -> NDArray[np.float32]:
        medians = np.zeros(self.num_genes, np.float32)
        for gene in np.flatnonzero(bins.any(axis=1)):  # genes, not cells, and once a run
            running = np.cumsum(bins[gene], dtype=np.int64)
            place = np.searchsorted(running, (running[-1] + 1) // 2)
            medians[gene] = 2.0 ** (self.LEAST + (place + 0.5) / self.OCTAVE)
        return medians

    @property
    def divisors(self) -> NDArray[np.float32]:
        """(G,) what counts are divided by: a gene that was never seen has the typical gene's median."""
        seen = self.medians > 0
        typical = np.median(self.medians[seen]) if seen.any() else 1.0
        return np.where(seen, self.medians, np.float32(typical))

    def state(self) -> dict[str, list[float]]:
        """Numbers only."""
        return {"medians": self.medians.tolist()}

    def load(self, state: dict[str, Any]) -> None:
        """Take over.

        Args:
            state: As made by `state`.
        """
        self.medians = np.array(state["medians"], np.float32)
        self.num_genes = len(self.medians)


# --- A choice of genes ------------------------------------------------------------------------------------------------


def most_variable(expression: Any, number: int) -> NDArray[np.int64]:
    """(number,) genes that vary most for their mean (Satija et al., 2015, as in scanpy), rising.

    Args:
        expression: (n, G) sparse log1p of counts per 10,000.
        number: How many genes.
    """
    import scanpy
    from anndata import AnnData
    from scipy.sparse import csr_matrix

    cells = AnnData(csr_matrix(expression))
    found = scanpy.pp.highly_variable_genes(cells, n_top_genes=number, flavor="seurat", inplace=False)
    # As many as asked for: among genes of equal dispersion scanpy takes all, or none.
    order = np.argsort(-found["dispersions_norm"].fillna(-np.inf).to_numpy(), kind="stable")
    return np.sort(order[:number])


def top_genes(indptr: Array, values: Array, most: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """At most so many genes of each cell, those of the largest values; ties go to the one that stands first.

    Args:
        indptr: (n+1,).
        values: (nnz,) not negative.
        most: Per cell.

    Returns:
        (n+1,) indptr, and (m,) places in the block of what stays, rising.
    """
    return _choose(indptr, np.invert(np.asarray(values, np.float32).view(np.uint32)), most)


def sample_genes(indptr: Array, genes: Array, keys: Array, most: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """At most so many genes of each cell, drawn without replacement.

    A pure function of a cell's key and its genes. Every set of genes is as likely as any other.

    Args:
        indptr: (n+1,).
        genes: (nnz,) int32.
        keys: (n,) uint32, see `blocks.cell_keys`.
        most: Per cell.

    Returns:
        (n+1,) indptr, and (m,) places in the block of what stays, rising.
    """
    return _choose(indptr, draws(indptr, genes, keys), most)


def _choose(indptr: Array, priority: Array, most: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Those of smallest priority (nnz,) uint32; only cells with more than ``most`` are sorted."""
    require(most >= 1, "data.max_genes", "at least 1", most)
    stays = np.ones(len(priority), np.bool_)
    long = np.flatnonzero(np.diff(indptr) > most)
    if len(long):
        theirs, places = take_cells(indptr, long)
        stays[places] = False
        for first, last in chunks(theirs):
            cut = slice(int(theirs[first]), int(theirs[last]))
            local = theirs[first : last + 1] - theirs[first]
            keys = sort_keys(priority[places[cut]], np.arange(local[-1], dtype=np.uint32))
            sort_cells(keys, local)
            stays[places[cut][halves(keys)[1][_heads(local, most)]]] = True
    kept = np.flatnonzero(stays)
    return keep(indptr, kept), kept


# --- Surface proteins -------------------------------------------------------------------------------------------------


class ProteinScores:
    """log1p of counts, standardised per protein; fitted on the training part.

    Attributes:
        names: P, of the proteins that a model knows.
    """

    def __init__(self) -> None:
        self.names: list[str] = []
        self.mean = self.scale = np.zeros(0)

    def fit(self, counts: Array, names: list[str]) -> Self:
        """Learn means and scales.

        Args:
            counts: (n, P), NaN where not measured.
            names: P.

        Raises:
            DataError: A protein was measured in no cell of the training part.
        """
        values = np.log1p(np.asarray(counts, np.float64))
        known = ~np.isnan(values)
        if not known.any(0).all():
            lacking = names[int(np.flatnonzero(~known.any(0))[0])]
            raise DataError(
                f"no cell of the training part has {lacking!r} measured",
                remedy="Split otherwise (--data.split), or take the protein out",
            )
        self.names, count = list(names), known.sum(0)
        self.mean = np.where(known, values, 0).sum(0) / count
        spread = np.sqrt(np.where(known, (values - self.mean) ** 2, 0).sum(0) / count)
        self.scale = np.where(spread > 0, spread, 1.0)
        return self

    def apply(self, counts: Array) -> NDArray[np.float32]:
        """(n, P) scores, NaN where not measured.

        Args:
            counts: (n, P).
        """
        scores = (np.log1p(counts) - self.mean) / self.scale
        return np.clip(scores, -FARTHEST, FARTHEST).astype(np.float32)

    def invert(self, scores: Array) -> Array:
        """(n, P) counts.

        Args:
            scores: (n, P).
        """
        return np.expm1(np.asarray(scores, np.float64) * self.scale + self.mean)

    def state(self) -> dict[str, Any]:
        """Names and numbers."""
        return {"names": self.names, "mean": self.mean.tolist(), "scale": self.scale.tolist()}

    def load(self, state: dict[str, Any]) -> None:
        """Take over.

        Args:
            state: As made by `state`.
        """
        self.names, self.mean, self.scale = list(state["names"]), np.array(state["mean"]), np.array(state["scale"])
