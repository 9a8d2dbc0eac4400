"""Weights of attention are those of the formula, whatever hides tokens."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from polyfm.shared.backbones.attention import Attention
from polyfm.shared.backbones.block import PostNorm
from polyfm.shared.backbones.masks import CAUSAL, FULL, MaskSpec
from polyfm.shared.backbones.transformer import Transformer
from polyfm.shared.evaluation.attention import watched
from polyfm.shared.tokens.positions import Positions, RotaryPositions
from polyfm.shared.tokens.tokens import Tokens


def tokens(n: int) -> Tokens:
    """Two sequences, the second one shorter by two."""
    mask = torch.ones(2, n, dtype=torch.bool)
    mask[1, -2:] = False
    return Tokens(x=torch.randn(2, n, 8), positions=torch.arange(n).expand(2, n)[..., None], mask=mask)


def by_hand(attention: Attention, x: torch.Tensor, source: torch.Tensor, allowed: torch.Tensor) -> torch.Tensor:
    q, k = (part(y).view(2, -1, 2, 4).transpose(1, 2) for part, y in ((attention.query, x), (attention.key, source)))
    scores = (q @ k.transpose(2, 3) / math.sqrt(4)).masked_fill(~allowed[:, None], float("-inf"))
    return scores.softmax(-1).mean(1)


@pytest.mark.parametrize("rule", [FULL, CAUSAL], ids=["full", "causal"])
def test_to_themselves(rule: MaskSpec) -> None:
    torch.manual_seed(0)
    trunk, given = Transformer(8, depth=1, block=lambda width: PostNorm(width, heads=2)), tokens(5)
    attention = trunk.blocks[0].attention
    for training in (True, False):  # dropout is no part of it
        trunk.train(training)
        with watched(attention) as found:
            trunk(given, rule)
        allowed = given.mask[:, None] & (torch.ones(5, 5).tril().bool() if rule is CAUSAL else torch.ones(5, 5).bool())
        wanted = by_hand(attention, given.x, given.x, allowed)
        torch.testing.assert_close(found[0][given.mask], wanted[given.mask], rtol=1e-5, atol=1e-6)


class Near(Positions):
    """Scores that fall with the distance."""

    biased = True

    def bias(self, q: torch.Tensor, k: torch.Tensor) -> torch.Tensor:
        return -(q[:, None, :, None, 0] - k[:, None, None, :, 0]).abs().float()


@pytest.mark.parametrize("positions", [Positions, RotaryPositions, Near], ids=["none", "rotary", "bias"])
def test_weights_times_values_are_what_the_attention_gives(positions: Any) -> None:
    torch.manual_seed(0)
    trunk = Transformer(8, depth=1, block=lambda width: PostNorm(width, heads=1, positions=positions)).eval()
    attention, given = trunk.blocks[0].attention, tokens(5)
    seen: list[torch.Tensor] = []
    attention.register_forward_hook(lambda _, args, out: seen.extend([args[0], out]))
    with watched(attention) as found:
        trunk(given)
    torch.testing.assert_close(attention.output(found[0] @ attention.value(seen[0])), seen[1], rtol=1e-5, atol=1e-6)


def test_packed_tokens_are_refused() -> None:
    trunk = Transformer(8, depth=1, block=lambda width: PostNorm(width, heads=2))
    with watched(trunk.blocks[0].attention), pytest.raises(ValueError, match="not of packed ones"):
        trunk(tokens(5).pack())


def test_to_a_context_and_no_longer_than_asked() -> None:
    torch.manual_seed(0)
    trunk = Transformer(8, depth=1, block=lambda width: PostNorm(width, heads=2, cross=True)).eval()
    given, context = tokens(3), tokens(6)
    block = trunk.blocks[0]
    inputs: list[torch.Tensor] = []
    block.cross.register_forward_pre_hook(lambda module, args: inputs.append(args[0]))
    with watched(block.cross) as found:
        trunk(given, context=context)
        trunk(given, context=context)
    trunk(given, context=context)
    assert [tuple(weights.shape) for weights in found] == [(2, 3, 6)] * 2
    wanted = by_hand(block.cross, inputs[0], context.x, context.mask[:, None].expand(2, 3, 6))
    torch.testing.assert_close(found[0], wanted, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(found[0].sum(-1), torch.ones(2, 3))
