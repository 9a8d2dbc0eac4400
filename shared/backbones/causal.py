"""`CausalTransformer`: a stack in which a token sees what stands before it, whoever asks."""

from __future__ import annotations

from polyfm.shared.backbones.cache import KeyValueCache
from polyfm.shared.backbones.masks import CAUSAL, FULL, MaskSpec
from polyfm.shared.backbones.transformer import Transformer
from polyfm.shared.tokens.tokens import Tokens


class CausalTransformer(Transformer):
    """The text tower of CLIP (Radford et al., arXiv 2103.00020): an encoder that was trained with a causal mask.

    Args as of `Transformer`: width, depth, block, every.
    """

    def forward(
        self,
        tokens: Tokens,
        mask: MaskSpec = FULL,
        context: Tokens | None = None,
        depth: int | None = None,
        cache: KeyValueCache | None = None,
    ) -> Tokens:
        """See `Backbone.forward`; the full mask becomes the causal one, others stay as they were asked for."""
        return super().forward(tokens, CAUSAL if mask == FULL else mask, context, depth, cache)
