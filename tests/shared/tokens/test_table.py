"""Rows of numbers to tokens."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from polyfm.shared.data.batch import Values
from polyfm.shared.errors import RecipeError
from polyfm.shared.tokens.table import ValueTokens, VectorToken


def test_known_values_are_scaled_and_unknown_ones_share_a_vector() -> None:
    embedder = ValueTokens(8, 3).eval()
    values, known = torch.randn(2, 3), torch.tensor([[True, False, True], [True, True, False]])
    tokens = embedder(Values(rows=torch.arange(2), values=values, known=known))
    linear, column = embedder.value, embedder.column.weight
    expected = embedder.norm(linear.weight[:, 0] * values[0, 2] + linear.bias + column[3])
    torch.testing.assert_close(tokens.x[0, 3], expected)
    torch.testing.assert_close(tokens.x[0, 2], embedder.norm(embedder.unknown + column[2]))
    torch.testing.assert_close(tokens.x[1, 0], embedder.norm(embedder.cls + column[0]))
    assert tokens.prefix == 1
    assert tokens.items().shape == (6, 8)


def test_an_unknown_value_is_never_read() -> None:
    embedder = ValueTokens(8, 3).eval()
    known = torch.tensor([[True, False, True]])
    a, b = (
        embedder(Values(rows=torch.arange(1), values=torch.tensor([[1.0, x, 2.0]]), known=known)).x for x in (0.0, 9.0)
    )
    assert torch.equal(a, b)


class TestVectorToken:
    def test_a_row_is_one_token_and_what_is_unknown_counts_as_zero(self) -> None:
        embedder = VectorToken(8, 3, hidden=5).eval()
        values, known = torch.randn(2, 3), torch.tensor([[True, False, True], [True, True, True]])
        tokens = embedder(Values(rows=torch.arange(2), values=values, known=known))
        assert embedder.inner.weight.shape == (5, 3)
        seen = values * torch.tensor([[1.0, 0.0, 1.0], [1.0, 1.0, 1.0]])
        inner = torch.nn.functional.layer_norm(seen @ embedder.inner.weight.T + embedder.inner.bias, (5,))
        expected = embedder.outer(torch.nn.functional.gelu(inner))
        torch.testing.assert_close(tokens.x[:, 0], expected)
        assert tokens.x.shape == (2, 1, 8)
        assert tokens.mask.all()
        assert tokens.positions.tolist() == [[[0]], [[0]]]

    def test_short_rows_are_seen_as_well_as_long_ones(self) -> None:
        embedder = VectorToken(8, 300).eval()
        row, known = torch.randn(1, 300), torch.ones(1, 300).bool()
        nn.init.zeros_(embedder.inner.bias)
        long, short = (embedder(Values(rows=torch.arange(1), values=size * row, known=known)).x for size in (10.0, 0.1))
        torch.testing.assert_close(long, short, atol=0.05, rtol=0.05)

    def test_rows_that_nobody_has_are_zero_tokens_and_zero_gradients(self) -> None:
        embedder = VectorToken(8, 3)
        tokens = embedder(Values(rows=torch.arange(0), values=torch.zeros(0, 3), known=torch.zeros(0, 3).bool()))
        tokens.x.sum().backward()
        assert tokens.x.shape == (0, 1, 8)
        assert all((parameter.grad == 0).all() for parameter in embedder.parameters())

    def test_sizes_that_make_no_sense_are_refused(self) -> None:
        with pytest.raises(RecipeError, match="columns"):
            VectorToken(8, 0)
        with pytest.raises(RecipeError, match="hidden"):
            VectorToken(8, 3, hidden=-1)
