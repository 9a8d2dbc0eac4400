"""Discrete tokens to vectors: text, SMILES, genes."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn

from polyfm.shared.data import ragged
from polyfm.shared.data.batch import TokenIds
from polyfm.shared.tokens.dropout import Dropout
from polyfm.shared.tokens.embedder import Embedder
from polyfm.shared.tokens.positions import AbsolutePositions, Positions
from polyfm.shared.tokens.tokens import Tokens


class TextTokens(Embedder):
    """One vector per token id, plus positions; LayerNorm and dropout as in BERT (arXiv 1810.04805).

    Args:
        width: D.
        vocabulary: V.
        positions: Given the width; adds positions to the vectors. `NoPositions` adds none (the backbone rotates).
        norm: LayerNorm after the sum.
        dropout: After the norm.
        eps: Of the LayerNorm.
        packed: Tokens end to end (no padding) instead of padded rows.
    """

    def __init__(
        self,
        width: int,
        vocabulary: int,
        positions: Callable[[int], Positions] = AbsolutePositions,
        norm: bool = True,
        dropout: float = 0.1,
        eps: float = 1e-12,
        packed: bool = False,
    ) -> None:
        super().__init__()
        self.vocabulary = self.extent = vocabulary
        self.packed = packed
        self.table = nn.Embedding(vocabulary, width)
        nn.init.normal_(self.table.weight, std=0.02)
        self.positions = positions(width)
        self.norm = nn.LayerNorm(width, eps=eps) if norm else nn.Identity()
        self.dropout = Dropout(dropout)

    def forward(self, batch: TokenIds) -> Tokens:
        """See `Embedder.forward`."""
        tokens = self._embed(batch, ragged.places(batch.cu_seqlens, len(batch.ids)))
        return tokens if self.packed else tokens.pad()

    def continued(self, batch: TokenIds, seen: Tensor) -> Tokens:
        """See `Embedder.continued`."""
        total = len(batch.ids)
        places = ragged.places(batch.cu_seqlens, total) + seen[ragged.owners(batch.cu_seqlens, total)]
        return self._embed(batch, places).pad()

    def _embed(self, batch: TokenIds, places: Tensor) -> Tokens:
        positions = places[:, None]
        x = self.dropout(self.norm(self.positions.embed(self.table(batch.ids), positions)))
        return Tokens(x=x, positions=positions, cu_seqlens=batch.cu_seqlens, longest=batch.longest)
