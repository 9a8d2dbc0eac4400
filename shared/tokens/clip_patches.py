"""`ClipPatches`: an image as CLIP cuts it."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from polyfm.shared.data.batch import Grids
from polyfm.shared.errors import DataError
from polyfm.shared.tokens.embedder import Embedder
from polyfm.shared.tokens.patches import centres, patchify
from polyfm.shared.tokens.tokens import Tokens


class ClipPatches(Embedder):
    """One token per patch without bias, a learned vector per place, [CLS] first, LayerNorm (CLIP, arXiv 2103.00020).

    Args:
        width: D.
        grid: Patches along each axis; images of any other size are refused.
        patch: Cells of a patch along each axis.
        channels: C.
        eps: Of the LayerNorm.
    """

    def __init__(
        self, width: int, grid: Sequence[int], patch: Sequence[int], channels: int = 3, eps: float = 1e-5
    ) -> None:
        super().__init__()
        self.grid, self.patch = tuple(grid), tuple(patch)
        self.linear = nn.Linear(channels * math.prod(self.patch), width, bias=False)
        self.cls = nn.Parameter(torch.empty(1, width))
        self.places = nn.Parameter(torch.empty(math.prod(self.grid), width))
        for parameter in (self.cls, self.places):
            nn.init.normal_(parameter, std=0.02)
        self.norm = nn.LayerNorm(width, eps=eps)

    def forward(self, batch: Grids) -> Tokens:
        """See `Embedder.forward`."""
        cut = patchify(batch.values, self.patch)
        cells = cut.shape[1:-1]
        if tuple(cells) != self.grid:
            got, wanted = (" x ".join(map(str, sizes)) for sizes in (cells, self.grid))
            raise DataError(f"an image of {got} patches meets a model for {wanted}", remedy="Resize the images")
        x = self.linear(cut.flatten(1, -2)) + self.places
        x = self.norm(torch.cat([self.cls.expand(len(x), -1, -1), x], dim=1))
        return Tokens(
            x=x, positions=self._where(batch.spacing), mask=x.new_ones(x.shape[:2], dtype=torch.bool), prefix=1
        )

    def _where(self, spacing: Tensor) -> Tensor:
        where = centres(self.grid, self.patch, [step / 2 for step in self.patch], spacing)
        return torch.cat([where.new_zeros(len(where), 1, len(self.grid)), where], dim=1)
