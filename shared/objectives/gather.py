"""Rows of all processes, with gradient, and means over them: what makes N processes equal one.

Data-parallel training averages gradients over processes. A loss that each process computes on its own rows must then be
(processes / all rows) · Σ own losses, and the gradient of gathered rows must be summed over the processes that used
them. Then gradients equal those of one process with all the rows, whatever number of rows each brings, zero included.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F


@dataclasses.dataclass(frozen=True)
class Ranks:
    """How many rows each process brings; one process without `torch.distributed`."""

    counts: tuple[int, ...]
    """Rows, by process."""
    rank: int
    """Which process this is."""

    @classmethod
    def of(cls, rows: Tensor) -> Ranks:
        """Ask every process for its number of rows.

        Args:
            rows: (n, ...) this process's; n may be 0.
        """
        if not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1:
            return cls((len(rows),), 0)
        counts = torch.zeros(dist.get_world_size(), dtype=torch.int64, device=rows.device)
        counts[dist.get_rank()] = len(rows)
        dist.all_reduce(counts)
        return cls(tuple(counts.tolist()), dist.get_rank())

    @property
    def total(self) -> int:
        """N, the rows of all processes."""
        return sum(self.counts)

    @property
    def own(self) -> slice:
        """Where this process's rows stand among all."""
        start = sum(self.counts[: self.rank])
        return slice(start, start + self.counts[self.rank])

    def gather(self, rows: Tensor) -> Tensor:
        """(N, ...) the rows of all processes, in the order of the processes; gradients flow back to their owners.

        Args:
            rows: (n, ...) this process's.
        """
        if len(self.counts) == 1:
            return rows
        gathered: Tensor = _Gather.apply(rows, self)  # type: ignore[no-untyped-call]
        return gathered

    def each(self, value: Tensor) -> Tensor:
        """(processes, ...) one tensor of equal shape from every process; gradients flow back to their owners.

        Args:
            value: This process's.
        """
        return Ranks((1,) * len(self.counts), self.rank).gather(value[None])

    def mean(self, losses: Tensor) -> Tensor:
        """() this process's share of the mean over the rows of all; exactly 0, yet connected, if there are none.

        The mean of the shares over the processes is the mean over all rows.

        Args:
            losses: (n,) of this process's rows.
        """
        return losses.sum() * (len(self.counts) / max(self.total, 1))


def global_mean(losses: Tensor) -> Tensor:
    """() this process's share of the mean over all processes' losses; see `Ranks.mean`.

    Args:
        losses: (n,) of whatever took part here; n may be 0.
    """
    return Ranks.of(losses).mean(losses)


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor, ranks: Ranks) -> Tensor:
        ctx.ranks = ranks
        # Collectives need equal shapes: pad to the largest process, cut afterwards.
        padding = max(ranks.counts) - len(rows)
        padded = F.pad(rows.flatten(1) if rows.ndim > 1 else rows[:, None], (0, 0, 0, padding)).contiguous()
        parts = [torch.empty_like(padded) for _ in ranks.counts]
        dist.all_gather(parts, padded)
        whole = torch.cat([part[:count] for part, count in zip(parts, ranks.counts, strict=True)])
        return whole.view(ranks.total, *rows.shape[1:])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        total = grad.contiguous().clone()
        dist.all_reduce(total)
        return total[ctx.ranks.own], None
