"""A patch embedder is a convolution that strides by its kernel."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from polyfm.shared.data.batch import Grids
from polyfm.shared.errors import DataError
from polyfm.shared.tokens.patches import PatchTokens, patchify
from polyfm.shared.tokens.positions import AbsolutePositions

SHAPES = {1: ((12,), (4,)), 2: ((6, 8), (3, 2)), 3: ((4, 6, 4), (2, 3, 4))}


@pytest.mark.parametrize("axes", SHAPES)
def test_patches_are_a_strided_convolution(axes: int) -> None:
    shape, patch = SHAPES[axes]
    convolution = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[axes - 1](3, 5, patch, patch)
    embedder = PatchTokens(5, 3, patch, cls=False)
    embedder.linear.weight.data = convolution.weight.flatten(1).detach()
    embedder.linear.bias.data = convolution.bias.detach()
    values = torch.randn(2, 3, *shape)
    tokens = embedder(Grids(rows=torch.arange(2), values=values, spacing=torch.ones(2, axes)))
    torch.testing.assert_close(tokens.x, convolution(values).flatten(2).transpose(1, 2), atol=1e-5, rtol=1e-5)


def test_centres_are_in_the_unit_of_the_spacing() -> None:
    spacing = torch.tensor([[2.0, 0.5, 0.5], [1.0, 1.0, 1.0]])  # mm
    grids = Grids(rows=torch.arange(2), values=torch.zeros(2, 1, 4, 6, 4), spacing=spacing)
    tokens = PatchTokens(8, 1, (2, 3, 2))(grids)
    assert tokens.prefix == 1
    assert tokens.x.shape == (2, 1 + 2 * 2 * 2, 8)
    assert not tokens.positions[:, 0].any()
    assert tokens.positions[0, 1].tolist() == [2.0, 0.75, 0.5]
    assert tokens.positions[0, -1].tolist() == [6.0, 2.25, 1.5]
    assert tokens.positions[1, -1].tolist() == [3.0, 4.5, 3.0]


def test_absolute_positions_count_patches_along_each_axis() -> None:
    embedder = PatchTokens(8, 1, (2, 2), positions=lambda width: AbsolutePositions(width, 3, 2))
    nn.init.zeros_(embedder.linear.weight)
    nn.init.zeros_(embedder.linear.bias)
    tokens = embedder(Grids(rows=torch.arange(1), values=torch.zeros(1, 1, 4, 6), spacing=torch.ones(1, 2)))
    rows, columns = (table.weight for table in embedder.positions.tables)
    torch.testing.assert_close(tokens.x[0, 1:], (rows[:2, None] + columns[None]).flatten(0, 1))
    torch.testing.assert_close(tokens.x[0, 0], embedder.cls[0])


def test_no_rows() -> None:
    embedder = PatchTokens(8, 1, (2, 2), positions=lambda width: AbsolutePositions(width, 3, 2))
    tokens = embedder(Grids(rows=torch.arange(0), values=torch.zeros(0, 1, 4, 6), spacing=torch.ones(0, 2)))
    assert tokens.x.shape == (0, 7, 8)
    tokens.x.sum().backward()
    assert all(p.grad is not None and not p.grad.any() for p in embedder.parameters())


def test_grids_must_divide() -> None:
    with pytest.raises(DataError, match=r"5 x 6 cells cannot be cut into patches of 2 x 2"):
        patchify(torch.zeros(1, 1, 5, 6), (2, 2))
