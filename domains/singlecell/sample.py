"""`CellBlock`: some cells as read, as sparse rows, before any tokens; `Genes`: their tokens.

A block is the unit, not a cell: hundreds of thousands of cells a second leave no time for a Python object each.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Self

import numpy as np
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from polyfm.shared.data import ragged
from polyfm.shared.data.batch import TokenIds
from polyfm.shared.data.carrier import Carrier
from polyfm.shared.errors import UsageError

PAD, CLS, MASK = range(3)
SPECIALS = 3
"""Ids below stand for no gene; the vocabulary's gene g has the id g + 3."""


class Genes(TokenIds):
    """Genes with a value each, packed end to end; [CLS], whose value is 0, is the first of each cell."""

    values: Tensor
    """(T,) float32: bins, or normalised expression."""

    def select(self, keep: Tensor) -> Genes:
        """The same cells, only some of them (or some twice)."""
        index, cu_seqlens = ragged.take(self.cu_seqlens, keep)
        return Genes(rows=self.rows[keep], ids=self.ids[index], values=self.values[index], cu_seqlens=cu_seqlens)


class CellBlock(Carrier):
    """n cells with whatever is known of them; None marks a modality that is missing."""

    ids: list[str]
    """n names, unique within a data set."""
    groups: list[str]
    """n donors or batches: what a split never cuts."""
    rows: NDArray[np.int64]
    """(n,) row of each cell in its file, from 0."""
    indptr: NDArray[np.int64]
    """(n + 1,) where each cell's genes begin and end."""
    genes: NDArray[np.int32]
    """(nnz,) ids of the vocabulary, rising and different within a cell."""
    values: NDArray[np.float32]
    """(nnz,) UMI or read counts, or log1p-normalised expression. None is 0."""
    totals: NDArray[np.float32]
    """(n,) library size: the sum over all genes of the file, also those outside the vocabulary."""
    texts: list[str | None]
    """n descriptions in natural language."""
    proteins: NDArray[np.float32] | None = None
    """(n, P) counts of surface proteins, NaN where not measured."""
    counts: bool = True
    """Whether the values are counts; else they are log-normalised."""
    drawn: int = 0
    """In which pass over the data, from 1, random choices are made; 0 for those that never change."""
    targets: dict[str, NDArray[np.float64]] = dataclasses.field(default_factory=dict)
    """By name: (n, tasks) values, or indices of classes, NaN where missing. Empty in pre-training."""

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: int | slice) -> Self:
        """A block of one cell, or of some."""
        if isinstance(index, slice):
            return self.select(range(*index.indices(len(self))))
        if not -len(self) <= index < len(self):
            raise IndexError(index)
        return self.select([index % len(self)])

    def select(self, rows: ArrayLike) -> Self:
        """Some of the cells, in the order asked for.

        Args:
            rows: (m,) positions in this block, from 0; repeats are allowed.
        """
        rows = np.asarray(rows, dtype=np.int64)
        lengths = np.diff(self.indptr)[rows]
        indptr = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
        # Where each taken entry stands: its cell's first, plus its place within the cell.
        take = np.arange(indptr[-1]) + np.repeat(self.indptr[rows] - indptr[:-1], lengths)
        return self.replace(
            ids=[self.ids[row] for row in rows],
            groups=[self.groups[row] for row in rows],
            rows=self.rows[rows],
            indptr=indptr,
            genes=self.genes[take],
            values=self.values[take],
            totals=self.totals[rows],
            texts=[self.texts[row] for row in rows],
            proteins=None if self.proteins is None else self.proteins[rows],
            targets={name: values[rows] for name, values in self.targets.items()},
        )

    @classmethod
    def concat(cls, blocks: Sequence[Self]) -> Self:
        """Several blocks as one, in order.

        Args:
            blocks: At least one, all with the same targets and, where they have any, the same proteins.

        Raises:
            UsageError: There is none, or targets or proteins differ.
        """
        if not blocks:
            raise UsageError("there are no blocks to put together")
        if any(block.targets.keys() != blocks[0].targets.keys() for block in blocks):
            raise UsageError("blocks of one set have the same targets")
        ends = np.cumsum([0] + [block.indptr[-1] for block in blocks])
        parts = [block.indptr[1:] + end for block, end in zip(blocks, ends[:-1], strict=True)]
        return cls(
            ids=[name for block in blocks for name in block.ids],
            groups=[group for block in blocks for group in block.groups],
            rows=np.concatenate([block.rows for block in blocks]),
            indptr=np.concatenate([np.zeros(1, dtype=np.int64), *parts]),
            genes=np.concatenate([block.genes for block in blocks]),
            values=np.concatenate([block.values for block in blocks]),
            totals=np.concatenate([block.totals for block in blocks]),
            counts=blocks[0].counts,
            drawn=blocks[0].drawn,
            texts=[text for block in blocks for text in block.texts],
            proteins=_stacked_proteins(blocks),
            targets={name: np.concatenate([block.targets[name] for block in blocks]) for name in blocks[0].targets},
        )


def _stacked_proteins(blocks: Sequence[CellBlock]) -> NDArray[np.float32] | None:
    """Proteins of all blocks, NaN for blocks that have none."""
    widths = {block.proteins.shape[1] for block in blocks if block.proteins is not None}
    if not widths:
        return None
    if len(widths) > 1:
        raise UsageError(f"blocks of one set have the same proteins, not {sorted(widths)} of them")
    width = widths.pop()
    parts = [np.full((len(b), width), np.nan, np.float32) if b.proteins is None else b.proteins for b in blocks]
    return np.concatenate(parts)
