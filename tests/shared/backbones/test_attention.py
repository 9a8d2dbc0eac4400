"""Grouped queries, widths of the context, and errors."""

from __future__ import annotations

import pytest
import torch

from polyfm.shared.backbones.attention import Attention
from polyfm.shared.backbones.layouts import plan
from polyfm.shared.backbones.masks import FULL
from polyfm.shared.errors import RecipeError
from polyfm.shared.tokens.positions import RelativePositions
from polyfm.shared.tokens.tokens import Tokens


def make(rows: int, length: int, width: int) -> Tokens:
    places = torch.arange(length).expand(rows, length)[..., None]
    mask = torch.ones(rows, length, dtype=torch.bool)
    return Tokens(x=torch.randn(rows, length, width), positions=places, mask=mask)


def test_grouped_queries_are_repeated_keys_and_values() -> None:
    grouped, full = Attention(16, heads=4, kv_heads=2), Attention(16, heads=4)
    state = grouped.state_dict()
    for name in ("key", "value"):
        for kind in ("weight", "bias"):
            parts = state[f"{name}.{kind}"].unflatten(0, (2, 4))
            state[f"{name}.{kind}"] = parts.repeat_interleave(2, dim=0).flatten(0, 1)
    full.load_state_dict(state)
    tokens = make(2, 5, 16)
    layout = plan(FULL, tokens).layout
    a, b = (part(tokens.x, tokens.positions, layout) for part in (grouped, full))
    torch.testing.assert_close(a, b)


def test_a_context_may_have_its_own_width() -> None:
    tokens, context = make(2, 3, 16), make(2, 7, 10)
    planned = plan(FULL, tokens, context)
    attention = Attention(16, heads=2, context_width=10)
    assert attention(tokens.x, tokens.positions, planned.context_layout, context).shape == (2, 3, 16)


def test_exact_where_kernels_lack_something() -> None:
    assert not Attention(16, heads=2).exact
    assert Attention(16, heads=2, positions=lambda: RelativePositions(2)).exact
    assert Attention(16, heads=2, dropout=0.1).train().exact
    assert not Attention(16, heads=2, dropout=0.1).eval().exact


@pytest.mark.parametrize(
    ("heads", "kv_heads", "message"),
    [
        (3, 0, "Attention.heads: expected a divisor of the width 16, not 3"),
        (4, 3, "Attention.kv_heads: expected a divisor of the 4 heads, not 3"),
    ],
)
def test_heads_must_divide(heads: int, kv_heads: int, message: str) -> None:
    with pytest.raises(RecipeError, match=f"^{message}$"):
        Attention(16, heads=heads, kv_heads=kv_heads)
