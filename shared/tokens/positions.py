"""Where a token stands. A position scheme may act at three places, each a no-op by default.

* ``embed``: added to the tokens once, by the embedder (BERT, ViT).
* ``rotate``: applied to queries and keys (RoFormer, Su et al., arXiv 2104.09864).
* ``bias``: added to attention scores (T5, Raffel et al., arXiv 1910.10683; 2-D as in LayoutLMv2, arXiv 2012.14740).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from polyfm.shared.errors import DataError, RecipeError


class Positions(nn.Module):
    """Base: three hooks that do nothing."""

    biased = False
    """Whether ``bias`` returns anything; a fast kernel without scores may be used where not."""

    def embed(self, x: Tensor, positions: Tensor) -> Tensor:
        """Add positions to token vectors.

        Args:
            x: (..., D) token vectors.
            positions: (..., K) positions.
        """
        return x

    def rotate(self, heads: Tensor, positions: Tensor) -> Tensor:
        """Turn queries or keys.

        Args:
            heads: (..., H, d) queries or keys.
            positions: (..., K) positions.
        """
        return heads

    def bias(self, q_positions: Tensor, k_positions: Tensor) -> Tensor:
        """Additive scores, broadcastable to (b, H, n, m).

        Args:
            q_positions: (b, n, K).
            k_positions: (b, m, K).
        """
        return q_positions.new_zeros(1, 1, 1, 1)


class NoPositions(Positions):
    """For embedders whose backbone knows positions by itself (rotary), or needs none.

    Args:
        width: D, which every scheme that embeds is given.
    """

    def __init__(self, width: int) -> None:
        super().__init__()


class ComposedPositions(Positions):
    """Several schemes at once, e.g. absolute + rotary (CoMP).

    Args:
        parts: By any name; each adds, rotates or scores in turn.
    """

    def __init__(self, parts: dict[str, Positions]) -> None:
        super().__init__()
        self.parts = nn.ModuleDict(parts)
        self.biased = any(part.biased for part in parts.values())

    def embed(self, x: Tensor, positions: Tensor) -> Tensor:
        """See `Positions.embed`."""
        for part in self.parts.values():
            x = part.embed(x, positions)  # type: ignore[operator]
        return x

    def rotate(self, heads: Tensor, positions: Tensor) -> Tensor:
        """See `Positions.rotate`."""
        for part in self.parts.values():
            heads = part.rotate(heads, positions)  # type: ignore[operator]
        return heads

    def bias(self, q_positions: Tensor, k_positions: Tensor) -> Tensor:
        """See `Positions.bias`."""
        biases = [part.bias(q_positions, k_positions) for part in self.parts.values() if part.biased]  # type: ignore[operator]
        return torch.stack(torch.broadcast_tensors(*biases)).sum(0)


class AbsolutePositions(Positions):
    """A learned vector per position, one table per dimension, summed (BERT; 2-D: ViT, LayoutLM).

    Args:
        width: D.
        maximum: Positions per dimension; a position at or beyond it is an error, not a silent clamp.
        dimensions: K.
    """

    def __init__(self, width: int, maximum: int = 512, dimensions: int = 1) -> None:
        super().__init__()
        self.maximum = maximum
        self.tables = nn.ModuleList(nn.Embedding(maximum, width) for _ in range(dimensions))
        for table in self.tables:
            nn.init.normal_(table.weight, std=0.02)  # type: ignore[arg-type]

    def embed(self, x: Tensor, positions: Tensor) -> Tensor:
        """See `Positions.embed`; positions are integers below ``maximum``."""
        index = positions.long()
        # Read on a CPU only: elsewhere the look would stall the device, and a kernel's own check stops the run.
        readable = index.device.type == "cpu" and index.numel() and not torch.compiler.is_compiling()
        if readable and int(index.max()) >= self.maximum:
            raise DataError(
                f"position {int(index.max())} is beyond the {self.maximum} positions of this model, counted from 0",
                remedy="Cut the sequences, or raise `maximum` of the positions",
            )
        for k, table in enumerate(self.tables):
            x = x + table(index[..., k])
        return x


class RotaryPositions(Positions):
    """Rotary positions in K dimensions: the head is cut into K equal parts, each turned by its own coordinate.

    Halves are paired (first with second half of a part), as in Llama.

    Args:
        dimensions: K.
        base: Wavelengths run from 2π to 2π·base.
    """

    def __init__(self, dimensions: int = 1, base: float = 10_000.0) -> None:
        super().__init__()
        self.dimensions, self.base = dimensions, base

    def rotate(self, heads: Tensor, positions: Tensor) -> Tensor:
        """See `Positions.rotate`; the head size must be divisible by 2 K."""
        size = heads.shape[-1] // self.dimensions
        if size % 2 or size * self.dimensions != heads.shape[-1]:
            raise RecipeError(
                f"a head of size {heads.shape[-1]} cannot be turned in {self.dimensions} dimensions",
                remedy=f"Choose width / heads divisible by {2 * self.dimensions}",
            )
        exponent = torch.arange(0, size, 2, device=heads.device, dtype=torch.float32) / size
        # In float32 whatever the heads are: in bfloat16 neighbouring positions beyond 256 would turn alike.
        angle = positions[..., None, : self.dimensions, None].float() * self.base**-exponent  # (..., 1, K, size/2)
        cos, sin = angle.cos(), angle.sin()
        first, second = heads.float().unflatten(-1, (self.dimensions, 2, size // 2)).unbind(-2)
        turned = torch.stack([first * cos - second * sin, second * cos + first * sin], dim=-2)
        return turned.flatten(-3).to(heads.dtype)


class RelativePositions(Positions):
    """A learned score per head and bucketed distance, one table per dimension, summed (T5; 2-D: LayoutLMv2).

    Args:
        heads: H.
        dimensions: K.
        buckets: Distances are told apart exactly up to a quarter of this, logarithmically beyond (half per direction).
        farthest: Distances at or above share the last bucket.
    """

    biased = True

    def __init__(self, heads: int, dimensions: int = 1, buckets: int = 32, farthest: int = 128) -> None:
        super().__init__()
        self.buckets, self.farthest = buckets, farthest
        self.tables = nn.ModuleList(nn.Embedding(buckets, heads) for _ in range(dimensions))
        for table in self.tables:
            nn.init.normal_(table.weight, std=0.02)  # type: ignore[arg-type]

    def bucket(self, distance: Tensor) -> Tensor:
        """T5's bidirectional buckets of key position minus query position."""
        half, exact = self.buckets // 2, self.buckets // 4
        magnitude = distance.abs()
        scale = (half - exact) / math.log(self.farthest / exact)
        far = exact + (torch.log(magnitude.clamp(min=1).float() / exact) * scale).long()
        return torch.where(magnitude < exact, magnitude, far.clamp(max=half - 1)) + half * (distance > 0)

    def bias(self, q_positions: Tensor, k_positions: Tensor) -> Tensor:
        """See `Positions.bias`."""
        distance = (k_positions[:, None] - q_positions[:, :, None]).long()  # (b, n, m, K)
        scores = [table(self.bucket(distance[..., k])) for k, table in enumerate(self.tables)]
        return torch.stack(scores).sum(0).permute(0, 3, 1, 2)
