"""One layer: attention, optional cross-attention, feed-forward, each with a residual and a norm."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Literal

from torch import Tensor, nn

from polyfm.shared.backbones.attention import Attention
from polyfm.shared.backbones.cache import KeyValueCache
from polyfm.shared.backbones.feed_forward import Dense, FeedForward, SwiGLU
from polyfm.shared.backbones.layouts import Layout
from polyfm.shared.tokens.positions import Positions, RotaryPositions
from polyfm.shared.tokens.tokens import Tokens


class Block(nn.Module):
    """A Transformer layer from parts. Every part is a factory that is given the width.

    Args:
        width: D.
        attention: Self-attention.
        feed_forward: Feed-forward.
        cross: Attention to a context, between the two; none if None.
        norm: LayerNorm or RMSNorm.
        placement: ``pre`` (GPT, ViT): x + f(norm(x)); ``post`` (BERT): norm(x + f(x)); ``sandwich``: both,
            x + norm(f(norm(x))).
    """

    def __init__(
        self,
        width: int,
        attention: Callable[[int], Attention] = Attention,
        feed_forward: Callable[[int], FeedForward] = Dense,
        cross: Callable[[int], Attention] | None = None,
        norm: Callable[[int], nn.Module] = nn.LayerNorm,
        placement: Literal["pre", "post", "sandwich"] = "pre",
    ) -> None:
        super().__init__()
        self.placement = placement
        self.attention = attention(width)
        self.cross = None if cross is None else cross(width)
        self.feed_forward = feed_forward(width)
        self.attention_norm = norm(width)
        self.cross_norm = None if cross is None else norm(width)
        self.feed_forward_norm = norm(width)
        self.final_norm = nn.Identity if placement == "post" else partial(norm, width)
        """Makes the norm that a stack of such blocks ends with."""
        sandwich = placement == "sandwich"
        self.attention_post = norm(width) if sandwich else nn.Identity()
        self.cross_post = norm(width) if sandwich and cross is not None else nn.Identity()
        self.feed_forward_post = norm(width) if sandwich else nn.Identity()

    @property
    def exact(self) -> bool:
        """Whether some attention needs scores or dropout that the GPU kernels for packed tokens lack."""
        return any(part.exact for part in self.modules() if isinstance(part, Attention))

    def forward(
        self,
        x: Tensor,
        tokens: Tokens,
        layout: Layout,
        context: Tokens | None = None,
        context_layout: Layout | None = None,
        cache: KeyValueCache | None = None,
    ) -> Tensor:
        """One layer.

        Args:
            x: (..., D) token vectors.
            tokens: Where their positions and modalities stand.
            layout: The compiled mask.
            context: Tokens for cross-attention; the cross part is left out where None.
            context_layout: The compiled mask towards the context.
            cache: Keys and values of earlier steps (generation).
        """
        positions = tokens.positions
        x = self._residual(
            x,
            lambda h: self.attention(h, positions, layout, cache=cache),
            self.attention_norm,
            self.attention_post,
        )
        if self.cross is not None and self.cross_norm is not None and context is not None:
            cross = self.cross
            x = self._residual(
                x,
                lambda h: cross(h, positions, context_layout, context, cache),
                self.cross_norm,
                self.cross_post,
            )
        return self._residual(
            x,
            lambda h: self.feed_forward(h, tokens.modality),
            self.feed_forward_norm,
            self.feed_forward_post,
        )

    def _residual(self, x: Tensor, part: Callable[[Tensor], Tensor], norm: nn.Module, post: nn.Module) -> Tensor:
        out: Tensor = norm(x + part(x)) if self.placement == "post" else x + post(part(norm(x)))
        return out


class PostNorm(Block):
    """BERT's layer (Devlin et al., arXiv 1810.04805): norm after the residual, GELU, dropout.

    Args:
        width: D.
        heads: H.
        hidden: Inner width of the feed-forward; 0 for 4 D.
        dropout: On attention weights and on the outputs of both parts.
        eps: Of the LayerNorm.
        cross: Whether the layer also attends to a context.
        positions: Rotation or scores from positions, in self-attention.
    """

    def __init__(
        self,
        width: int,
        heads: int = 12,
        hidden: int = 0,
        dropout: float = 0.1,
        eps: float = 1e-12,
        cross: bool = False,
        positions: Callable[[], Positions] = Positions,
    ) -> None:
        attention = partial(Attention, heads=heads, dropout=dropout)
        super().__init__(
            width,
            attention=partial(attention, positions=positions),
            feed_forward=partial(Dense, hidden=hidden, dropout=dropout),
            cross=attention if cross else None,
            norm=partial(nn.LayerNorm, eps=eps),
            placement="post",
        )


class PreNorm(Block):
    """The layer of ViT (arXiv 2010.11929) and GPT-2: norm before each part, GELU, dropout.

    Args:
        width: D.
        heads: H.
        hidden: Inner width of the feed-forward; 0 for 4 D.
        dropout: On attention weights and on the outputs of both parts.
        eps: Of the LayerNorm.
        cross: Whether the layer also attends to a context.
        positions: Rotation or scores from positions, in self-attention.
        activation: ``gelu``, ``gelu_tanh`` as in GPT-2, or ``quick_gelu`` as in CLIP.
    """

    def __init__(
        self,
        width: int,
        heads: int = 12,
        hidden: int = 0,
        dropout: float = 0.0,
        eps: float = 1e-6,
        cross: bool = False,
        positions: Callable[[], Positions] = Positions,
        activation: str = "gelu",
    ) -> None:
        attention = partial(Attention, heads=heads, dropout=dropout)
        super().__init__(
            width,
            attention=partial(attention, positions=positions),
            feed_forward=partial(Dense, hidden=hidden, activation=activation, dropout=dropout),
            cross=attention if cross else None,
            norm=partial(nn.LayerNorm, eps=eps),
            placement="pre",
        )


class Llama(Block):
    """Llama's layer (Touvron et al., arXiv 2302.13971): RMSNorm before, SwiGLU, rotary positions, no biases.

    Args:
        width: D.
        heads: H.
        kv_heads: Heads of keys and values; 0 for H.
        hidden: Inner width of the feed-forward; 0 for 8 D / 3.
        eps: Of the RMSNorm.
        base: Of the rotary positions.
        cross: Whether the layer also attends to a context.
    """

    def __init__(
        self,
        width: int,
        heads: int = 8,
        kv_heads: int = 0,
        hidden: int = 0,
        eps: float = 1e-6,
        base: float = 10_000.0,
        cross: bool = False,
    ) -> None:
        attention = partial(Attention, heads=heads, kv_heads=kv_heads, bias=False)
        super().__init__(
            width,
            attention=partial(attention, positions=partial(RotaryPositions, base=base)),
            feed_forward=partial(SwiGLU, hidden=hidden),
            cross=attention if cross else None,
            norm=partial(nn.RMSNorm, eps=eps),
            placement="pre",
        )
