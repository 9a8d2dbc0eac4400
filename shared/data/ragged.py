"""Arithmetic on packed rows: items lie end to end, row i being ``[cu[i], cu[i+1])``.

``cu`` (B+1,) holds the running total of the row lengths, as FlashAttention's ``cu_seqlens``. Nothing here reads a
tensor's values unless the result's size depends on them, so packing and padding can be exported and do not stall a GPU.
"""

from __future__ import annotations

import torch
from torch import Tensor


def boundaries(lengths: Tensor) -> Tensor:
    """(B+1,) int32 running total of (B,) row lengths, from 0."""
    return torch.cat([lengths.new_zeros(1), lengths.cumsum(0)]).to(torch.int32)


def owners(cu: Tensor, total: int) -> Tensor:
    """(total,) int64: which row each item belongs to.

    Args:
        cu: (B+1,) boundaries of rows.
        total: Items in all rows.
    """
    rows = torch.arange(len(cu) - 1, device=cu.device)
    return torch.repeat_interleave(rows, cu.diff().long(), output_size=total)


def places(cu: Tensor, total: int) -> Tensor:
    """(total,) int64: where each item stands within its row.

    Args:
        cu: (B+1,) boundaries of rows.
        total: Items in all rows.
    """
    starts = torch.repeat_interleave(cu[:-1].long(), cu.diff().long(), output_size=total)
    return torch.arange(total, device=cu.device) - starts


def take(cu: Tensor, keep: Tensor) -> tuple[Tensor, Tensor]:
    """Items of some rows, in the order asked for.

    Args:
        cu: (B+1,) boundaries of rows.
        keep: (n,) int64 rows; repeats are allowed.

    Returns:
        (T',) int64 indices of their items, and (n+1,) int32 boundaries of the rows taken.
    """
    taken = boundaries(cu.diff()[keep])
    total = int(taken[-1])
    starts = torch.repeat_interleave(cu[keep].long(), taken.diff().long(), output_size=total)
    return starts + places(taken, total), taken


def take_edges(cu: Tensor, index: Tensor, keep: Tensor) -> tuple[Tensor, Tensor]:
    """Edges of some rows of packed graphs, numbered anew.

    Args:
        cu: (B+1,) boundaries of each graph's nodes.
        index: (2, E) int64 from and to, in the numbering of all nodes; edges in any order.
        keep: (n,) int64 graphs; repeats are allowed.

    Returns:
        (E',) int64 which edges, and (2, E') their ends in the numbering of the nodes taken.
    """
    owner = torch.searchsorted(cu[1:].long(), index[0].contiguous(), right=True)
    order = torch.argsort(owner, stable=True)
    within, taken = take(boundaries(torch.bincount(owner, minlength=len(cu) - 1)), keep)
    edges = order[within]
    moved = boundaries(cu.diff()[keep])[:-1].long() - cu[keep].long()
    return edges, index[:, edges] + moved[owners(taken, len(edges))]
