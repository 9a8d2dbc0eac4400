"""`Batch`: what one training step sees. Missing modalities are normal: a modality holds only the rows that exist."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from polyfm.shared.data import ragged
from polyfm.shared.data.carrier import Carrier
from polyfm.shared.errors import DataError


class ModalityBatch(Carrier):
    """The rows of one modality that exist in a batch of B items."""

    rows: Tensor
    """(B_m,) int64, ascending: which items of the batch these rows belong to."""

    def select(self, keep: Tensor) -> ModalityBatch:
        """The same modality with only some of its rows.

        Args:
            keep: (n,) int64 indices into this modality's rows.
        """
        raise TypeError(f"{type(self).__name__} does not say how to select rows")


class TokenIds(ModalityBatch):
    """Sequences of discrete tokens (text, SMILES, genes …), packed end to end without padding."""

    ids: Tensor
    """(T,) int64 vocabulary ids, special tokens included."""
    cu_seqlens: Tensor
    """(B_m+1,) int32: sequence i is ``ids[cu_seqlens[i]:cu_seqlens[i+1]]``."""
    longest: int | None = None
    """No sequence is longer. Optional: where given, padding need not read the lengths (export, no stall of a GPU)."""

    @property
    def lengths(self) -> Tensor:
        """(B_m,) tokens in each sequence."""
        return self.cu_seqlens.diff()

    def select(self, keep: Tensor) -> TokenIds:
        """The same sequences, only some of them (or some twice)."""
        index, cu_seqlens = ragged.take(self.cu_seqlens, keep)
        return TokenIds(rows=self.rows[keep], ids=self.ids[index], cu_seqlens=cu_seqlens)


class Triples(ModalityBatch):
    """What a knowledge graph says of some items: (head, relation, tail), any number for each."""

    triples: Tensor
    """(T, 3) int64: entity, relation, entity."""
    cu_seqlens: Tensor
    """(B_m+1,) int32: the triples of row i are ``triples[cu_seqlens[i]:cu_seqlens[i+1]]``."""
    entities: int
    """How many entities the graph has: what a wrong one is drawn from."""

    def select(self, keep: Tensor) -> Triples:
        """The same triples, only those of some rows."""
        index, cu_seqlens = ragged.take(self.cu_seqlens, keep)
        return self.replace(rows=self.rows[keep], triples=self.triples[index], cu_seqlens=cu_seqlens)


class Values(ModalityBatch):
    """A fixed list of P numbers per row (descriptors, table columns), some of which may be unknown."""

    values: Tensor
    """(B_m, P) float32, standardised; 0 where unknown."""
    known: Tensor
    """(B_m, P) bool: True where the value is given."""

    def select(self, keep: Tensor) -> Values:
        """The same table, only some of its rows."""
        return Values(rows=self.rows[keep], values=self.values[keep], known=self.known[keep])


class Graphs(ModalityBatch):
    """Graphs packed into one: atoms and bonds of a molecule, tokens and edges of a form, users and items."""

    node_features: Tensor
    """(A, F) int64: categorical features per node, one column each."""
    edge_index: Tensor
    """(2, E) int64: from, to; both directions of an undirected edge are present."""
    edge_features: Tensor
    """(E, F') int64: categorical features per edge."""
    cu_nodes: Tensor
    """(B_m+1,) int32: nodes of graph i are ``cu_nodes[i]:cu_nodes[i+1]``."""

    def select(self, keep: Tensor) -> Graphs:
        """The same graphs, only some of them (or some twice)."""
        nodes, cu_nodes = ragged.take(self.cu_nodes, keep)
        edges, edge_index = ragged.take_edges(self.cu_nodes, self.edge_index, keep)
        return Graphs(
            rows=self.rows[keep],
            node_features=self.node_features[nodes],
            edge_index=edge_index,
            edge_features=self.edge_features[edges],
            cu_nodes=cu_nodes,
        )


class Grids(ModalityBatch):
    """Regular grids of one shape: series (one axis), images (two), volumes (three)."""

    values: Tensor
    """(B_m, C, ...) channels and axes, e.g. (B_m, C, Z, Y, X)."""
    spacing: Tensor
    """(B_m, K) size of a cell along each axis, in the domain's unit (mm, s); 1 where the grid has none."""

    def select(self, keep: Tensor) -> Grids:
        """The same grids, only some of them."""
        return Grids(rows=self.rows[keep], values=self.values[keep], spacing=self.spacing[keep])


class Batch(Carrier):
    """B items, each with any subset of the modalities."""

    ids: list[str]
    """B ids of the samples, for reports and predictions."""
    keys: Tensor
    """(B,) int64 key of each sample for random draws: a pure function of its id, so that a resumed run draws alike."""
    modalities: dict[str, ModalityBatch]
    """By name; a modality that no item has still stands here, with zero rows."""
    targets: dict[str, Tensor]
    """By name: (B,) or (B, tasks); NaN where a label is missing. Empty in pre-training."""
    groups: Tensor
    """(B,) int64: items with equal groups are one another's positives in contrastive losses (same molecule, same text).
    Usually all different."""

    def __len__(self) -> int:
        return len(self.ids)

    def present(self, modality: str) -> Tensor:
        """(B,) bool: which items have this modality."""
        flags = torch.zeros(len(self), dtype=torch.bool, device=self.modalities[modality].rows.device)
        flags[self.modalities[modality].rows] = True
        return flags

    def slice(self, start: int, stop: int) -> Batch:
        """Items that stand side by side, as a batch of their own.

        Args:
            start: The first.
            stop: Behind the last.
        """
        modalities = {}
        for name, part in self.modalities.items():
            ends = torch.searchsorted(part.rows, torch.tensor([start, stop], device=part.rows.device)).tolist()
            chosen = part.select(torch.arange(*ends, device=part.rows.device))
            modalities[name] = chosen.replace(rows=chosen.rows - start)
        return self.replace(
            ids=self.ids[start:stop],
            keys=self.keys[start:stop],
            modalities=modalities,
            targets={name: values[start:stop] for name, values in self.targets.items()},
            groups=self.groups[start:stop],
        )

    def __getitem__(self, modality: str) -> Any:
        if modality not in self.modalities:
            raise DataError(
                f"the model needs the modality {modality!r}; of these data it gets {', '.join(self.modalities)}",
                remedy=f"Add {modality} to --data.modalities, or choose a recipe without it",
            )
        return self.modalities[modality]
