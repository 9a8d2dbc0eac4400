"""Modalities meet; a missing one contributes nothing."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from polyfm.shared.backbones.block import Block, Llama, PostNorm, PreNorm
from polyfm.shared.backbones.cache import KeyValueCache
from polyfm.shared.backbones.fusion import (
    ConcatFusion,
    CrossFusion,
    GatedCross,
    LateFusion,
    LearnedQueries,
    concat,
    part_of,
)
from polyfm.shared.backbones.layouts import plan
from polyfm.shared.backbones.masks import CAUSAL, FULL, MaskSpec
from polyfm.shared.backbones.transformer import Transformer
from polyfm.shared.data import ragged
from polyfm.shared.errors import RecipeError
from polyfm.shared.tokens.tokens import Features, Tokens

CROSS = partial(Transformer, depth=2, block=partial(PostNorm, heads=2, cross=True))
PLAIN = partial(Transformer, depth=2, block=partial(PreNorm, heads=2))


def make(lengths: list[int], requires_grad: bool = False) -> Tokens:
    cu = ragged.boundaries(torch.tensor(lengths, dtype=torch.int64))
    x = torch.randn(sum(lengths), 16, requires_grad=requires_grad)
    return Tokens(x=x, positions=ragged.places(cu, len(x))[:, None], cu_seqlens=cu)


def test_concat_joins_what_each_item_has() -> None:
    a, b = make([2, 1]), make([1, 3, 2])
    joint = concat([a, b.pad()], rows=[torch.tensor([0, 3]), torch.tensor([0, 1, 3])], size=4)
    assert joint.lengths.tolist() == [3, 3, 0, 3]
    assert joint.modality.tolist() == [0, 0, 1, 1, 1, 1, 0, 1, 1]
    expected = torch.cat([a.x[:2], b.x[:1], b.x[1:4], a.x[2:], b.x[4:]])
    assert torch.equal(joint.x, expected)
    assert part_of(joint, 0).lengths.tolist() == [2, 0, 0, 1]
    assert torch.equal(part_of(joint, 1).x, b.x)


def test_concat_of_nothing() -> None:
    joint = concat([make([]), make([])], rows=[torch.arange(0)] * 2, size=3)
    assert joint.lengths.tolist() == [0, 0, 0]


@pytest.mark.parametrize("packed", [True, False])
def test_concat_fusion_informs_tokens_by_their_own_context(packed: bool) -> None:
    fusion = ConcatFusion(16, PLAIN).eval()
    tokens, context = make([3, 2, 4]), make([2, 0, 5])

    def run(context: Tokens) -> torch.Tensor:
        return fusion(tokens if packed else tokens.pad(), context if packed else context.pad()).pack().x

    before = run(context)
    after = run(context.replace(x=torch.cat([torch.randn(2, 16), context.x[2:]])))
    assert before.shape == (9, 16)
    assert not torch.allclose(before[:3], after[:3])
    torch.testing.assert_close(before[3:], after[3:])
    alone = fusion.backbone(tokens.replace(x=tokens.x + fusion.types.weight[1])).x
    torch.testing.assert_close(before[3:5], alone[3:5])  # the item without a context: as if alone


def test_concat_fusion_obeys_masks() -> None:
    """Hidden from each other, tokens are what they would be alone; causal, the context stands before them."""
    fusion = ConcatFusion(16, PLAIN).eval()
    tokens, context = make([3, 2]), make([2, 4])
    apart = fusion(tokens, context, MaskSpec(hide=((1, 0),))).x
    alone = fusion.backbone(tokens.replace(x=tokens.x + fusion.types.weight[1])).x
    torch.testing.assert_close(apart, alone)
    seen = fusion(tokens, context, CAUSAL).x
    changed = fusion(tokens, context.replace(x=torch.randn_like(context.x)), CAUSAL).x
    assert not torch.isclose(seen, changed).any()
    with pytest.raises(RecipeError, match="CrossFusion"):
        fusion(tokens, context, CAUSAL, KeyValueCache())


@pytest.mark.parametrize("forms", [(True, True), (True, False), (False, True), (False, False)])
def test_cross_fusion_takes_any_forms(forms: tuple[bool, bool]) -> None:
    fusion, tokens, context = CrossFusion(16, CROSS).eval(), make([3, 2, 4]), make([2, 1, 5])
    reference = fusion(tokens, context).x
    given = [part if packed else part.pad() for part, packed in zip((tokens, context), forms, strict=True)]
    fused = fusion(*given)
    assert fused.packed == forms[0]
    torch.testing.assert_close(fused.pack().x, reference, atol=1e-5, rtol=1e-5)


def test_cross_fusion_without_rows_has_all_gradients() -> None:
    fusion = CrossFusion(16, CROSS).train()
    fusion(make([]), make([])).x.sum().backward()
    assert all(p.grad is not None and not p.grad.any() for p in fusion.parameters())


@pytest.mark.parametrize("block", [partial(PreNorm, heads=2), partial(Llama, heads=2)], ids=["pre", "llama"])
def test_closed_gates_leave_the_block_as_it_was(block: Callable[[int], Block]) -> None:
    plain = Transformer(16, 4, block).eval()
    gated = Transformer(16, 4, block, every={2: partial(GatedCross, block=block)}).eval()
    state = plain.state_dict()
    for i in (1, 3):
        state |= {
            key.replace(f"blocks.{i}.", f"blocks.{i}.block."): state.pop(key)
            for key in list(state)
            if key.startswith(f"blocks.{i}.")
        }
    missing, unexpected = gated.load_state_dict(state, strict=False)
    assert not unexpected
    assert all(".block." not in key for key in missing)
    tokens, context = make([3, 2, 4]), make([2, 0, 5])
    assert torch.equal(gated(tokens, context=context).x, plain(tokens).x)
    gated(tokens, context=context).x.square().sum().backward()
    assert gated.blocks[1].cross_gate.grad != 0
    nn.init.ones_(gated.blocks[1].cross_gate)
    opened = gated(tokens, context=context).x
    assert not torch.allclose(opened[:3], plain(tokens).x[:3])
    torch.testing.assert_close(gated(tokens).x, plain(tokens).x)  # and without a context none of it runs


def test_gates_are_the_formula() -> None:
    layer = GatedCross(16, partial(PreNorm, heads=2)).eval()
    nn.init.constant_(layer.cross_gate, 0.3)
    nn.init.constant_(layer.feed_forward_gate, -0.7)
    tokens, context = make([4]), make([3])
    model = Transformer(16, 1, lambda width: layer).eval()
    model.norm = nn.Identity()
    planned = plan(FULL, tokens, context)
    x = tokens.x
    seen = layer.gated_cross(layer.gated_cross_norm(x), tokens.positions, planned.context_layout, context)
    x = x + torch.tanh(torch.tensor(0.3)) * seen
    x = x + torch.tanh(torch.tensor(-0.7)) * layer.gated_feed_forward(layer.gated_feed_forward_norm(x))
    x = layer.block(x, tokens, planned.layout)
    torch.testing.assert_close(model(tokens, context=context).x, x)


@pytest.mark.parametrize("packed", [True, False])
def test_learned_queries_read_any_number_of_tokens(packed: bool) -> None:
    part = LearnedQueries(16, 4, CROSS).eval()
    tokens = make([3, 0, 7, 1], requires_grad=True)
    read = part(tokens if packed else tokens.pad())
    assert read.x.shape == (4, 4, 16)
    assert read.mask.all()
    assert read.x.isfinite().all()
    grown = part(make([0])).x  # without tokens: the queries alone
    torch.testing.assert_close(read.x[1], grown[0], atol=1e-5, rtol=1e-5)
    read.x[1].sum().backward()
    assert not tokens.x.grad.any()


def test_learned_queries_without_rows() -> None:
    part = LearnedQueries(16, 4, CROSS).train()
    out = part(make([]))
    assert out.x.shape == (0, 4, 16)
    out.x.sum().backward()
    assert all(p.grad is not None and not p.grad.any() for p in part.parameters())


def features(rows: list[int]) -> Features:
    pooled = torch.randn(len(rows), 3, requires_grad=True)
    return Features(
        tokens=make([1] * len(rows)), pooled=pooled, projected=None, rows=torch.tensor(rows, dtype=torch.int64)
    )


def test_late_fusion_by_hand() -> None:
    a, b = features([0, 2]), features([0, 1])
    views, zero = {"b": b, "a": a}, torch.zeros(3)
    total = torch.stack([a.pooled[0] + b.pooled[0], b.pooled[1], a.pooled[1], zero])
    torch.testing.assert_close(LateFusion("sum")(views, 4), total)
    torch.testing.assert_close(LateFusion("mean")(views, 4), total / torch.tensor([2.0, 1, 1, 1])[:, None])
    sides = torch.stack(
        [
            torch.cat([a.pooled[0], b.pooled[0]]),
            torch.cat([zero, b.pooled[1]]),
            torch.cat([a.pooled[1], zero]),
            torch.zeros(6),
        ]
    )
    torch.testing.assert_close(LateFusion("concat")(views, 4), sides)


@pytest.mark.parametrize("combine", ["mean", "sum", "concat"])
def test_late_fusion_of_a_modality_that_no_item_has(combine: str) -> None:
    a, b = features([0, 1]), features([])
    out = LateFusion(combine)({"a": a, "b": b}, 2)  # type: ignore[arg-type]
    torch.testing.assert_close(out[:, :3], a.pooled)
    out.sum().backward()
    assert b.pooled.grad is not None


PRESENCE = st.integers(0, 5).flatmap(
    lambda size: st.lists(st.lists(st.booleans(), min_size=size, max_size=size), min_size=1, max_size=3)
)


@given(PRESENCE, st.data())
def test_any_presence(presence: list[list[bool]], data: st.DataObject) -> None:
    """Whatever items have which modalities: one sequence of what is there, and a mean over what is there."""
    size = len(presence[0])
    rows = [torch.tensor([i for i, there in enumerate(flags) if there], dtype=torch.int64) for flags in presence]
    parts = [make(data.draw(st.lists(st.integers(0, 3), min_size=len(row), max_size=len(row)))) for row in rows]
    joint = concat(parts, rows, size)
    assert len(joint) == size
    for kind, (part, row) in enumerate(zip(parts, rows, strict=True)):
        back = part_of(joint, kind)
        assert torch.equal(back.x, part.x)
        assert back.lengths[row].tolist() == part.lengths.tolist()
        assert int(back.lengths.sum()) == len(part.x)  # items that lack it have none of it

    views = {
        str(kind): Features(tokens=part, pooled=torch.randn(len(row), 3), projected=None, rows=row)
        for kind, (part, row) in enumerate(zip(parts, rows, strict=True))
    }
    mean = LateFusion("mean")(views, size)
    for item in range(size):
        there = [view.pooled[view.rows == item] for view in views.values()]
        vectors = torch.cat(there)
        torch.testing.assert_close(mean[item], vectors.mean(0) if len(vectors) else torch.zeros(3))
