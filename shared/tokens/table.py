"""Rows of numbers to tokens, one per column or one for the whole row: descriptors, fingerprints, clinical tables."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

from polyfm.shared.data.batch import Values
from polyfm.shared.errors import require
from polyfm.shared.tokens.dropout import Dropout
from polyfm.shared.tokens.embedder import Embedder
from polyfm.shared.tokens.tokens import Tokens


class ValueTokens(Embedder):
    """One token per column: Linear(1, D) of the value, or a learned vector where it is unknown; [CLS] first (SPMM).

    The column is told by its position, as in SPMM: every column shares the linear layer.

    Args:
        width: D.
        columns: P.
        dropout: After the LayerNorm.
        eps: Of the LayerNorm.
    """

    is_table = True

    def __init__(self, width: int, columns: int, dropout: float = 0.1, eps: float = 1e-12) -> None:
        super().__init__()
        self.extent = columns
        self.value = nn.Linear(1, width)
        self.unknown = nn.Parameter(torch.zeros(width))
        self.cls = nn.Parameter(torch.zeros(width))
        self.column = nn.Embedding(columns + 1, width)
        # As large as one another: under the default of Linear(1, D), 30 times the columns' vectors, the norm leaves
        # nothing of which column a value is from, and SPMM's contrast stays at chance for hundreds of steps.
        for parameter in (self.value.weight, self.unknown, self.cls, self.column.weight):
            nn.init.normal_(parameter, std=0.02)
        nn.init.zeros_(self.value.bias)
        self.norm = nn.LayerNorm(width, eps=eps)
        self.dropout = Dropout(dropout)

    def forward(self, batch: Values) -> Tokens:
        """See `Embedder.forward`."""
        values = self.value(batch.values[..., None])
        values = torch.where(batch.known[..., None], values, self.unknown)
        x = torch.cat([self.cls.expand(len(values), 1, -1), values], dim=1) + self.column.weight
        positions = torch.arange(x.shape[1], device=x.device).expand(x.shape[:2])[..., None]
        mask = torch.ones(x.shape[:2], dtype=torch.bool, device=x.device)
        return Tokens(x=self.dropout(self.norm(x)), positions=positions, mask=mask, prefix=1)


class VectorToken(Embedder):
    """One token for a whole row of numbers, by a perceptron of one hidden layer; what is unknown counts as 0.

    For rows of many columns that no token each is worth: fingerprints, descriptors, a table beside an image.

    Args:
        width: D.
        columns: P.
        hidden: Inner width; 0 for D.
        dropout: On the row, and on what is inside.
    """

    is_table = True

    def __init__(self, width: int, columns: int, hidden: int = 0, dropout: float = 0.1) -> None:
        super().__init__()
        self.extent = columns
        require(columns >= 1, "VectorToken.columns", "at least 1", columns)
        require(hidden >= 0, "VectorToken.hidden", "at least 1, or 0 for the width", hidden)
        inner = hidden or width
        # The norm makes rows of any length equally large: TF-IDF's unit vectors would start as good as nothing.
        self.norm = nn.LayerNorm(inner)
        self.inner, self.outer = nn.Linear(columns, inner), nn.Linear(inner, width)
        self.dropout = Dropout(dropout)

    def forward(self, batch: Values) -> Tokens:
        """See `Embedder.forward`."""
        row = self.dropout(torch.where(batch.known, batch.values, 0.0))
        x = self.outer(self.dropout(F.gelu(self.norm(self.inner(row)))))[:, None]
        mask = torch.ones(x.shape[:2], dtype=torch.bool, device=x.device)
        return Tokens(x=x, positions=mask.long()[..., None] - 1, mask=mask)
