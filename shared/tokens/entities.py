"""Entities of a knowledge graph to tokens."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from polyfm.shared.data.batch import TokenIds
from polyfm.shared.tokens.embedder import Embedder
from polyfm.shared.tokens.tokens import Tokens


class EntityTokens(Embedder):
    """One packed token per entity: its unit vector, which `TransE` trains, made as wide as the model (MolFM).

    Args:
        width: D.
        entities: V, as of the data module; its graph keeps at most so many.
        size: d of the vectors.
    """

    def __init__(self, width: int, entities: int, size: int = 256) -> None:
        super().__init__()
        self.extent = entities
        self.entities = nn.Embedding(entities, size)
        nn.init.normal_(self.entities.weight, std=size**-0.5)  # about unit length
        self.linear = nn.Linear(size, width)

    def vectors(self, ids: Tensor) -> Tensor:
        """(..., d) unit vectors of (...) entities: TransE's ‖e‖ = 1 holds by construction, not by a step of its own."""
        return F.normalize(self.entities(ids), dim=-1)

    def forward(self, batch: TokenIds) -> Tokens:
        """See `Embedder.forward`. Entities have no order, so their positions are 0."""
        return Tokens(
            x=self.linear(self.vectors(batch.ids)),
            positions=torch.zeros(len(batch.ids), 1, dtype=torch.int64, device=batch.ids.device),
            cu_seqlens=batch.cu_seqlens,
            longest=batch.longest,
        )
