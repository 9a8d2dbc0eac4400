"""Where a trained model looks: the weights of one attention, for pictures."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from polyfm.shared.backbones.attention import Attention
from polyfm.shared.backbones.layouts import Bias, Layout


@contextmanager
def watched(attention: Attention) -> Iterator[list[Tensor]]:
    """Weights of an attention in each forward pass inside, (B, N, M): over M tokens for N queries, mean of the heads.

    They are what attending to unit vectors gives, so masks and positions count as in the pass itself; dropout is left
    out. Rows of queries that are padding are there and mean nothing.

    Args:
        attention: Of a layer: ``block.attention``, or ``block.cross`` towards a context. Of padded tokens.
    """
    found: list[Tensor] = []
    # The layout does the attending: one that also keeps the weights takes its place.
    handle = attention.register_forward_pre_hook(lambda _, args: (*args[:2], _Keeping(args[2], found), *args[3:]))
    try:
        yield found
    finally:
        handle.remove()


class _Keeping:
    def __init__(self, layout: Layout, found: list[Tensor]) -> None:
        self.layout, self.found = layout, found

    def attend(self, q: Tensor, k: Tensor, v: Tensor, bias: Bias | None = None, dropout: float = 0.0) -> Tensor:
        if k.ndim != 4:
            raise ValueError("weights are kept of padded tokens, not of packed ones")
        with torch.no_grad():
            units = torch.eye(k.shape[1], dtype=k.dtype, device=k.device)
            values: Any = units[None, :, None].expand(*k.shape[:3], -1)
            self.found.append(self.layout.attend(q, k, values, bias).mean(2))
        return self.layout.attend(q, k, v, bias, dropout)
