"""Heads that objectives put on token vectors, and which outputs predict which inputs."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from polyfm.shared.backbones.encoder import Encoder, MultimodalModel
from polyfm.shared.data import ragged
from polyfm.shared.errors import RecipeError
from polyfm.shared.tokens.tokens import Tokens


class TokenHead(nn.Module):
    """BERT's: dense, GELU, LayerNorm, then the embedder's own table as decoder, plus a bias (arXiv 1810.04805).

    The table stays the embedder's: `forward` is given it, so that it is trained, saved and counted once.

    Args:
        width: D.
        vocabulary: V.
        eps: Of the LayerNorm.
    """

    def __init__(self, width: int, vocabulary: int, eps: float = 1e-12) -> None:
        super().__init__()
        self.dense = nn.Linear(width, width)
        self.norm = nn.LayerNorm(width, eps=eps)
        self.bias = nn.Parameter(torch.zeros(vocabulary))

    def forward(self, x: Tensor, table: Tensor) -> Tensor:
        """Logits.

        Args:
            x: (n, D) vectors of the tokens to be told, and of no others: logits are the largest tensor of a step.
            table: (V, D).

        Returns:
            (n, V).
        """
        return F.linear(self.norm(F.gelu(self.dense(x))), table, self.bias)


class ValueHead(nn.Sequential):
    """SPMM's: Linear, GELU, LayerNorm, Linear to one number per token.

    Args:
        width: D.
        eps: Of the LayerNorm.
    """

    def __init__(self, width: int, eps: float = 1e-12) -> None:
        super().__init__(nn.Linear(width, width), nn.GELU(), nn.LayerNorm(width, eps=eps), nn.Linear(width, 1))


def vocabulary(encoder: Encoder, modality: str, objective: str) -> int:
    """V of an encoder whose embedder has a table of token vectors.

    Args:
        encoder: The modality's.
        modality: Its name, for the message.
        objective: Who asks, for the message.
    """
    if not isinstance(getattr(encoder.embedder, "table", None), nn.Embedding):
        raise RecipeError(
            f"the embedder of {modality!r}, {type(encoder.embedder).__name__}, has no table of token vectors",
            where=objective,
            remedy="Name a modality of discrete tokens",
        )
    return int(encoder.embedder.table.num_embeddings)  # type: ignore[union-attr, arg-type]


def table(model: MultimodalModel, modality: str) -> Tensor:
    """(V, D) token vectors of a modality's embedder.

    Args:
        model: Holds the encoders.
        modality: Of discrete tokens.
    """
    weight: Tensor = model.encoders[modality].embedder.table.weight  # type: ignore[union-attr, assignment]
    return weight


def before_items(tokens: Tokens) -> tuple[Tensor, Tensor]:
    """The tokens that another item follows, for predicting what comes next.

    Without a prefix nothing stands before a sequence's first item, so it is not predicted; after a [CLS] it is.

    Args:
        tokens: Padded or packed.

    Returns:
        (n, D) their vectors, and (n,) which of ``tokens.items()`` follows each.
    """
    packed = tokens.pack()
    cu, total = packed.boundaries, len(packed.x)
    owner, place = ragged.owners(cu, total), ragged.places(cu, total)
    follows = place + 1 - tokens.prefix  # number, within its sequence, of the item that comes next
    keep = (follows >= 0) & (place + 1 < cu.diff()[owner])
    first = ragged.boundaries(cu.diff() - tokens.prefix).long()[owner]
    return packed.x[keep], (first + follows)[keep]
