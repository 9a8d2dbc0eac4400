"""From samples to a batch: packing what is ragged, keeping only the rows that exist."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from polyfm.shared.data.batch import TokenIds, Triples, Values


def sample_key(id: str) -> int:
    """The int64 key of a sample for random draws: a pure function of its id.

    Args:
        id: Of the sample.
    """
    return int.from_bytes(hashlib.blake2b(id.encode(), digest_size=8).digest(), "little", signed=True)


def group_ids(groups: Sequence[str]) -> Tensor:
    """(B,) int64: equal where the names are equal, in every batch (a queue compares batches).

    Args:
        groups: One name per sample.
    """
    return torch.tensor([sample_key(group) for group in groups], dtype=torch.int64)


def pack_ids(sequences: Sequence[np.ndarray | None]) -> TokenIds:
    """Token ids end to end; None where a sample lacks the modality.

    Args:
        sequences: One per sample.
    """
    present = [(row, sequence) for row, sequence in enumerate(sequences) if sequence is not None]
    lengths = np.array([0] + [len(sequence) for _, sequence in present])
    ids = np.concatenate([np.zeros(0, dtype=np.int64)] + [sequence for _, sequence in present])
    return TokenIds(
        rows=torch.tensor([row for row, _ in present], dtype=torch.int64),
        ids=torch.from_numpy(ids.astype(np.int64)),
        cu_seqlens=torch.from_numpy(lengths.cumsum().astype(np.int32)),
        longest=int(lengths.max()),
    )


def pack_triples(facts: Sequence[np.ndarray | None], entities: int) -> Triples:
    """Triples of a knowledge graph end to end; None where it says nothing of a sample.

    Args:
        facts: (n, 3) entity, relation, entity per sample.
        entities: How many entities the graph has.
    """
    present = [(row, triples) for row, triples in enumerate(facts) if triples is not None]
    lengths = np.array([0] + [len(triples) for _, triples in present])
    triples = np.concatenate([np.zeros((0, 3), dtype=np.int64)] + [triples for _, triples in present])
    return Triples(
        rows=torch.tensor([row for row, _ in present], dtype=torch.int64),
        triples=torch.from_numpy(triples.astype(np.int64)),
        cu_seqlens=torch.from_numpy(lengths.cumsum().astype(np.int32)),
        entities=entities,
    )


def stack_values(rows: Sequence[np.ndarray | None], columns: int) -> Values:
    """Rows of a table; None where a sample lacks it, NaN where a cell is unknown.

    Args:
        rows: (P,) standardised values per sample.
        columns: P.
    """
    present = [(index, row) for index, row in enumerate(rows) if row is not None]
    table = np.stack([row for _, row in present]) if present else np.zeros((0, columns))
    values = torch.from_numpy(table.astype(np.float32))
    known = ~values.isnan()
    return Values(
        rows=torch.tensor([index for index, _ in present], dtype=torch.int64),
        values=values.nan_to_num(0.0),
        known=known,
    )
