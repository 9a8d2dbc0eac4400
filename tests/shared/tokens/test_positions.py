"""Each scheme against its formula."""

from __future__ import annotations

import math

import pytest
import torch

from polyfm.shared.errors import DataError, RecipeError
from polyfm.shared.tokens.positions import (
    AbsolutePositions,
    ComposedPositions,
    Positions,
    RelativePositions,
    RotaryPositions,
)


def test_the_base_does_nothing() -> None:
    x, positions = torch.randn(3, 4), torch.arange(3)[:, None]
    base = Positions()
    assert base.embed(x, positions) is x
    assert base.rotate(x, positions) is x
    assert not base.biased
    assert not base.bias(positions[None], positions[None]).any()


def test_absolute_positions_add_a_vector_per_dimension() -> None:
    scheme = AbsolutePositions(4, maximum=6, dimensions=2)
    positions = torch.tensor([[0, 5], [3, 2]])
    expected = scheme.tables[0].weight[[0, 3]] + scheme.tables[1].weight[[5, 2]]
    torch.testing.assert_close(scheme.embed(torch.zeros(2, 4), positions), expected)
    with pytest.raises(DataError, match=r"position 6 is beyond the 6 positions of this model.*Cut the sequences"):
        scheme.embed(torch.zeros(1, 4), torch.tensor([[6, 0]]))


def test_rotation_by_hand() -> None:
    """A head of 4 at position p: pairs (0, 2) and (1, 3) turn by p and p / 100."""
    scheme, head, p = RotaryPositions(), torch.tensor([1.0, 2.0, 3.0, 4.0]), 7
    turned = scheme.rotate(head.view(1, 1, 4), torch.tensor([[p]])).flatten().tolist()
    for i, angle in enumerate((p, p / 100)):
        a, b = head[i].item(), head[i + 2].item()
        assert turned[i] == pytest.approx(a * math.cos(angle) - b * math.sin(angle), abs=1e-5)
        assert turned[i + 2] == pytest.approx(b * math.cos(angle) + a * math.sin(angle), abs=1e-5)


@pytest.mark.parametrize("dimensions", [1, 2, 3])
def test_rotated_products_depend_on_differences_only(dimensions: int) -> None:
    scheme = RotaryPositions(dimensions)
    q, k = torch.randn(2, 5, 2, 12)
    a, b = torch.randint(0, 50, (2, 5, dimensions))
    shift = torch.randint(0, 50, (dimensions,))
    scores = [
        (scheme.rotate(q, a + offset) * scheme.rotate(k, b + offset)).sum(-1)
        for offset in (torch.zeros_like(shift), shift)
    ]
    torch.testing.assert_close(*scores, atol=1e-4, rtol=1e-4)
    moved = (scheme.rotate(q, a + shift + 1) * scheme.rotate(k, b)).sum(-1)
    assert not torch.allclose(moved, scores[0])


def test_fractional_positions_turn_too() -> None:
    scheme, head = RotaryPositions(2), torch.randn(1, 1, 8)
    half = scheme.rotate(scheme.rotate(head, torch.tensor([[0.5, 1.25]])), torch.tensor([[0.5, 0.75]]))
    torch.testing.assert_close(half, scheme.rotate(head, torch.tensor([[1.0, 2.0]])))


def test_rotation_keeps_neighbours_apart_in_bfloat16() -> None:
    """At position 1,000 bfloat16 cannot count by ones; the angles are float32."""
    scheme = RotaryPositions()
    head = torch.ones(2, 1, 16, dtype=torch.bfloat16)
    turned = scheme.rotate(head, torch.tensor([[1000], [1001]]))
    assert turned.dtype == torch.bfloat16
    exact = scheme.rotate(head.float(), torch.tensor([[1000], [1001]]))
    torch.testing.assert_close(turned.float(), exact, atol=1e-2, rtol=1e-2)
    assert (turned[0] - turned[1]).abs().max() > 0.5


def test_heads_must_divide() -> None:
    with pytest.raises(RecipeError, match="divisible by 6"):
        RotaryPositions(3).rotate(torch.zeros(1, 1, 8), torch.zeros(1, 3))


def test_buckets_are_t5s() -> None:
    """As in transformers' T5Attention._relative_position_bucket, bidirectional."""
    from transformers.models.t5.modeling_t5 import T5Attention

    distance = torch.arange(-200, 201)
    ours = RelativePositions(1, buckets=32, farthest=128).bucket(distance)
    assert torch.equal(ours, T5Attention._relative_position_bucket(distance, True, 32, 128))


@pytest.mark.parametrize("dimensions", [1, 2])
def test_relative_scores(dimensions: int) -> None:
    scheme = RelativePositions(3, dimensions)
    q, k = torch.randint(0, 30, (2, 4, dimensions)), torch.randint(0, 30, (2, 5, dimensions))
    scores = scheme.bias(q, k)
    assert scores.shape == (2, 3, 4, 5)
    expected = sum(scheme.tables[d].weight[scheme.bucket(k[1, 4, d] - q[1, 2, d])] for d in range(dimensions))
    torch.testing.assert_close(scores[1, :, 2, 4], expected)
    torch.testing.assert_close(scheme.bias(q + 9, k + 9), scores)


def test_schemes_compose() -> None:
    parts = {"a": AbsolutePositions(8), "b": RotaryPositions(), "c": RelativePositions(2), "d": RelativePositions(2)}
    scheme = ComposedPositions(parts)
    x, positions = torch.randn(1, 3, 8), torch.arange(3)[None, :, None]
    torch.testing.assert_close(scheme.embed(x, positions), parts["a"].embed(x, positions))
    heads = x.view(1, 3, 2, 4)
    torch.testing.assert_close(scheme.rotate(heads, positions), parts["b"].rotate(heads, positions))
    total = parts["c"].bias(positions, positions) + parts["d"].bias(positions, positions)
    torch.testing.assert_close(scheme.bias(positions, positions), total)
    assert scheme.biased
    assert not ComposedPositions({"a": parts["a"]}).biased
