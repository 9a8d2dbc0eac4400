"""Regular grids to tokens: patches of series, images and volumes."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from polyfm.shared.data.batch import Grids
from polyfm.shared.errors import DataError
from polyfm.shared.tokens.dropout import Dropout
from polyfm.shared.tokens.embedder import Embedder
from polyfm.shared.tokens.positions import NoPositions, Positions
from polyfm.shared.tokens.tokens import Tokens


def patchify(values: Tensor, patch: Sequence[int]) -> Tensor:
    """Cut grids into patches that do not overlap.

    Args:
        values: (B, C, ...) with K axes behind the channels.
        patch: Cells of a patch along each of the K axes.

    Returns:
        (B, ..., C · prod(patch)): patches along each axis, then the cells of one, channel first (as a convolution's
        weight lies).
    """
    shape, axes = values.shape[2:], len(patch)
    if len(shape) != axes or any(size % step for size, step in zip(shape, patch, strict=True)):
        grid, wanted = (" x ".join(map(str, sizes)) for sizes in (shape, patch))
        raise DataError(
            f"a grid of {grid} cells cannot be cut into patches of {wanted}",
            remedy="Pad or resample the grid, or choose another patch",
        )
    cut = values
    for axis, step in enumerate(patch):  # (B, C, g1, p1, g2, p2, …)
        cut = cut.unflatten(2 + 2 * axis, (shape[axis] // step, step))
    order = [0, *range(2, 2 + 2 * axes, 2), 1, *range(3, 3 + 2 * axes, 2)]
    return cut.permute(order).flatten(1 + axes)


def centres(cells: Sequence[int], step: Sequence[float], start: Sequence[float], spacing: Tensor) -> Tensor:
    """Where the cells of a grid are centred.

    Args:
        cells: Cells along each of K axes.
        step: Distance of neighbours, in cells of the original grid.
        start: Centre of the first, in cells of the original grid from its edge.
        spacing: (B, K) size of a cell of the original grid, in the domain's unit.

    Returns:
        (B, prod(cells), K) in the domain's unit.
    """
    axes = [
        torch.arange(count, device=spacing.device) * width + first
        for count, width, first in zip(cells, step, start, strict=True)
    ]
    grid = torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1).flatten(0, -2)
    return grid * spacing[:, None]


class PatchTokens(Embedder):
    """One token per patch: Linear of its cells (ViT, Dosovitskiy et al., arXiv 2010.11929), in 1, 2 or 3 dimensions.

    Args:
        width: D.
        channels: C.
        patch: Cells of a patch along each axis.
        positions: Given the width; adds positions to the vectors, from each patch's index along each axis. The tokens
            themselves carry their centres in the domain's unit, for backbones that rotate or score by distance.
        cls: Whether a learned [CLS] goes first.
        dropout: On the vectors.
    """

    def __init__(
        self,
        width: int,
        channels: int,
        patch: Sequence[int],
        positions: Callable[[int], Positions] = NoPositions,
        cls: bool = True,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.patch = tuple(patch)
        self.linear = nn.Linear(channels * math.prod(self.patch), width)
        self.positions = positions(width)
        self.cls = nn.Parameter(torch.zeros(int(cls), width))
        nn.init.normal_(self.cls, std=0.02)
        self.dropout = Dropout(dropout)

    def forward(self, batch: Grids) -> Tokens:
        """See `Embedder.forward`."""
        cut = patchify(batch.values, self.patch)
        cells = cut.shape[1:-1]
        index = torch.cartesian_prod(*(torch.arange(count, device=cut.device) for count in cells))
        index = index.view(-1, len(cells)).expand(len(cut), -1, -1)
        x = self.positions.embed(self.linear(cut.flatten(1, -2)), index)
        where = centres(cells, self.patch, [step / 2 for step in self.patch], batch.spacing)
        prefix = len(self.cls)
        x = torch.cat([self.cls.expand(len(x), -1, -1), x], dim=1)
        where = torch.cat([where.new_zeros(len(x), prefix, len(cells)), where], dim=1)
        mask = torch.ones(x.shape[:2], dtype=torch.bool, device=x.device)
        return Tokens(x=self.dropout(x), positions=where, mask=mask, prefix=prefix)
