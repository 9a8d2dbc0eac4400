"""Residual convolutional networks in one, two or three dimensions (He et al., arXiv 1512.03385)."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from polyfm.shared.data.batch import Grids
from polyfm.shared.errors import require
from polyfm.shared.tokens.embedder import Embedder
from polyfm.shared.tokens.patches import centres
from polyfm.shared.tokens.tokens import Tokens

_CONVOLUTIONS: tuple[type[nn.Module], ...] = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_POOLS = (F.max_pool1d, F.max_pool2d, F.max_pool3d)


def group_norm(channels: int) -> nn.GroupNorm:
    """32 groups (Wu and He, arXiv 1803.08494), or as many as divide the channels.

    Args:
        channels: C.
    """
    return nn.GroupNorm(math.gcd(32, channels), channels)


class ResNet(Embedder):
    """ResNet's trunk; each cell of its last grid becomes a token.

    ResNet-18 is the default; ResNet-34 ``depths=[3, 4, 6, 3]``; ResNet-50 the same with ``bottleneck``. In bottlenecks
    the 3-wide convolution strides, as in every current implementation.

    Args:
        width: D of the tokens; a linear layer follows where it is not the channels of the last stage.
        channels: C of the grids.
        axes: 1, 2 or 3.
        depths: Blocks of each stage; every stage after the first halves the grid.
        bottleneck: Blocks of 1-3-1 convolutions with four times the channels, instead of 3-3.
        base: Channels of the first stage; each later one has twice as many.
        norm: After each convolution, given its channels. ``torch.nn.BatchNorm2d`` is the paper's; it mixes the items
            of a batch: not with contrastive losses, accumulation or zero rows.
    """

    def __init__(
        self,
        width: int,
        channels: int,
        axes: int = 2,
        depths: Sequence[int] = (2, 2, 2, 2),
        bottleneck: bool = False,
        base: int = 64,
        norm: Callable[[int], nn.Module] = group_norm,
    ) -> None:
        super().__init__()
        require(1 <= axes <= 3, "ResNet.axes", "1, 2 or 3 axes", axes)
        self.axes = axes
        self.stride = 4 * 2 ** (len(depths) - 1)
        """Cells of the grid per token, along each axis."""
        self.stem = _convolution(axes, channels, base, 7, 2)
        self.stem_norm = norm(base)
        blocks, current = [], base
        for stage, depth in enumerate(depths):
            inner = base * 2**stage
            for i in range(depth):
                stride = 2 if stage and not i else 1
                blocks.append(ResidualBlock(axes, current, inner, stride, bottleneck, norm))
                current = inner * (4 if bottleneck else 1)
        self.blocks = nn.Sequential(*blocks)
        self.linear = nn.Identity() if current == width else nn.Linear(current, width)

    def forward(self, batch: Grids) -> Tokens:
        """See `Embedder.forward`. Positions are the cells' centres in the domain's unit."""
        x = self.stem_norm(self.stem(batch.values)).relu()
        x = self.blocks(_POOLS[self.axes - 1](x, 3, 2, 1))
        cells = x.shape[2:]
        x = self.linear(x.flatten(2).transpose(1, 2))
        # With padding of half a kernel the i-th output looks at the input around cell i · stride.
        where = centres(cells, [self.stride] * self.axes, [0.5] * self.axes, batch.spacing)
        return Tokens(x=x, positions=where, mask=torch.ones(x.shape[:2], dtype=torch.bool, device=x.device))


class ResidualBlock(nn.Module):
    """ReLU(x + f(x)), f two convolutions 3-3 or three 1-3-1, each with a norm (He et al., figure 5).

    Args:
        axes: 1, 2 or 3.
        channels: Of the input.
        inner: Of the first convolution.
        stride: Of the first 3-wide convolution.
        bottleneck: 1-3-1 with 4 · inner channels out, instead of 3-3 with inner.
        norm: After each convolution.
    """

    def __init__(
        self,
        axes: int,
        channels: int,
        inner: int,
        stride: int,
        bottleneck: bool,
        norm: Callable[[int], nn.Module],
    ) -> None:
        super().__init__()
        outer = 4 * inner if bottleneck else inner
        shapes = [(inner, 3, stride), (inner, 3, 1)]  # channels, kernel, stride
        if bottleneck:
            shapes = [(inner, 1, 1), (inner, 3, stride), (outer, 1, 1)]
        layers: list[nn.Module] = []
        current = channels
        for out, kernel, step in shapes:
            layers += [_convolution(axes, current, out, kernel, step), norm(out), nn.ReLU()]
            current = out
        self.layers = nn.Sequential(*layers[:-1])
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or channels != outer:
            self.shortcut = nn.Sequential(_convolution(axes, channels, outer, 1, stride), norm(outer))

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, ...) to (B, C', ...)."""
        out: Tensor = self.layers(x) + self.shortcut(x)
        return out.relu()


def _convolution(axes: int, channels: int, out: int, kernel: int, stride: int) -> nn.Module:
    layer = _CONVOLUTIONS[axes - 1](channels, out, kernel, stride, padding=kernel // 2, bias=False)
    nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")  # type: ignore[arg-type]
    return layer
