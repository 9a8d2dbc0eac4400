"""`QueryResampler`: a transformer whose tokens are read by learned queries, so that any number becomes M."""

from __future__ import annotations

from collections.abc import Callable
from itertools import chain
from typing import Any

from torch import nn

from polyfm.shared.backbones.backbone import Backbone
from polyfm.shared.backbones.cache import KeyValueCache
from polyfm.shared.backbones.fusion import LearnedQueries
from polyfm.shared.backbones.masks import FULL, MaskSpec
from polyfm.shared.backbones.transformer import Transformer
from polyfm.shared.errors import RecipeError, require
from polyfm.shared.tokens.tokens import Tokens


class QueryResampler(Backbone):
    """A trunk, a LayerNorm, and M learned queries that attend to what it gives (BLIP-2, arXiv 2301.12597; scMMGPT).

    What comes out are the queries: they stand for no item of the input, so objectives about single items cannot use it.

    Args:
        width: D.
        trunk: What reads the input.
        reader: A transformer whose blocks have ``cross``.
        queries: M.
    """

    def __init__(
        self,
        width: int,
        trunk: Callable[[int], Transformer],
        reader: Callable[[int], Transformer],
        queries: int = 32,
    ) -> None:
        super().__init__()
        require(queries >= 1, "QueryResampler.queries", "at least 1", queries)
        self.trunk, self.bridge = trunk(width), nn.LayerNorm(width)
        self.reader = LearnedQueries(width, queries, reader)

    @property
    def blocks(self) -> list[Any]:  # type: ignore[override]
        """The trunk's layers, then the reader's."""
        return list(chain(self.trunk.blocks, self.reader.backbone.blocks))

    @property
    def norm(self) -> nn.Module:  # type: ignore[override]
        """Of the reader."""
        norm: nn.Module = self.reader.backbone.norm
        return norm

    def forward(
        self,
        tokens: Tokens,
        mask: MaskSpec = FULL,
        context: Tokens | None = None,
        depth: int | None = None,
        cache: KeyValueCache | None = None,
    ) -> Tokens:
        """See `Backbone.forward`; padded, (B, M, D)."""
        if depth is not None or cache is not None or context is not None:
            raise RecipeError("queries are read after the last layer, all at once: no depth, no cache, no context")
        seen = self.trunk(tokens, mask)
        read: Tokens = self.reader(seen.replace(x=self.bridge(seen.x)))
        return read.replace(prefix=read.x.shape[1])
