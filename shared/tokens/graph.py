"""Nodes of graphs to tokens: atoms, fields of a form, users and items."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from polyfm.shared.data.batch import Graphs
from polyfm.shared.errors import RecipeError
from polyfm.shared.tokens.dropout import Dropout
from polyfm.shared.tokens.embedder import Embedder
from polyfm.shared.tokens.tokens import Edges, Tokens


class CategoricalSum(nn.Module):
    """One learned vector per value of each field, summed (Hu et al., arXiv 1905.12265, appendix C).

    Args:
        width: D.
        cardinalities: How many values each field has.
    """

    def __init__(self, width: int, cardinalities: Sequence[int]) -> None:
        super().__init__()
        self.width = width
        self.tables = nn.ModuleList(nn.Embedding(size, width) for size in cardinalities)
        for table in self.tables:
            nn.init.xavier_uniform_(table.weight)  # type: ignore[arg-type]

    def forward(self, fields: Tensor) -> Tensor:
        """(n, D) vectors of (n, F) values."""
        if len(self.tables) and fields.shape[1] != len(self.tables):
            raise RecipeError(
                f"the graphs have {fields.shape[1]} features of a kind, the model expects {len(self.tables)}",
                remedy="Name the same feature set for the data, the embedder and the backbone",
            )
        vectors = [table(fields[:, column]) for column, table in enumerate(self.tables)]
        return torch.stack(vectors).sum(0) if vectors else torch.zeros(len(fields), self.width, device=fields.device)


class GraphTokens(Embedder):
    """One packed token per node, from its categorical features; edges go along for a backbone that passes messages.

    Args:
        width: D.
        cardinalities: How many values each feature of a node has.
        dropout: On the vectors.
    """

    def __init__(self, width: int, cardinalities: Sequence[int], dropout: float = 0.0) -> None:
        super().__init__()
        self.nodes = CategoricalSum(width, cardinalities)
        self.dropout = Dropout(dropout)

    def forward(self, batch: Graphs) -> Tokens:
        """See `Embedder.forward`. Nodes have no order, so their positions are 0."""
        x = self.dropout(self.nodes(batch.node_features))
        return Tokens(
            x=x,
            positions=torch.zeros(len(x), 1, dtype=torch.int64, device=x.device),
            cu_seqlens=batch.cu_nodes,
            edges=Edges(index=batch.edge_index, features=batch.edge_features),
        )
