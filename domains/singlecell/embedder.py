"""Genes with values to tokens. Genes in the order of their ranks are text: `TextTokens`, as in BERT."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from polyfm.domains.singlecell.sample import Genes
from polyfm.shared.tokens.dropout import Dropout
from polyfm.shared.tokens.embedder import Embedder
from polyfm.shared.tokens.tokens import Tokens

HIGHEST = 512.0
"""Values above are cut: scGPT's limit."""


class GeneTokens(Embedder):
    """One token per gene: a vector of the gene plus one of its value (scGPT, Cui et al., Nature Methods 2024).

    The value, a bin or a normalised count, goes through Linear(1, D), ReLU, Linear(D, D) and a LayerNorm; the gene's
    vector through a LayerNorm of its own. Genes have no order, so positions are 0.

    Args:
        width: D.
        vocabulary: Ids of genes and special tokens.
        dropout: On the value's vector.
        packed: Tokens end to end (no padding) instead of padded rows.
    """

    def __init__(self, width: int, vocabulary: int, dropout: float = 0.1, packed: bool = False) -> None:
        super().__init__()
        self.extent, self.packed = vocabulary, packed
        self.table = nn.Embedding(vocabulary, width)
        nn.init.normal_(self.table.weight, std=0.02)
        self.gene_norm, self.value_norm = nn.LayerNorm(width), nn.LayerNorm(width)
        self.inner, self.outer = nn.Linear(1, width), nn.Linear(width, width)
        self.dropout = Dropout(dropout)

    def forward(self, batch: Genes) -> Tokens:
        """See `Embedder.forward`."""
        values = F.relu(self.inner(batch.values.clamp(max=HIGHEST)[:, None]))
        x = self.genes(batch.ids) + self.dropout(self.value_norm(self.outer(values)))
        places = torch.zeros(len(x), 1, dtype=torch.int64, device=x.device)
        tokens = Tokens(x=x, positions=places, cu_seqlens=batch.cu_seqlens, longest=batch.longest)
        return tokens if self.packed else tokens.pad()

    def genes(self, ids: Tensor) -> Tensor:
        """(..., D) vectors of genes without a value.

        Args:
            ids: (...) int64.
        """
        vectors: Tensor = self.gene_norm(self.table(ids))
        return vectors
