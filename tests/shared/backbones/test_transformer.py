"""Padded tokens and packed tokens are two ways to write the same thing."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from polyfm.shared.backbones.attention import Attention
from polyfm.shared.backbones.block import Block, Llama, PostNorm, PreNorm
from polyfm.shared.backbones.feed_forward import PerModality
from polyfm.shared.backbones.masks import CAUSAL, FULL, MaskSpec
from polyfm.shared.backbones.transformer import Transformer
from polyfm.shared.data import ragged
from polyfm.shared.tokens.positions import ComposedPositions, Positions, RelativePositions, RotaryPositions
from polyfm.shared.tokens.tokens import Tokens

WIDTH = 16
MASKS = {
    "full": FULL,
    "causal": CAUSAL,
    "prefix": MaskSpec(causal=True, prefix=3),
    "window": MaskSpec(window=1),
    "causal window": MaskSpec(causal=True, window=2),
    "hide": MaskSpec(hide=((1, 0), (0, 1))),
    "causal hide": MaskSpec(causal=True, hide=((1, 0),)),
}
BLOCKS: dict[str, Callable[[int], Block]] = {
    "pre": partial(PreNorm, heads=2),
    "post": partial(PostNorm, heads=2),
    "sandwich": partial(Block, attention=partial(Attention, heads=2), placement="sandwich"),
    "llama": partial(Llama, heads=4, kv_heads=2),
    "per modality": partial(
        Block, attention=partial(Attention, heads=2), feed_forward=partial(PerModality, modalities=2)
    ),
}
POSITIONS: dict[str, Callable[[], Positions]] = {
    "relative": partial(RelativePositions, heads=2, dimensions=1, buckets=8, farthest=6),
    "relative 2-D": partial(RelativePositions, heads=2, dimensions=2, buckets=8, farthest=6),
    "rotary 2-D": partial(RotaryPositions, dimensions=2),
    "rotary + relative": lambda: ComposedPositions({"a": RotaryPositions(), "b": RelativePositions(2)}),
}


def make(lengths: list[int], width: int = WIDTH) -> Tokens:
    """Packed tokens with two modalities and 2-D positions."""
    total = sum(lengths)
    cu = ragged.boundaries(torch.tensor(lengths, dtype=torch.int64))
    places = ragged.places(cu, total)
    return Tokens(
        x=torch.randn(total, width),
        positions=torch.stack([places, torch.randint(0, 9, (total,))], dim=-1),
        cu_seqlens=cu,
        modality=torch.randint(0, 2, (total,)),
    )


def run(model: nn.Module, tokens: Tokens, packed: bool, mask: MaskSpec, context: Tokens | None = None) -> list[Tensor]:
    """Packed outputs, and gradients of everything that goes in."""
    model.zero_grad()
    x = tokens.x.clone().requires_grad_()
    seen = None if context is None else context.x.clone().requires_grad_()
    given = tokens.replace(x=x)
    attended = None if context is None else context.replace(x=seen)
    if not packed:
        given, attended = given.pad(), None if attended is None else attended.pad()
    out = model(given, mask, context=attended)
    assert out.packed == packed
    y = out.pack().x
    (y * torch.linspace(-1, 1, y.numel()).view_as(y)).sum().backward()
    return [y, x.grad, *([] if seen is None else [seen.grad]), *(parameter.grad for parameter in model.parameters())]


def assert_same(model: nn.Module, tokens: Tokens, mask: MaskSpec, context: Tokens | None = None) -> None:
    for ours, theirs in zip(
        run(model, tokens, True, mask, context), run(model, tokens, False, mask, context), strict=True
    ):
        assert ours is not None
        assert ours.isfinite().all()
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("mask", MASKS.values(), ids=MASKS)
@pytest.mark.parametrize("block", BLOCKS.values(), ids=BLOCKS)
def test_padded_is_packed(block: Callable[[int], Block], mask: MaskSpec) -> None:
    assert_same(Transformer(WIDTH, 2, block).eval(), make([5, 1, 9, 3, 7, 2, 2, 9, 4]), mask)


@pytest.mark.parametrize("mask", [FULL, CAUSAL, MASKS["window"]])
@pytest.mark.parametrize("positions", POSITIONS.values(), ids=POSITIONS)
def test_padded_is_packed_with_positions(positions: Callable[[], Positions], mask: MaskSpec) -> None:
    model = Transformer(WIDTH, 2, partial(PreNorm, heads=2, positions=positions)).eval()
    assert_same(model, make([5, 1, 9, 3, 7, 2, 2, 9, 4]), mask)


@pytest.mark.parametrize("mask", [FULL, CAUSAL, MASKS["prefix"]])
@pytest.mark.parametrize("lengths", [[4, 6, 1, 3], [2, 2, 2, 2], [3, 0, 5, 0]], ids=["ragged", "even", "some empty"])
def test_padded_is_packed_with_context(lengths: list[int], mask: MaskSpec) -> None:
    model = Transformer(WIDTH, 2, partial(PostNorm, heads=2, cross=True)).eval()
    assert_same(model, make([5, 1, 5, 3]), mask, make(lengths))


@settings(max_examples=30, deadline=None)
@given(lengths=st.lists(st.integers(0, 7), max_size=8), mask=st.sampled_from(list(MASKS.values())))
def test_padded_is_packed_for_any_lengths(lengths: list[int], mask: MaskSpec) -> None:
    assert_same(Transformer(WIDTH, 1, BLOCKS["pre"]).eval(), make(lengths), mask)


@pytest.mark.parametrize("packed", [True, False])
def test_sequences_do_not_see_one_another(packed: bool) -> None:
    model = Transformer(WIDTH, 2, BLOCKS["pre"]).eval()
    tokens = make([4, 3, 4])
    changed = tokens.replace(x=torch.cat([tokens.x[:4], torch.randn(3, WIDTH), tokens.x[7:]]))
    before, after = (model(t if packed else t.pad()).pack().x for t in (tokens, changed))
    torch.testing.assert_close(before[:4], after[:4])
    torch.testing.assert_close(before[7:], after[7:])
    assert not torch.allclose(before[4:7], after[4:7])


@pytest.mark.parametrize("name", MASKS)
def test_each_token_sees_what_its_rule_says(name: str) -> None:
    """The gradient of output q with respect to input k is zero exactly where the rule hides k from q."""
    tokens, mask = make([6, 6]), MASKS[name]
    model = Transformer(WIDTH, 1, BLOCKS["pre"]).eval()
    x = tokens.x.clone().requires_grad_()
    y = model(tokens.replace(x=x), mask).x @ torch.randn(WIDTH)  # not the plain sum, which the norm makes constant
    reached = torch.stack([torch.autograd.grad(row, x, retain_graph=True)[0].abs().sum(-1) > 0 for row in y])
    place, kind = torch.arange(6), tokens.modality
    for i in (0, 6):
        rule = mask.allowed(place[:, None], place, kind[i : i + 6, None], kind[i : i + 6])
        expected = rule | torch.eye(6, dtype=torch.bool)  # the residual carries a token to itself
        assert torch.equal(reached[i : i + 6, i : i + 6], expected)


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("name", BLOCKS)
def test_zero_rows_give_zero_gradients_and_none_missing(name: str, packed: bool) -> None:
    model = Transformer(WIDTH, 2, BLOCKS[name]).train()
    _, _, *gradients = run(model, make([]), packed, CAUSAL)
    assert all(gradient is not None and not gradient.any() for gradient in gradients)


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize(("lengths", "context"), [([], []), ([3, 2], [0, 0]), ([0, 0], [3, 2])])
def test_nothing_to_attend_to(lengths: list[int], context: list[int], packed: bool) -> None:
    model = Transformer(WIDTH, 2, partial(PreNorm, heads=2, cross=True)).eval()
    outputs = run(model, make(lengths), packed, FULL, make(context))
    assert all(out is not None and out.isfinite().all() for out in outputs)
    if not lengths:
        assert not any(gradient.any() for gradient in outputs[3:])


@pytest.mark.parametrize("packed", [True, False])
def test_recomputation_gives_the_same_gradients_with_dropout(packed: bool) -> None:
    model = Transformer(WIDTH, 3, partial(PostNorm, heads=2, dropout=0.3, cross=True)).train()
    tokens, context = make([5, 1, 9, 3]), make([2, 4, 4, 1])
    results = []
    for recompute in (False, True):
        model.recompute = recompute
        torch.manual_seed(7)
        results.append(run(model, tokens, packed, CAUSAL, context))
    for kept, recomputed in zip(*results, strict=True):
        torch.testing.assert_close(recomputed, kept, atol=0, rtol=0)


def test_dropout_changes_packed_training_only() -> None:
    model, tokens = Transformer(WIDTH, 1, partial(PostNorm, heads=2, dropout=0.5)), make([4, 2])
    model.train()
    assert not torch.equal(model(tokens).x, model(tokens).x)
    model.eval()
    assert torch.equal(model(tokens).x, model(tokens).x)


def test_depth_stops_early_without_the_final_norm() -> None:
    model, tokens = Transformer(WIDTH, 3, BLOCKS["pre"]).eval(), make([4, 2])
    shorter = Transformer(WIDTH, 2, BLOCKS["pre"]).eval()
    shorter.blocks.load_state_dict({k: v for k, v in model.blocks.state_dict().items() if not k.startswith("2.")})
    shorter.norm = nn.Identity()
    assert torch.equal(model(tokens, depth=2).x, shorter(tokens).x)
    assert torch.equal(model(tokens, depth=3).x, model(tokens).x)
    assert model(tokens, depth=0).x is tokens.x or torch.equal(model(tokens, depth=0).x, tokens.x)


def test_every_puts_other_blocks_in_their_places() -> None:
    model = Transformer(WIDTH, 6, BLOCKS["pre"], every={3: BLOCKS["llama"]})
    assert [type(block) for block in model.blocks] == [PreNorm, PreNorm, Llama] * 2
    assert isinstance(model.norm, nn.RMSNorm)


@pytest.mark.parametrize("mask", [FULL, CAUSAL, MASKS["window"]])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=["bf16 weights", "autocast"])
def test_half_precision_stays_near(dtype: torch.dtype, mask: MaskSpec) -> None:
    model = Transformer(WIDTH, 2, partial(PreNorm, heads=2, positions=RotaryPositions)).eval()
    tokens = make([5, 1, 9, 3, 7])
    exact = model(tokens, mask).x
    for packed in (True, False):
        given = tokens.replace(x=tokens.x.to(dtype))
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype is torch.float32):
            half = model.to(dtype)(given if packed else given.pad(), mask).pack().x
        model.float()
        assert (half.float() - exact).abs().max() < 0.1


def test_one_compilation_serves_every_batch() -> None:
    """The lengths of a batch are no reason to compile a block anew; numbers stay."""
    model = Transformer(WIDTH, 2, partial(PostNorm, heads=2)).eval()
    batches = [make([5, 1, 9, 3]), make([2, 2, 8]), make([7, 7, 1, 1, 4]), make([3, 3]), make([8, 2, 4]), make([9, 9])]
    eager = [model(tokens, CAUSAL).x for tokens in batches]
    for block in model.blocks:
        block.compile(dynamic=True, backend="eager")
    with torch._dynamo.config.patch(recompile_limit=2, fail_on_recompile_limit_hit=True):
        for tokens, expected in zip(batches, eager, strict=True):
            torch.testing.assert_close(model(tokens, CAUSAL).x, expected)
