"""Which layout is chosen when, and that each computes softmax(Q Kᵀ / √d + bias) V under its rule."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from polyfm.shared.backbones.layouts import FlexLayout, GroupLayout, PaddedLayout, _flex, plan
from polyfm.shared.backbones.masks import CAUSAL, FULL, MaskSpec
from polyfm.shared.data import ragged
from polyfm.shared.tokens.tokens import Tokens

HEADS, SIZE = 2, 16
RULES = [FULL, CAUSAL, MaskSpec(window=2), MaskSpec(causal=True, prefix=3), MaskSpec(hide=((1, 0), (1, 1)))]


def make(lengths: list[int]) -> Tokens:
    total = sum(lengths)
    cu = ragged.boundaries(torch.tensor(lengths))
    return Tokens(
        x=torch.randn(total, HEADS * SIZE),
        positions=ragged.places(cu, total)[:, None],
        cu_seqlens=cu,
        modality=torch.randint(0, 2, (total,)),
    )


def heads(tokens: Tokens) -> Tensor:
    return tokens.x.unflatten(-1, (HEADS, SIZE))


def reference(rule: MaskSpec, tokens: Tokens, k: Tensor, v: Tensor) -> Tensor:
    """Token by token, as the formula says; zeros for a token that sees nothing."""
    owner = ragged.owners(tokens.boundaries, len(tokens.x))
    place = ragged.places(tokens.boundaries, len(tokens.x))
    kind = tokens.modality
    seen = (owner[:, None] == owner) & rule.allowed(place[:, None], place, kind[:, None], kind)
    scores = torch.einsum("qhd,khd->hqk", heads(tokens), k) / math.sqrt(SIZE)
    return torch.einsum("hqk,khd->qhd", scores.masked_fill(~seen, float("-inf")).softmax(-1).nan_to_num(), v)


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("form", ["padded", "packed", "flex"])
def test_attention_is_the_formula(form: str, rule: MaskSpec) -> None:
    tokens = make([5, 1, 9, 3, 5])
    k, v = torch.randn(2, len(tokens.x), HEADS, SIZE)
    expected = reference(rule, tokens, k, v)
    if form == "flex":  # eager on a CPU: the rule, without the compiled kernel
        found = _flex(rule, tokens, tokens).attend(heads(tokens), k, v)
    elif form == "packed":
        planned = plan(rule, tokens)
        move = torch.argsort(planned.back)
        found = planned.restore(planned.layout.attend(heads(planned.tokens), k[move], v[move]))
    else:
        padded, k_, v_ = (tokens.replace(x=x.flatten(1)).pad() for x in (heads(tokens), k, v))
        found = plan(rule, padded).layout.attend(heads(padded), heads(k_), heads(v_))[padded.mask]
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


def test_groups_are_runs_of_equal_lengths() -> None:
    layout = plan(FULL, make([3, 1, 3, 1, 1])).layout
    assert isinstance(layout, GroupLayout)
    assert [group[:3] for group in layout.groups] == [(3, 1, 1), (2, 3, 3)]
    assert all(group[3].mask is None for group in layout.groups)


def test_sorted_tokens_do_not_move() -> None:
    tokens = make([1, 3, 3, 4])
    planned = plan(FULL, tokens)
    assert planned.back is None
    assert planned.tokens is tokens


@pytest.mark.parametrize(
    ("rule", "lengths", "masked", "causal"),
    [
        (FULL, [4, 4], False, False),
        (FULL, [4, 2], True, False),
        (CAUSAL, [4, 4], False, True),
        (CAUSAL, [4, 2], False, True),  # padding behind a sequence is later than all of it
        (MaskSpec(window=1), [4, 4], True, False),
    ],
)
def test_no_mask_where_nothing_is_hidden(rule: MaskSpec, lengths: list[int], masked: bool, causal: bool) -> None:
    layout = plan(rule, make(lengths).pad()).layout
    assert isinstance(layout, PaddedLayout)
    assert (layout.mask is not None, layout.causal) == (masked, causal)


def test_causal_padding_in_front_is_hidden() -> None:
    tokens = make([4, 4]).pad()
    mask = torch.tensor([[True] * 4, [False] + [True] * 3])
    assert plan(CAUSAL, tokens.replace(mask=mask)).layout.mask is not None


def test_forms_do_not_mix() -> None:
    tokens = make([2, 2])
    with pytest.raises(ValueError, match="both be padded or both be packed"):
        plan(FULL, tokens, tokens.pad())


@pytest.mark.gpu
@pytest.mark.parametrize("rule", [*RULES, MaskSpec(causal=True, window=2)])
@pytest.mark.parametrize("kv_heads", [HEADS, 1])
def test_kernels_on_a_gpu(rule: MaskSpec, kv_heads: int) -> None:
    tokens = make([50, 1, 129, 33]).to("cuda")
    half = tokens.replace(x=tokens.x.bfloat16())
    k, v = torch.randn(2, len(tokens.x), kv_heads, SIZE, device="cuda").bfloat16().requires_grad_()
    planned = plan(rule, half)
    assert isinstance(planned.layout, FlexLayout) == bool(rule.prefix or rule.hide)
    found = planned.layout.attend(heads(half), k, v)
    expected = reference(rule, tokens, *(x.float().expand(-1, HEADS, -1) for x in (k, v)))
    torch.testing.assert_close(found.float(), expected, atol=2e-2, rtol=2e-2)
    found.float().square().sum().backward()


@pytest.mark.parametrize("kv_heads", [HEADS, 1])
@pytest.mark.parametrize("rule", RULES)
def test_dropped_weights_are_a_share_of_the_formulas(rule: MaskSpec, kv_heads: int) -> None:
    """Averaged over many draws, attention with dropout is attention; and half of the weights are gone in each."""
    tokens = make([5, 9]).pad()
    layout = plan(rule, tokens).layout
    k, v = torch.randn(2, 2, 9, kv_heads, SIZE)
    draws = torch.stack([layout.attend(heads(tokens), k, v, dropout=0.5) for _ in range(4000)])
    expected = layout.attend(heads(tokens), k, v)
    torch.testing.assert_close(draws.mean(0)[tokens.mask], expected[tokens.mask], atol=0.12, rtol=0)
    assert not torch.equal(draws[0], draws[1])
