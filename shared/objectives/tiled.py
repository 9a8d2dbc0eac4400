"""Losses over all pairs of two sets of vectors, streamed over tiles: never a B×B matrix above a tile.

Memory falls from O(n m) to O((n + m) d). The tile that fits a processor's cache makes it faster than the dense form,
too, although the backward pass multiplies again: dense softmax is bound by memory, not by arithmetic.

Tiles: Inf-CL (Cheng et al., arXiv 2410.17243) for the log-sum-exp; SigLIP (Zhai et al., arXiv 2303.15343, 3.2).
Accumulation is in float32 whatever the inputs are. Scale vectors before: autograd then sees to the temperature.

Letters: n rows, m columns, d size of the vectors.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

_TILE = {"cpu": 1024}
"""Rows and columns of a tile: 4 MiB of float32 stay in a core's cache."""
_LARGE_TILE = 8192
"""On accelerators, whose launches cost more than what a cache would save."""


@dataclasses.dataclass(frozen=True)
class Best:
    """The most similar columns of each row that are no positives of it: hard negatives."""

    values: Tensor
    """(n, k) similarities, falling; -inf where a row has fewer."""
    indices: Tensor
    """(n, k) columns; 0 where a row has fewer."""


class _Search:
    """Keeps the best columns of each row while tiles pass by."""

    def __init__(self, a: Tensor, top: int, groups: tuple[Tensor, Tensor] | None) -> None:
        self.values = a.new_full((len(a), top), -torch.inf, dtype=torch.float32)
        self.indices = torch.zeros(len(a), top, dtype=torch.int64, device=a.device)
        self.top, self.groups = top, groups

    def see(self, tile: Tensor, rows: slice, columns: slice) -> None:
        """Look at a tile; it is overwritten where it holds positives."""
        if not self.top:
            return
        if self.groups is not None:
            row_groups, column_groups = self.groups[0][rows], self.groups[1][columns]
            if torch.isin(row_groups, column_groups).any():  # few tiles hold positives at all
                tile.masked_fill_(row_groups[:, None] == column_groups, -torch.inf)
        # Sorting is slow next to a maximum, and after the first tiles few rows have anything to gain.
        gain = (tile.amax(1) > self.values[rows, -1]).nonzero()[:, 0]
        values, indices = tile[gain].topk(min(self.top, tile.shape[1]))
        gain += rows.start
        values, order = torch.cat([self.values[gain], values], dim=1).topk(self.top)
        self.values[gain] = values
        self.indices[gain] = torch.cat([self.indices[gain], indices + columns.start], dim=1).gather(1, order)


def log_sum_exp(
    a: Tensor, b: Tensor, *, columns: bool = True, top: int = 0, groups: tuple[Tensor, Tensor] | None = None
) -> tuple[Tensor, Tensor, Best]:
    """Log Σ_j exp(aᵢ·bⱼ) of every row i and log Σ_i exp(aᵢ·bⱼ) of every column j, in one pass.

    Args:
        a: (n, d), scaled by the inverse temperature.
        b: (m, d).
        columns: Whether the columns are wanted.
        top: How many of the most similar columns to return for each row.
        groups: (n,) and (m,) int64: a column of a row's own group is not among its most similar ones.

    Returns:
        (n,) of the rows, (m,) of the columns (-inf if not wanted), and the best columns of each row (no gradient).
    """
    rows, cols, values, indices = _LogSumExp.apply(a.float(), b.float(), columns, top, groups)  # type: ignore[no-untyped-call]
    return rows, cols, Best(values, indices)


class _LogSumExp(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, a: Tensor, b: Tensor, columns: bool, top: int, groups: tuple[Tensor, Tensor] | None
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        row_lse, col_lse = a.new_full((len(a),), -torch.inf), a.new_full((len(b),), -torch.inf)
        search = _Search(a, top, groups)
        for rows, cols, z, spare in _products(a, b):
            row_lse[rows] = torch.logaddexp(row_lse[rows], _tile_lse(z, 1, spare))
            if columns:
                col_lse[cols] = torch.logaddexp(col_lse[cols], _tile_lse(z, 0, spare))
            search.see(z, rows, cols)
        ctx.save_for_backward(a, b, row_lse, col_lse)
        ctx.set_materialize_grads(False)
        ctx.mark_non_differentiable(search.values, search.indices)
        return row_lse, col_lse, search.values, search.indices

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        a, b, row_lse, col_lse = ctx.saved_tensors
        need_a, need_b = ctx.needs_input_grad[:2]
        grad_a = torch.zeros_like(a) if need_a else None
        grad_b = torch.zeros_like(b) if need_b else None
        grad_rows, grad_cols = grads[:2]
        for rows, cols, z, spare in _products(a, b):
            # ∂/∂z = softmax over the row and over the column, each times what comes from above.
            grad_z = spare.zero_()
            if grad_rows is not None:
                grad_z = torch.sub(z, row_lse[rows, None], out=spare).exp_().mul_(grad_rows[rows, None])
            if grad_cols is not None:
                grad_z.add_(z.sub_(col_lse[cols]).exp_().mul_(grad_cols[cols]))
            if grad_a is not None:
                grad_a[rows].addmm_(grad_z, b[cols])
            if grad_b is not None:
                grad_b[cols].addmm_(grad_z.T, a[rows])
        return grad_a, grad_b, None, None, None


def softplus_sum(
    a: Tensor, b: Tensor, bias: Tensor, *, top: int = 0, groups: tuple[Tensor, Tensor] | None = None
) -> tuple[Tensor, Best]:
    """Σ_ij softplus(aᵢ·bⱼ + bias): SigLIP's loss if every pair were a negative.

    A positive pair adds softplus(-z) = softplus(z) - z, so subtract its z: no matrix of labels is needed.

    Args:
        a: (n, d), scaled.
        b: (m, d).
        bias: ().
        top: How many of the most similar columns to return for each row.
        groups: As in `log_sum_exp`.

    Returns:
        () the sum, and the best columns of each row by aᵢ·bⱼ + bias (no gradient).
    """
    graded = torch.is_grad_enabled()
    total, values, indices = _SoftplusSum.apply(a.float(), b.float(), bias.float(), graded, top, groups)  # type: ignore[no-untyped-call]
    return total, Best(values, indices)


class _SoftplusSum(torch.autograd.Function):
    """Nothing couples the terms, so the gradients are made in the forward pass and only scaled in the backward."""

    @staticmethod
    def forward(
        ctx: Any, a: Tensor, b: Tensor, bias: Tensor, graded: bool, top: int, groups: tuple[Tensor, Tensor] | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        total, grad_bias = a.new_zeros(()), a.new_zeros(())
        grad_a, grad_b = torch.zeros_like(a) if graded else None, torch.zeros_like(b) if graded else None
        search = _Search(a, top, groups)
        for rows, cols, z, spare in _products(a, b):
            total += F.softplus(z.add_(bias)).sum()
            if grad_a is not None and grad_b is not None:
                grad_z = torch.sigmoid(z, out=spare)
                grad_bias += grad_z.sum()
                grad_a[rows].addmm_(grad_z, b[cols])
                grad_b[cols].addmm_(grad_z.T, a[rows])
            search.see(z, rows, cols)
        if graded:
            ctx.save_for_backward(grad_a, grad_b, grad_bias)
        ctx.mark_non_differentiable(search.values, search.indices)
        return total, search.values, search.indices

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        grad_a, grad_b, grad_bias = ctx.saved_tensors
        return grads[0] * grad_a, grads[0] * grad_b, grads[0] * grad_bias, None, None, None


@torch.no_grad()
def hardest(
    a: Tensor,
    b: Tensor,
    groups: tuple[Tensor, Tensor],
    *,
    top: int = 1,
    noise: Callable[[slice, slice], Tensor] | None = None,
) -> Best:
    """The most similar columns of each row that are no positives of it.

    With Gumbel noise the columns are drawn without replacement from softmax_j(aᵢ·bⱼ) (Kool et al., arXiv 1903.06059).

    Args:
        a: (n, d), scaled by the inverse temperature.
        b: (m, d).
        groups: (n,) and (m,) int64: columns of a row's own group are its positives.
        top: How many for each row.
        noise: Rows and columns of a tile to (rows, columns) Gumbel noise; none is added if None.
    """
    search = _Search(a, top, groups)
    for rows, cols, z, _ in _products(a.float(), b.float()):
        search.see(z if noise is None else z.add_(noise(rows, cols)), rows, cols)
    return Best(search.values, search.indices)


def _products(a: Tensor, b: Tensor) -> Iterator[tuple[slice, slice, Tensor, Tensor]]:
    """Tiles of a bᵀ, row by row: their place, the products, and spare memory of their shape; both are used again."""
    step = _TILE.get(a.device.type, _LARGE_TILE)
    memory = a.new_empty(2, min(step, len(a)) * min(step, len(b)))
    # Autocast would multiply in half precision: a similarity of 100 would be off by 0.25.
    with torch.autocast(a.device.type, enabled=False):
        for i in range(0, len(a), step):
            rows = slice(i, min(i + step, len(a)))
            for j in range(0, len(b), step):
                cols = slice(j, min(j + step, len(b)))
                shape = rows.stop - rows.start, cols.stop - cols.start
                z, spare = memory[:, : shape[0] * shape[1]].view(2, *shape)
                yield rows, cols, torch.mm(a[rows], b[cols].T, out=z), spare


def _tile_lse(z: Tensor, dim: int, spare: Tensor) -> Tensor:
    """`z.logsumexp(dim)` without fresh memory."""
    top = z.amax(dim, keepdim=True)
    return torch.sub(z, top, out=spare).exp_().sum(dim).log_().add_(top.squeeze(dim))
