"""Where a trained model looks: the weights of one attention, for pictures."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from polyfm.shared.backbones.attention import Attention


@contextmanager
def watched(attention: Attention) -> Iterator[list[Tensor]]:
    """Weights of an attention in each forward pass inside, (B, N, M): over M tokens for N queries, mean of the heads.

    They are what attending to unit vectors gives, so masks and positions count as in the pass itself. Padded tokens
    only; dropout is left out.

    Args:
        attention: Of a layer: ``block.attention``, or ``block.cross`` towards a context.
    """
    found: list[Tensor] = []

    def keep(module: Any, args: tuple[Any, ...], output: Any) -> None:
        x, positions, layout, *rest = args
        context = rest[0] if rest else None
        with torch.no_grad():
            q = module._heads(module.query(x), module.heads)
            k, _ = module._keys_values(x if context is None else context.x)
            if context is None:
                q, k = module.positions.rotate(q, positions), module.positions.rotate(k, positions)
            bias = module.positions.bias if context is None and module.positions.biased else None
            units = torch.eye(k.shape[1], dtype=k.dtype, device=k.device)
            values = units[None, :, None].expand(*k.shape[:3], -1)
            found.append(layout.attend(q, k, values, bias).mean(2))

    handle = attention.register_forward_hook(keep)
    try:
        yield found
    finally:
        handle.remove()
