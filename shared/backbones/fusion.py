"""Letting modalities meet: as one sequence, by cross-attention (plain, gated, learned queries), or pooled (late).

A missing modality is normal in each: it adds no tokens, no vector and no gradient.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from polyfm.shared.backbones.attention import Attention
from polyfm.shared.backbones.block import Block
from polyfm.shared.backbones.cache import KeyValueCache
from polyfm.shared.backbones.encoder import Fusion
from polyfm.shared.backbones.feed_forward import Dense, FeedForward
from polyfm.shared.backbones.layouts import Layout
from polyfm.shared.backbones.masks import FULL, MaskSpec
from polyfm.shared.backbones.transformer import Transformer
from polyfm.shared.data import ragged
from polyfm.shared.errors import RecipeError
from polyfm.shared.tokens.tokens import Features, Tokens


def concat(parts: Sequence[Tokens], rows: Sequence[Tensor] | None = None, size: int | None = None) -> Tokens:
    """Tokens of several modalities as one sequence per item, part after part; ``modality`` says which part.

    Args:
        parts: One per modality, of one width and with positions of one dimension.
        rows: (B_m,) int64 each: which items the sequences of a part belong to; all items if None.
        size: B; needed with ``rows``.

    Returns:
        B packed sequences; an item without a modality has none of its tokens.
    """
    packed = [part.pack() for part in parts]
    size = len(parts[0]) if size is None else size
    rows = [torch.arange(size, device=part.x.device) for part in packed] if rows is None else rows
    item = torch.cat([row[ragged.owners(part.boundaries, len(part.x))] for row, part in zip(rows, packed, strict=True)])
    order = torch.argsort(item, stable=True)  # stable: an item's parts stay in their order
    modality = torch.cat([part.x.new_full((len(part.x),), i, dtype=torch.int64) for i, part in enumerate(packed)])
    return Tokens(
        x=torch.cat([part.x for part in packed]).index_select(0, order),
        positions=torch.cat([part.positions for part in packed])[order],
        cu_seqlens=ragged.boundaries(torch.bincount(item, minlength=size)),
        modality=modality[order],
    )


def part_of(tokens: Tokens, modality: int) -> Tokens:
    """The tokens of one part of a `concat`.

    Args:
        tokens: Packed, of all parts.
        modality: Which part.
    """
    if tokens.modality is None:
        raise ValueError("these tokens do not say which part they come from")
    keep = tokens.modality == modality
    owner = ragged.owners(tokens.boundaries, len(tokens.x))
    return tokens.replace(
        x=tokens.x[keep],
        positions=tokens.positions[keep],
        modality=tokens.modality[keep],
        cu_seqlens=ragged.boundaries(torch.bincount(owner[keep], minlength=len(tokens))),
    )


class ConcatFusion(Fusion):
    """One transformer over context and tokens as one sequence, each marked by a learned vector (UNITER, FuseLIP).

    The context stands first, so that under a causal mask the tokens see all of it.

    Args:
        width: D, as of the encoders.
        backbone: A transformer.
    """

    def __init__(self, width: int, backbone: Callable[[int], Transformer]) -> None:
        super().__init__()
        self.width = width
        self.types = nn.Embedding(2, width)
        nn.init.normal_(self.types.weight, std=0.02)
        self.backbone = backbone(width)

    def forward(
        self, tokens: Tokens, context: Tokens, mask: MaskSpec = FULL, cache: KeyValueCache | None = None
    ) -> Tokens:
        """See `Fusion.forward`; returns the tokens only, without the context."""
        if cache is not None:
            raise RecipeError(
                "tokens and context as one sequence cannot be generated step by step",
                remedy="Generate with cached=False, or use CrossFusion",
            )
        joint = concat([context, tokens])
        joint = self.backbone(joint.replace(x=joint.x + self.types(joint.modality)), mask)
        fused = part_of(joint, 1).replace(modality=None, prefix=tokens.prefix)
        return fused if tokens.packed else fused.pad()


class LearnedQueries(nn.Module):
    """M learned queries read the tokens of each sequence: a fixed number of vectors from any number of tokens.

    With blocks that attend to themselves and then to the tokens this is the Q-Former (BLIP-2, arXiv 2301.12597) without
    text, near the resamplers of Perceiver (arXiv 2103.03206) and Flamingo. Queries of a sequence without tokens only
    see one another.

    Args:
        width: D.
        queries: M.
        backbone: A transformer whose blocks have ``cross``.
    """

    def __init__(self, width: int, queries: int, backbone: Callable[[int], Transformer]) -> None:
        super().__init__()
        self.queries = nn.Parameter(torch.empty(queries, width))
        nn.init.normal_(self.queries, std=0.02)
        self.backbone = backbone(width)

    def forward(self, tokens: Tokens) -> Tokens:
        """Read.

        Args:
            tokens: B sequences, padded or packed.

        Returns:
            Padded, (B, M, D), none of it padding.
        """
        x = self.queries.expand(len(tokens), -1, -1)
        mask = torch.ones(x.shape[:2], dtype=torch.bool, device=x.device)
        places = torch.arange(x.shape[1], device=x.device).expand(mask.shape)
        read: Tokens = self.backbone(Tokens(x=x, positions=places[..., None], mask=mask), context=tokens.pad())
        return read


class CrossFusion(Fusion):
    """Blocks with cross-attention; the same ones serve every direction (SPMM, ALBEF's second half).

    Args:
        width: D, as of the encoders.
        backbone: A transformer whose blocks have ``cross`` (all, or every so many: `GatedCross`).
    """

    def __init__(self, width: int, backbone: Callable[[int], Transformer]) -> None:
        super().__init__()
        self.width = width
        self.backbone = backbone(width)

    def forward(
        self, tokens: Tokens, context: Tokens, mask: MaskSpec = FULL, cache: KeyValueCache | None = None
    ) -> Tokens:
        """See `Fusion.forward`."""
        packed = tokens.packed
        if packed != context.packed:
            tokens, context = tokens.pad(), context.pad()
        fused: Tokens = self.backbone(tokens, mask, context=context, cache=cache)
        return fused.pack() if packed else fused


class GatedCross(Block):
    """A block with a gated look at a context before it (Flamingo, arXiv 2204.14198, 3.1.2 and figure 4).

    y ← y + tanh(α) · cross(norm(y), context);  y ← y + tanh(β) · feed_forward(norm(y));  then the block itself. Both
    gates start at 0: a pre-trained block is at first exactly what it was. Put every so many layers:
    ``Transformer(depth=12, block=Llama, every={4: GatedCross})``.

    Args:
        width: D.
        block: The block that follows; keeps its own weights and names under ``block``.
        cross: Attention to the context.
        feed_forward: After it.
        norm: Before each of the two.
    """

    def __init__(
        self,
        width: int,
        block: Callable[[int], Block] = Block,
        cross: Callable[[int], Attention] = Attention,
        feed_forward: Callable[[int], FeedForward] = Dense,
        norm: Callable[[int], nn.Module] = nn.LayerNorm,
    ) -> None:
        nn.Module.__init__(self)  # the parts of `Block` are those of the block inside
        self.block = block(width)
        self.final_norm = self.block.final_norm
        self.gated_cross, self.gated_cross_norm = cross(width), norm(width)
        self.gated_feed_forward, self.gated_feed_forward_norm = feed_forward(width), norm(width)
        self.cross_gate = nn.Parameter(torch.zeros(()))
        self.feed_forward_gate = nn.Parameter(torch.zeros(()))

    def forward(
        self,
        x: Tensor,
        tokens: Tokens,
        layout: Layout,
        context: Tokens | None = None,
        context_layout: Layout | None = None,
        cache: KeyValueCache | None = None,
    ) -> Tensor:
        """See `Block.forward`."""
        if context is not None and context_layout is not None:
            seen = self.gated_cross(self.gated_cross_norm(x), tokens.positions, context_layout, context, cache)
            x = x + self.cross_gate.tanh() * seen
            thought = self.gated_feed_forward(self.gated_feed_forward_norm(x), tokens.modality)
            x = x + self.feed_forward_gate.tanh() * thought
        out: Tensor = self.block(x, tokens, layout, cache=cache)
        return out


class LateFusion(nn.Module):
    """Pooled vectors of several modalities as one per item; a missing one contributes nothing.

    Args:
        combine: ``concat`` (zeros where one is missing), ``mean`` over the modalities that an item has, or ``sum``.
    """

    def __init__(self, combine: Literal["concat", "mean", "sum"] = "concat") -> None:
        super().__init__()
        self.combine = combine

    def width(self, widths: Sequence[int]) -> int:
        """Of what comes out.

        Args:
            widths: Of the modalities' pooled vectors.
        """
        if self.combine == "concat":
            return sum(widths)
        if len(set(widths)) > 1:
            raise RecipeError(
                f"the {self.combine} of vectors of different widths ({', '.join(map(str, widths))})",
                where="model.fusion",
                remedy="Use combine: concat, or encoders of one width",
            )
        return widths[0]

    def forward(self, features: Mapping[str, Features], size: int) -> Tensor:
        """Combine.

        Args:
            features: By modality, taken in the order of their names; of one width unless ``combine`` is ``concat``.
            size: B.

        Returns:
            (B, D), or (B, M D) for ``concat``; zeros for an item without any modality.
        """
        parts = [features[name] for name in sorted(features)]
        vectors = [
            part.pooled.new_zeros(size, part.pooled.shape[-1]).index_copy(0, part.rows, part.pooled) for part in parts
        ]
        if self.combine == "concat":
            return torch.cat(vectors, dim=-1)
        total = torch.stack(vectors).sum(0)
        if self.combine == "sum":
            return total
        count = torch.bincount(torch.cat([part.rows for part in parts]), minlength=size)
        return total / count.clamp(min=1)[:, None]
