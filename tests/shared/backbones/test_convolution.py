"""ResNet: the published sizes, the formula of a block, and cells as tokens."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from torch import nn

from polyfm.shared.backbones.convolution import ResidualBlock, ResNet, group_norm
from polyfm.shared.backbones.encoder import Encoder, num_parameters, on_meta
from polyfm.shared.backbones.pooling import Mean
from polyfm.shared.backbones.transformer import Transformer
from polyfm.shared.data.batch import Grids
from polyfm.shared.errors import RecipeError


@pytest.mark.parametrize(
    ("depths", "bottleneck", "width", "published"),
    [
        ((2, 2, 2, 2), False, 512, 11_689_512),
        ((3, 4, 6, 3), False, 512, 21_797_672),
        ((3, 4, 6, 3), True, 2048, 25_557_032),
        ((3, 4, 23, 3), True, 2048, 44_549_160),
    ],
    ids=["18", "34", "50", "101"],
)
def test_published_sizes(depths: tuple[int, ...], bottleneck: bool, width: int, published: int) -> None:
    """As in torchvision, with BatchNorm and 1,000 classes."""
    trunk = on_meta(partial(ResNet, width, 3, depths=depths, bottleneck=bottleneck, norm=nn.BatchNorm2d))
    head = on_meta(partial(nn.Linear, width, 1000))
    assert num_parameters(trunk) + num_parameters(head) == published


@pytest.mark.parametrize("axes", [1, 2, 3])
@pytest.mark.parametrize("bottleneck", [False, True])
def test_cells_become_tokens_in_physical_units(axes: int, bottleneck: bool) -> None:
    model = ResNet(24, 2, axes, depths=(1, 1), bottleneck=bottleneck, base=8).eval()
    assert model.stride == 8
    spacing = torch.tensor([[0.5, 2.0, 3.0][:axes], [1.0, 1.0, 1.0][:axes]])
    batch = Grids(rows=torch.arange(2), values=torch.randn(2, 2, *[32] * axes), spacing=spacing)
    tokens = model(batch)
    assert tokens.x.shape == (2, 4**axes, 24)
    assert tokens.positions.shape == (2, 4**axes, axes)
    torch.testing.assert_close(tokens.positions[0, 0], 0.5 * spacing[0])
    torch.testing.assert_close(tokens.positions[0, -1], (24 + 0.5) * spacing[0])


def test_tokens_look_where_they_say() -> None:
    """The input cell with the largest influence on a token, on average, is the one at its position."""
    model = ResNet(8, 1, 1, depths=(1, 1), base=8, norm=lambda c: nn.Identity()).eval()
    for parameter in model.parameters():
        nn.init.constant_(parameter, 0.1)  # positive weights: influence is the receptive field's own shape
    values = torch.ones(1, 1, 128, requires_grad=True)
    tokens = model(Grids(rows=torch.arange(1), values=values, spacing=torch.ones(1, 1)))
    (influence,) = torch.autograd.grad(tokens.x[0, 8].sum(), values)
    centre = (influence[0, 0] * torch.arange(128)).sum() / influence.sum()
    assert abs(float(centre) + 0.5 - float(tokens.positions[0, 8, 0])) <= 2


def test_block_is_its_formula() -> None:
    block, x = ResidualBlock(2, 8, 8, 2, False, group_norm), torch.randn(2, 8, 6, 6)
    convolve, norm, _, convolve2, norm2 = block.layers
    expected = (norm2(convolve2(norm(convolve(x)).relu())) + block.shortcut(x)).relu()
    torch.testing.assert_close(block(x), expected)
    assert expected.shape == (2, 8, 3, 3)


def test_in_an_encoder_also_without_rows() -> None:
    model = Encoder(
        16, partial(ResNet, channels=1, depths=(1, 1), base=8), partial(Transformer, depth=0), Mean, 4
    ).train()
    batch = Grids(rows=torch.arange(0), values=torch.zeros(0, 1, 32, 32), spacing=torch.ones(0, 2))
    model(batch).projected.sum().backward()
    assert all(p.grad is not None and not p.grad.any() for p in model.parameters())
    some = Grids(rows=torch.arange(3), values=torch.randn(3, 1, 32, 32), spacing=torch.ones(3, 2))
    assert model(some).projected.shape == (3, 4)
    assert len(some.select(torch.tensor([2, 0])).values) == 2


def test_items_do_not_mix() -> None:
    model = ResNet(8, 1, depths=(1,), base=8).train()
    values = torch.randn(2, 1, 16, 16)
    batch = Grids(rows=torch.arange(2), values=values, spacing=torch.ones(2, 2))
    changed = batch.replace(values=torch.cat([values[:1], torch.randn(1, 1, 16, 16)]))
    torch.testing.assert_close(model(batch).x[0], model(changed).x[0])


def test_axes_are_one_to_three() -> None:
    with pytest.raises(RecipeError, match="1, 2 or 3"):
        ResNet(8, 1, axes=4)
