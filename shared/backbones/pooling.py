"""From the tokens of a sequence to one vector."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from polyfm.shared.data import ragged
from polyfm.shared.tokens.tokens import Tokens


class Pooling(nn.Module):
    """Base: `Tokens` of B sequences to (B, D)."""

    def forward(self, tokens: Tokens) -> Tensor:
        """Pool.

        Args:
            tokens: Padded or packed; an empty sequence pools to zeros.
        """
        raise TypeError(f"{type(self).__name__} has no forward")


class FirstToken(Pooling):
    """The vector of the first token ([CLS])."""

    def forward(self, tokens: Tokens) -> Tensor:
        """See `Pooling.forward`."""
        return _pick(tokens, last=False)


class LastToken(Pooling):
    """The vector of the last real token (causal language models)."""

    def forward(self, tokens: Tokens) -> Tensor:
        """See `Pooling.forward`."""
        return _pick(tokens, last=True)


class Mean(Pooling):
    """The mean over real tokens, in float32 whatever they are."""

    def forward(self, tokens: Tokens) -> Tensor:
        """See `Pooling.forward`."""
        x = tokens.x.float()
        if tokens.cu_seqlens is None:
            total = x.masked_fill(~tokens.real[..., None], 0.0).sum(1)
        else:
            owner = ragged.owners(tokens.cu_seqlens, len(x))
            total = x.new_zeros(len(tokens), x.shape[-1]).index_add(0, owner, x)
        return (total / tokens.lengths.clamp(min=1)[:, None]).to(tokens.x.dtype)


def _pick(tokens: Tokens, *, last: bool) -> Tensor:
    """(B, D) one token of each sequence; zeros where there is none."""
    lengths = tokens.lengths.long()
    if tokens.cu_seqlens is None:
        starts = torch.arange(len(lengths), device=lengths.device) * tokens.x.shape[1]
        flat = tokens.x.flatten(0, 1)
    else:
        starts, flat = tokens.cu_seqlens[:-1].long(), tokens.x
    if not len(flat):
        return flat.new_zeros(len(lengths), flat.shape[-1]) + flat.sum()  # zeros, yet part of the graph
    index = (starts + (lengths - 1 if last else 0)).clamp(0, len(flat) - 1)
    return flat.index_select(0, index).masked_fill(lengths[:, None] == 0, 0.0)
