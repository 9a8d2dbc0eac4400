"""Rows of numbers to tokens."""

from __future__ import annotations

import torch

from polyfm.shared.data.batch import Values
from polyfm.shared.tokens.table import ValueTokens


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
