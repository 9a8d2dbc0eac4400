"""`Transformer`: the loop over blocks."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from torch import nn
from torch.utils.checkpoint import checkpoint

from polyfm.shared.backbones.backbone import Backbone
from polyfm.shared.backbones.block import Block
from polyfm.shared.backbones.cache import KeyValueCache
from polyfm.shared.backbones.layouts import plan
from polyfm.shared.backbones.masks import FULL, MaskSpec
from polyfm.shared.errors import require
from polyfm.shared.tokens.tokens import Tokens


class Transformer(Backbone):
    """A stack of blocks over padded or packed tokens; both give the same numbers (1e-5).

    Args:
        width: D.
        depth: Blocks.
        block: What each is.
        every: Other blocks in some places: ``{2: CrossBlock}`` puts one at every second layer (2, 4, …).
    """

    def __init__(
        self,
        width: int,
        depth: int,
        block: Callable[[int], Block] = Block,
        every: Mapping[int, Callable[[int], Block]] = {},
    ) -> None:
        super().__init__()
        require(depth >= 0, "Transformer.depth", "at least 0 blocks", depth)
        factories = [block] * depth
        for step in sorted(every):
            factories[step - 1 :: step] = [every[step]] * len(factories[step - 1 :: step])
        self.blocks = nn.ModuleList(factory(width) for factory in factories)
        self.norm = self.blocks[-1].final_norm() if depth else nn.Identity()  # type: ignore[operator]

    def forward(
        self,
        tokens: Tokens,
        mask: MaskSpec = FULL,
        context: Tokens | None = None,
        depth: int | None = None,
        cache: KeyValueCache | None = None,
    ) -> Tokens:
        """See `Backbone.forward`. With a cache, `KeyValueCache.extend` must have been told the tokens (`Encoder` does).

        Args:
            tokens: Padded or packed.
            mask: Who sees whom among the tokens.
            context: Tokens for cross-attention, in the same form as ``tokens``.
            depth: Only the first so many blocks, without the final norm; all if None.
            cache: Keys and values of earlier steps: ``tokens`` then are the new ones only.
        """
        if cache is not None and context is not None:
            context = cache.context(self, context)
        planned = plan(mask, tokens, context, exact=any(block.exact for block in self.blocks), cache=cache)
        rest = (planned.tokens, planned.layout, planned.context, planned.context_layout)
        x = planned.tokens.x
        for block in self.blocks[:depth]:
            if self.recompute and self.training:
                x = checkpoint(block, x, *rest, use_reentrant=False)
            else:
                x = block(x, *rest, cache)
        x = planned.restore(x)
        return tokens.replace(x=x if depth is not None and depth < len(self.blocks) else self.norm(x))
