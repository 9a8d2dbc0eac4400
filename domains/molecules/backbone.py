"""Message passing over bonds; attention that carries what it knows of each two atoms."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from polyfm.domains.molecules.atom_graph import field_set
from polyfm.shared.backbones.backbone import Backbone
from polyfm.shared.backbones.cache import KeyValueCache
from polyfm.shared.backbones.feed_forward import Dense
from polyfm.shared.backbones.graph import GIN
from polyfm.shared.backbones.masks import FULL, MaskSpec
from polyfm.shared.errors import RecipeError, require
from polyfm.shared.tokens.dropout import Dropout
from polyfm.shared.tokens.tokens import Tokens


class AtomGIN(GIN):
    """GIN whose messages carry the bond's categories (Hu et al., arXiv 1905.12265; MolFM and MoMu use 5 layers of 300).

    Args:
        width: D.
        depth: Layers.
        fields: Feature set, as the data module's and the embedder's.
        dropout: After each layer.
        size: Width inside, as of the embedder's vectors, from which a linear layer goes to D at the end; 0 for D.
    """

    def __init__(self, width: int, depth: int = 5, fields: str = "full", dropout: float = 0.0, size: int = 0) -> None:
        super().__init__(
            size or width, depth, [field.size for field in field_set(fields, "AtomGIN.fields").bonds], dropout=dropout
        )
        if size:
            self.norm = nn.Linear(size, width)


class PairTransformer(Backbone):
    """A transformer whose attention scores are carried from layer to layer (Uni-Mol, Zhou et al., ICLR 2023, 2.1).

    q⁰ is what the embedder tells of each pair; in each layer and head q_ij ← q_ij + Q_i K_jᵀ / √d, and softmax(q) V is
    what the layer says. Tokens hear of distances through q, and q hears of tokens. It pads: packed tokens are padded
    on the way in and packed again on the way out.

    Args:
        width: D.
        depth: Layers.
        heads: H, as the embedder's.
        hidden: Inner width of the feed-forward; 0 for 4 D.
        dropout: On attention weights and on the outputs of both parts.
    """

    def __init__(self, width: int, depth: int = 15, heads: int = 64, hidden: int = 0, dropout: float = 0.1) -> None:
        super().__init__()
        self.heads = heads
        self.blocks = nn.ModuleList(PairBlock(width, heads, hidden, dropout) for _ in range(depth))
        self.norm = nn.LayerNorm(width)

    def forward(
        self,
        tokens: Tokens,
        mask: MaskSpec = FULL,
        context: Tokens | None = None,
        depth: int | None = None,
        cache: KeyValueCache | None = None,
    ) -> Tokens:
        """See `Backbone.forward`; every token sees every other."""
        if not mask.trivial or context is not None or cache is not None:
            raise RecipeError("attention that carries pairs takes no mask, no context and no cache")
        padded = tokens.pad()
        pairs = padded.pairs
        if pairs is None or pairs.first.shape[-1] != self.heads:
            told = "nothing" if pairs is None else f"{pairs.first.shape[-1]} numbers"
            raise RecipeError(
                f"the embedder tells {told} of each pair, a PairTransformer of {self.heads} heads needs {self.heads}",
                remedy="Use ConformerTokens, with the same number of heads",
            )
        hidden = ~padded.real[:, None, None]
        x, scores = padded.x, pairs.first.permute(0, 3, 1, 2)
        for block in self.blocks[:depth]:
            if self.recompute and self.training:
                x, scores = checkpoint(block, x, scores, hidden, use_reentrant=False)
            else:
                x, scores = block(x, scores, hidden)
        normed = x if depth is not None and depth < len(self.blocks) else self.norm(x)
        done = padded.replace(x=normed, pairs=pairs.replace(last=scores.permute(0, 2, 3, 1), tokens=x))
        return done.pack() if tokens.packed else done


class PairBlock(nn.Module):
    """One layer of `PairTransformer`: norm before each part, GELU.

    Args:
        width: D.
        heads: H.
        hidden: Inner width of the feed-forward; 0 for 4 D.
        dropout: On attention weights and on the outputs of both parts.
    """

    def __init__(self, width: int, heads: int, hidden: int = 0, dropout: float = 0.0) -> None:
        super().__init__()
        require(heads >= 1 and width % heads == 0, "PairTransformer.heads", f"a divisor of the width {width}", heads)
        self.heads = heads
        self.attention_norm = nn.LayerNorm(width)
        self.query_key_value = nn.Linear(width, 3 * width)
        self.output = nn.Linear(width, width)
        self.feed_forward_norm = nn.LayerNorm(width)
        self.feed_forward = Dense(width, hidden=hidden, dropout=dropout)
        self.dropout = Dropout(dropout)

    def forward(self, x: Tensor, scores: Tensor, hidden: Tensor) -> tuple[Tensor, Tensor]:
        """One layer.

        Args:
            x: (B, N, D).
            scores: (B, H, N, N), of query and key.
            hidden: (B, 1, 1, N) bool, True where the key is padding.

        Returns:
            x and scores after it. Scores towards padding are kept: only the softmax leaves them out.
        """
        projected = self.query_key_value(self.attention_norm(x))
        q, k, v = projected.unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        scores = scores + q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])
        weights = self.dropout(scores.float().masked_fill(hidden, -torch.inf).softmax(-1).to(v.dtype))
        x = x + self.dropout(self.output((weights @ v).transpose(1, 2).flatten(-2)))
        x = x + self.feed_forward(self.feed_forward_norm(x))
        return x, scores
