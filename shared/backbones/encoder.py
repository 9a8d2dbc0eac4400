"""`Encoder`: one modality from its batch to features; `MultimodalModel`: the encoders and what joins them."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from polyfm.shared.backbones.backbone import Backbone
from polyfm.shared.backbones.cache import KeyValueCache
from polyfm.shared.backbones.masks import FULL, MaskSpec
from polyfm.shared.backbones.pooling import FirstToken, Pooling
from polyfm.shared.data.batch import ModalityBatch
from polyfm.shared.errors import RecipeError, require
from polyfm.shared.tokens.embedder import Embedder
from polyfm.shared.tokens.tokens import Features, Tokens


class Encoder(nn.Module):
    """Embedder → backbone → pooling → projection. The width is written once, here.

    Args:
        width: D, given to every part.
        embedder: From the modality's batch to tokens.
        backbone: From tokens to tokens.
        pooling: From tokens to one vector.
        projection: Size d of the unit vectors for contrastive losses; 0 for none.
    """

    def __init__(
        self,
        width: int,
        embedder: Callable[[int], Embedder],
        backbone: Callable[[int], Backbone],
        pooling: Callable[[], Pooling] = FirstToken,
        projection: int = 0,
    ) -> None:
        super().__init__()
        require(width >= 1, "Encoder.width", "at least 1", width)
        require(projection >= 0, "Encoder.projection", "at least 1, or 0 for none", projection)
        self.width = width
        self.embedder = embedder(width)
        self.backbone = backbone(width)
        self.pooling = pooling()
        self.projection = nn.Linear(width, projection) if projection else None

    def forward(
        self,
        batch: ModalityBatch,
        mask: MaskSpec = FULL,
        depth: int | None = None,
        cache: KeyValueCache | None = None,
    ) -> Features:
        """Encode the rows that exist; zero rows give zero features and exactly zero gradients.

        Args:
            batch: The modality's rows.
            mask: Who sees whom.
            depth: Only the first so many blocks; all if None.
            cache: Keys and values of earlier steps (generation): the batch then holds the new tokens only.
        """
        if cache is None:
            tokens = self.embedder(batch)
        else:
            tokens = self.embedder.continued(batch, cache.seen(batch.rows))
            cache.extend(tokens)
        tokens = self.backbone(tokens, mask, depth=depth, cache=cache)
        return self.features(tokens, batch.rows)

    def features(self, tokens: Tokens, rows: Tensor) -> Features:
        """Pool and project tokens.

        Args:
            tokens: Of B_m sequences.
            rows: (B_m,) items of the batch that they belong to.
        """
        pooled = self.pooling(tokens)
        projected = None if self.projection is None else F.normalize(self.projection(pooled).float(), dim=-1)
        return Features(tokens=tokens, pooled=pooled, projected=projected, rows=rows)


class Fusion(nn.Module):
    """What lets tokens of one modality be informed by another's. The base is none: asking it is an error."""

    width: int = 0
    """D, as of the encoders that it joins."""

    def forward(
        self, tokens: Tokens, context: Tokens, mask: MaskSpec = FULL, cache: KeyValueCache | None = None
    ) -> Tokens:
        """Fuse.

        Args:
            tokens: Queries, B sequences.
            context: What they are informed by, B sequences in the same order.
            mask: Who sees whom among the queries.
            cache: Keys and values of earlier steps (generation).
        """
        raise RecipeError("an objective asks for fused tokens, but the recipe has no model.fusion")


class MultimodalModel(nn.Module):
    """The encoders by modality, and what joins them.

    Args:
        encoders: By modality.
        fusion: From the tokens of one modality to tokens informed by another's.
    """

    def __init__(self, encoders: Mapping[str, Encoder], fusion: Fusion | None = None) -> None:
        super().__init__()
        self.encoders = nn.ModuleDict(encoders)
        self.fusion = Fusion() if fusion is None else fusion

    def fuse(
        self, tokens: Tokens, context: Tokens, mask: MaskSpec = FULL, cache: KeyValueCache | None = None
    ) -> Tokens:
        """See `Fusion.forward`."""
        fused: Tokens = self.fusion(tokens, context, mask, cache)
        return fused

    def forward(self, modality: str, batch: ModalityBatch, mask: MaskSpec = FULL, depth: int | None = None) -> Features:
        """Encode one modality; see `Encoder.forward`."""
        features: Features = self.encoders[modality](batch, mask, depth)
        return features


def num_parameters(module: nn.Module) -> int:
    """Parameters of a module, each counted once; works on the meta device."""
    return sum(parameter.numel() for parameter in module.parameters())


def num_trained(module: nn.Module) -> int:
    """Parameters of a module that are trained: those that are not frozen.

    Args:
        module: With its head, if it gets one from the data.
    """
    return sum(parameter.numel() for parameter in module.parameters() if parameter.requires_grad)


def on_meta(build: Callable[[], nn.Module]) -> nn.Module:
    """Build a module without memory, for size checks of the papers' configurations.

    Args:
        build: Makes the module.
    """
    with torch.device("meta"):
        return build()
