"""`Backbone`: from tokens to tokens. What every stack of layers looks like from outside."""

from __future__ import annotations

from torch import nn

from polyfm.shared.backbones.cache import KeyValueCache
from polyfm.shared.backbones.masks import FULL, MaskSpec
from polyfm.shared.tokens.tokens import Tokens


class Backbone(nn.Module):
    """Base. Subclasses take the width first, so that an encoder can give it to them."""

    blocks: nn.ModuleList
    """The layers, from the input on; fine-tuning freezes and rates them by depth."""
    norm: nn.Module
    """What follows the last."""
    recompute: bool = False
    """Whether activations are recomputed in the backward pass instead of kept."""

    def forward(
        self,
        tokens: Tokens,
        mask: MaskSpec = FULL,
        context: Tokens | None = None,
        depth: int | None = None,
        cache: KeyValueCache | None = None,
    ) -> Tokens:
        """Run the layers.

        Args:
            tokens: Padded or packed.
            mask: Who sees whom among the tokens.
            context: Tokens attended to, in the same form as ``tokens``.
            depth: Only the first so many layers, without the final norm; all if None.
            cache: Keys and values of earlier steps: ``tokens`` then are the new ones only.
        """
        raise TypeError(f"{type(self).__name__} has no forward")
