"""Rows of all processes, with gradient, and means over them: what makes N processes equal one.

Data-parallel training averages gradients over processes. A loss that each process computes on its own rows must then be
(processes / all rows) · Σ own losses, and the gradient of gathered rows must be summed over the processes that used
them. Then gradients equal those of one process with all the rows, whatever number of rows each brings, zero included.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from polyfm.shared.data import ragged
from polyfm.shared.tokens.tokens import Tokens

_noted: ContextVar[list[int] | None] = ContextVar("noted", default=None)


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

    def fetch(self, rows: Tensor, wanted: Tensor) -> Tensor:
        """(k, ...) some of the rows of all processes; gradients flow back to their owners.

        Nothing but what is wanted travels, so memory does not grow with the number of processes.

        Args:
            rows: (n, ...) this process's.
            wanted: (k,) int64 which, as `gather` numbers them; repeats are allowed.
        """
        if len(self.counts) == 1:
            return rows.index_select(0, wanted)
        fetched: Tensor = _Fetch.apply(rows, wanted, self)  # type: ignore[no-untyped-call]
        return fetched

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
    noted = _noted.get()
    if noted is not None:
        noted.append(len(losses))
        return losses.sum()
    return Ranks.of(losses).mean(losses)


@contextmanager
def sums() -> Iterator[list[int]]:
    """Within, `global_mean` gives the sum of this process's losses, asks no other process, and notes how many they are.

    For a batch that is seen in chunks: the number that a mean divides by is known only after the last of them.
    """
    numbers: list[int] = []
    token = _noted.set(numbers)
    try:
        yield numbers
    finally:
        _noted.reset(token)


def reachable(ranks: Ranks, tokens: Tokens, rows: Tensor, wanted: Tensor) -> tuple[Tokens, Tensor]:
    """Sequences of any process; gradients of the tokens flow back to their owners.

    Edges and pairs stay behind: what fuses tokens reads none.

    Args:
        ranks: Of the rows.
        tokens: This process's.
        rows: (n,) int64 which of its sequences stand for its rows.
        wanted: (k,) int64 rows of all processes, as `Ranks.gather` numbers them; repeats are allowed.

    Returns:
        Tokens, and (k,) int64 which sequence of theirs is each that is wanted.
    """
    tokens = tokens.replace(edges=None, pairs=None)
    if len(ranks.counts) == 1:
        return tokens, rows[wanted]
    own = tokens.select(rows).pack()
    lengths = ranks.gather(own.lengths.long())
    places, cu_seqlens = ragged.take(ragged.boundaries(lengths), wanted)
    items = Ranks(tuple(int(part.sum()) for part in lengths.split(ranks.counts)), ranks.rank)
    fetched = own.replace(
        x=items.fetch(own.x, places),
        positions=items.fetch(own.positions, places),
        modality=None if own.modality is None else items.fetch(own.modality, places),
        cu_seqlens=cu_seqlens,
        longest=None,
    )
    return fetched if tokens.packed else fetched.pad(), torch.arange(len(wanted), device=wanted.device)


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


class _Fetch(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor, wanted: Tensor, ranks: Ranks) -> Tensor:
        ends = torch.tensor(ranks.counts, device=wanted.device).cumsum(0)
        owner = torch.searchsorted(ends, wanted, right=True)
        ctx.order = torch.argsort(owner, stable=True)
        asked = torch.bincount(owner, minlength=len(ranks.counts))
        asking = torch.empty_like(asked)
        dist.all_to_all_single(asking, asked)
        ctx.asked, ctx.asking, ctx.shape = asked.tolist(), asking.tolist(), rows.shape
        local = wanted - (ends - torch.tensor(ranks.counts, device=ends.device))[owner]
        ctx.answered = _exchange(local[ctx.order], ctx.asked, ctx.asking)
        came = _exchange(rows[ctx.answered], ctx.asking, ctx.asked)
        return torch.empty_like(came).index_copy_(0, ctx.order, came)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        came = _exchange(grad[ctx.order], ctx.asked, ctx.asking)
        return grad.new_zeros(ctx.shape).index_add_(0, ctx.answered, came), None, None


def _exchange(rows: Tensor, sent: list[int], received: list[int]) -> Tensor:
    """Rows for each process, in their order, against those that each has for this one."""
    came = rows.new_empty(sum(received), *rows.shape[1:])
    dist.all_to_all_single(came, rows.contiguous(), received, sent)
    return came
