"""`CausalDecoder`: a causal language model with a key-value cache. `generation` writes with it."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn

from polyfm.shared.backbones.cache import KeyValueCache
from polyfm.shared.backbones.masks import CAUSAL
from polyfm.shared.backbones.pooling import LastToken
from polyfm.shared.backbones.transformer import Transformer
from polyfm.shared.data.batch import TokenIds
from polyfm.shared.tokens.text import TextTokens
from polyfm.shared.tokens.tokens import Tokens


class CausalDecoder(nn.Module):
    """Embedding, transformer, scores over the vocabulary (GPT-2, Llama).

    Args:
        width: D, given to every part.
        embedder: Token ids to vectors.
        backbone: A transformer.
        tied: Whether the embedding table also scores (GPT-2), or a table of its own (Llama).
    """

    def __init__(
        self,
        width: int,
        embedder: Callable[[int], TextTokens],
        backbone: Callable[[int], Transformer],
        tied: bool = True,
    ) -> None:
        super().__init__()
        self.width = width
        self.embedder = embedder(width)
        self.backbone = backbone(width)
        self.head = nn.Linear(width, self.embedder.vocabulary, bias=False)
        if tied:
            self.head.weight = self.embedder.table.weight
        else:
            nn.init.normal_(self.head.weight, std=0.02)

    def forward(self, batch: TokenIds, cache: KeyValueCache | None = None) -> Tokens:
        """Contextual vectors; ``head`` turns them into scores of the next token.

        Args:
            batch: Sequences; with a cache their new tokens.
            cache: Keys and values of earlier steps.
        """
        if cache is None:
            tokens: Tokens = self.embedder(batch)
        else:
            tokens = self.embedder.continued(batch, cache.seen(batch.rows))
            cache.extend(tokens)
        tokens = self.backbone(tokens, CAUSAL, cache=cache)
        return tokens

    def step(self, batch: TokenIds, cache: KeyValueCache | None = None) -> Tensor:
        """(B, V) scores of the token after each sequence; see `generation.Step`.

        Args:
            batch: Sequences; with a cache their new tokens.
            cache: Keys and values of earlier steps.
        """
        scores: Tensor = self.head(LastToken()(self(batch, cache)))
        return scores
