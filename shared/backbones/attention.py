"""Multi-head attention of tokens to themselves or to a context (Vaswani et al., arXiv 1706.03762)."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn

from polyfm.shared.backbones.cache import KeyValueCache
from polyfm.shared.backbones.layouts import Layout
from polyfm.shared.errors import require
from polyfm.shared.tokens.dropout import Dropout
from polyfm.shared.tokens.positions import Positions
from polyfm.shared.tokens.tokens import Tokens


class Attention(nn.Module):
    """softmax(Q Kᵀ / √d + bias) V, in H heads.

    Args:
        width: D.
        heads: H; the head size is D / H.
        kv_heads: Heads of keys and values (grouped queries); 0 for H.
        bias: Whether the four projections have a bias.
        dropout: On attention weights and on the output.
        positions: Makes what rotates queries and keys, or scores them by position; never used towards a context.
        context_width: Width of the tokens attended to; 0 for D.
    """

    def __init__(
        self,
        width: int,
        heads: int = 8,
        kv_heads: int = 0,
        bias: bool = True,
        dropout: float = 0.0,
        positions: Callable[[], Positions] = Positions,
        context_width: int = 0,
    ) -> None:
        super().__init__()
        kv_heads = kv_heads or heads
        require(heads >= 1 and width % heads == 0, "Attention.heads", f"a divisor of the width {width}", heads)
        require(
            kv_heads >= 1 and heads % kv_heads == 0, "Attention.kv_heads", f"a divisor of the {heads} heads", kv_heads
        )
        self.heads, self.kv_heads, self.head_size = heads, kv_heads, width // heads
        source = context_width or width
        self.query = nn.Linear(width, width, bias=bias)
        self.key = nn.Linear(source, self.kv_heads * self.head_size, bias=bias)
        self.value = nn.Linear(source, self.kv_heads * self.head_size, bias=bias)
        self.output = nn.Linear(width, width, bias=bias)
        self.dropout = Dropout(dropout)
        self.positions = positions()

    @property
    def exact(self) -> bool:
        """Whether it needs scores or dropout that the GPU kernels for packed tokens lack."""
        return self.positions.biased or (self.training and self.dropout.p > 0)

    def forward(
        self,
        x: Tensor,
        positions: Tensor,
        layout: Layout,
        context: Tokens | None = None,
        cache: KeyValueCache | None = None,
    ) -> Tensor:
        """Attend.

        Args:
            x: (..., D) queries, in the layout's form.
            positions: (..., K) of the queries.
            layout: The compiled mask, which does the attending.
            context: Tokens attended to; x itself if None.
            cache: Keys and values of earlier steps (generation).

        Returns:
            Like x.
        """
        q = self._heads(self.query(x), self.heads)
        bias = None
        if context is None:
            k, v = self._keys_values(x)
            q, k = self.positions.rotate(q, positions), self.positions.rotate(k, positions)
            bias = self.positions.bias if self.positions.biased else None
            if cache is not None:
                k, v = cache.append(self, k, v)
        elif cache is None:
            k, v = self._keys_values(context.x)
        else:
            k, v = cache[self] if self in cache else cache.store(self, *self._keys_values(context.x))
        out = layout.attend(q, k, v, bias, self.dropout.p if self.training else 0.0)
        mixed: Tensor = self.dropout(self.output(out.flatten(-2)))
        return mixed

    def _keys_values(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self._heads(self.key(x), self.kv_heads), self._heads(self.value(x), self.kv_heads)

    def _heads(self, x: Tensor, heads: int) -> Tensor:
        return x.view(*x.shape[:-1], heads, self.head_size)
