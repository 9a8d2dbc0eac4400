"""Where the norms stand, and that cross-attention is left out without a context."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from torch import nn

from polyfm.shared.backbones.attention import Attention
from polyfm.shared.backbones.block import Block, Llama, PostNorm, PreNorm
from polyfm.shared.backbones.layouts import plan
from polyfm.shared.backbones.masks import FULL
from polyfm.shared.tokens.tokens import Tokens


def make(length: int = 4) -> Tokens:
    places = torch.arange(length).expand(2, length)[..., None]
    return Tokens(x=torch.randn(2, length, 16), positions=places, mask=torch.ones(2, length, dtype=torch.bool))


@pytest.mark.parametrize("placement", ["pre", "post", "sandwich"])
def test_placements_are_their_formulas(placement: str) -> None:
    block = Block(16, partial(Attention, heads=2), placement=placement)  # type: ignore[arg-type]
    tokens = make()
    layout = plan(FULL, tokens).layout

    def attend(h: torch.Tensor) -> torch.Tensor:
        return block.attention(h, tokens.positions, layout)

    x = tokens.x
    if placement == "post":
        x = block.attention_norm(x + attend(x))
        x = block.feed_forward_norm(x + block.feed_forward(x))
    elif placement == "pre":
        x = x + attend(block.attention_norm(x))
        x = x + block.feed_forward(block.feed_forward_norm(x))
    else:
        x = x + block.attention_post(attend(block.attention_norm(x)))
        x = x + block.feed_forward_post(block.feed_forward(block.feed_forward_norm(x)))
    torch.testing.assert_close(block(tokens.x, tokens, layout), x)


def test_a_stack_ends_with_a_norm_unless_its_blocks_do() -> None:
    assert isinstance(PostNorm(16, heads=2).final_norm(), nn.Identity)
    assert isinstance(PreNorm(16, heads=2).final_norm(), nn.LayerNorm)
    assert isinstance(Llama(16, heads=2).final_norm(), nn.RMSNorm)


@pytest.mark.parametrize("block", [PostNorm, PreNorm, Llama])
def test_cross_attention_needs_a_context(block: type[Block]) -> None:
    layer, tokens, context = block(16, heads=2, cross=True).eval(), make(), make(3)  # type: ignore[call-arg]
    planned = plan(FULL, tokens, context)
    alone = layer(tokens.x, tokens, planned.layout)
    informed = layer(tokens.x, tokens, planned.layout, context, planned.context_layout)
    assert not torch.allclose(alone, informed)
    layer.cross = None
    torch.testing.assert_close(layer(tokens.x, tokens, planned.layout), alone)


def test_parameters_of_a_bert_layer() -> None:
    """7,087,872 in each of BERT-base's twelve layers."""
    assert sum(parameter.numel() for parameter in PostNorm(768).parameters()) == 7_087_872
