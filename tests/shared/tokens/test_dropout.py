"""A share of elements, drawn independently; the mean stays."""

from __future__ import annotations

import pytest
import torch

from polyfm.shared.tokens.dropout import Dropout, drop


@pytest.mark.parametrize("rate", [0.1, 0.25, 0.5, 0.9])
def test_the_share_and_the_mean(rate: float) -> None:
    x = torch.ones(1000, 1001)
    y = drop(x, rate)
    dropped = (y == 0).float().mean()
    assert dropped == pytest.approx(rate, abs=0.002)
    assert y[y != 0].unique() == pytest.approx(1 / (1 - rate), rel=1e-4)
    assert y.mean() == pytest.approx(1, abs=0.01)


def test_elements_of_one_random_word_are_independent() -> None:
    kept = (drop(torch.ones(100_000, 4), 0.5) != 0).float()
    correlations = torch.corrcoef(kept.T) - torch.eye(4)
    assert correlations.abs().max() < 0.015
    neighbours = torch.corrcoef(torch.stack([kept[:-1].flatten(), kept[1:].flatten()]))[0, 1]
    assert abs(neighbours) < 0.01


@pytest.mark.parametrize("shape", [(3,), (0, 5), (2, 3, 5)])
def test_any_shape(shape: tuple[int, ...]) -> None:
    x = torch.randn(shape, requires_grad=True)
    y = drop(x, 0.5)
    y.sum().backward()
    assert torch.equal(y, x * x.grad)  # what is dropped passes no gradient, the rest is scaled alike


def test_nothing_and_everything() -> None:
    x = torch.randn(5)
    assert drop(x, 0.0) is x
    assert not drop(x, 1.0).any()


def test_a_seed_repeats_it_and_evaluation_does_nothing() -> None:
    layer, x = Dropout(0.5), torch.ones(100)
    torch.manual_seed(3)
    first, second = layer(x), layer(x)
    torch.manual_seed(3)
    assert torch.equal(layer(x), first)
    assert not torch.equal(first, second)
    assert layer.eval()(x) is x


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_precision_stays(dtype: torch.dtype) -> None:
    assert drop(torch.ones(8, dtype=dtype), 0.5).dtype is dtype


def test_compiled_and_on_other_devices_it_is_torchs() -> None:
    assert drop(torch.ones(4, device="meta"), 0.5).is_meta
    compiled = torch.compile(drop, backend="eager", fullgraph=True)
    assert (compiled(torch.ones(1000), 0.5) == 0).any()
