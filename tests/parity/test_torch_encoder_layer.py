"""`Block` against `torch.nn.TransformerEncoderLayer`, both placements of the norm."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from torch import nn

from polyfm.shared.backbones.block import PostNorm, PreNorm
from polyfm.shared.backbones.masks import CAUSAL, FULL, MaskSpec
from polyfm.shared.backbones.transformer import Transformer
from polyfm.shared.tokens.tokens import Tokens

WIDTH, HEADS = 16, 4


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("mask", [FULL, CAUSAL], ids=["full", "causal"])
@pytest.mark.parametrize(("block", "norm_first"), [(PreNorm, True), (PostNorm, False)])
def test_block_is_torch_layer(block: type, norm_first: bool, mask: MaskSpec, packed: bool) -> None:
    torch.manual_seed(0)
    reference = nn.TransformerEncoderLayer(
        WIDTH, HEADS, 4 * WIDTH, dropout=0.0, activation="gelu", norm_first=norm_first, batch_first=True
    )
    for parameter in reference.parameters():
        nn.init.normal_(parameter, std=0.3)
    model = Transformer(WIDTH, 1, partial(block, heads=HEADS, dropout=0.0, eps=1e-5))
    ours, (first, second) = model.blocks[0], (reference.norm1, reference.norm2)
    pairs = {"attention_norm": first, "feed_forward_norm": second, "attention.output": reference.self_attn.out_proj}
    pairs |= {"feed_forward.inner": reference.linear1, "feed_forward.outer": reference.linear2}
    state = {f"{name}.{kind}": getattr(part, kind) for name, part in pairs.items() for kind in ("weight", "bias")}
    for kind, joint in (("weight", reference.self_attn.in_proj_weight), ("bias", reference.self_attn.in_proj_bias)):
        state |= {
            f"attention.{n}.{kind}": part for n, part in zip(("query", "key", "value"), joint.chunk(3), strict=True)
        }
    ours.load_state_dict(state)
    model.norm = nn.Identity()  # the layer alone

    lengths = torch.tensor([5, 2, 7, 7, 1])
    real = torch.arange(7) < lengths[:, None]
    x = torch.randn(5, 7, WIDTH)
    hidden = nn.Transformer.generate_square_subsequent_mask(7).isinf() if mask.causal else None
    expected = reference(x, src_mask=hidden, src_key_padding_mask=~real)
    places = torch.arange(7).expand(5, 7)[..., None]
    tokens = Tokens(x=x, positions=places, mask=real)
    y = model(tokens.pack() if packed else tokens, mask).pack().x
    torch.testing.assert_close(y, expected[real], atol=1e-5, rtol=1e-5)

    y.square().sum().backward()
    expected[real].square().sum().backward()
    torch.testing.assert_close(ours.feed_forward.inner.weight.grad, reference.linear1.weight.grad, atol=1e-4, rtol=1e-4)
    joint = torch.cat([getattr(ours.attention, name).weight.grad for name in ("query", "key", "value")])
    torch.testing.assert_close(joint, reference.self_attn.in_proj_weight.grad, atol=1e-4, rtol=1e-4)
