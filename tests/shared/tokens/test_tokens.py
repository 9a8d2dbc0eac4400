"""Packing and padding lose nothing."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from polyfm.shared.data import ragged
from polyfm.shared.tokens.tokens import Edges, Pairs, Tokens

LENGTHS = st.lists(st.integers(0, 5), max_size=6)


def make(lengths: list[int], prefix: int = 0) -> Tokens:
    cu, total = ragged.boundaries(torch.tensor(lengths, dtype=torch.int64)), sum(lengths)
    return Tokens(
        x=torch.randn(total, 3),
        positions=ragged.places(cu, total)[:, None],
        cu_seqlens=cu,
        modality=torch.randint(0, 2, (total,)),
        prefix=prefix,
    )


def assert_equal(a: Tokens, b: Tokens) -> None:
    for name in ("x", "positions", "mask", "cu_seqlens", "modality"):
        ours, theirs = getattr(a, name), getattr(b, name)
        assert (ours is None) == (theirs is None), name
        assert ours is None or torch.equal(ours, theirs), name


@given(LENGTHS)
def test_there_and_back(lengths: list[int]) -> None:
    tokens = make(lengths)
    padded = tokens.pad()
    assert len(tokens) == len(padded) == len(lengths)
    assert padded.lengths.tolist() == tokens.lengths.tolist() == lengths
    assert not padded.x[~padded.mask].any()
    assert_equal(padded.pack(), tokens)
    assert_equal(padded.pack().pad(), padded)
    assert tokens.pack() is tokens
    assert padded.pad() is padded


@given(LENGTHS)
def test_a_known_longest_only_adds_padding(lengths: list[int]) -> None:
    tokens = make(lengths).replace(longest=7)
    assert tokens.pad().x.shape[1] == 7
    assert_equal(tokens.pad().pack(), tokens)


@given(LENGTHS, st.data())
def test_selecting_is_the_same_in_both_forms(lengths: list[int], data: st.DataObject) -> None:
    keep = data.draw(st.lists(st.integers(0, len(lengths) - 1), max_size=6)) if lengths else []
    index, tokens = torch.tensor(keep, dtype=torch.int64), make(lengths)
    packed, padded = tokens.select(index), tokens.pad().select(index)
    assert packed.packed
    assert not padded.packed
    assert_equal(padded.pack(), packed)
    parts = tokens.x.split(lengths) if lengths else ()
    assert torch.equal(packed.x, torch.cat([torch.zeros(0, 3), *(parts[i] for i in keep)]))


@given(st.lists(st.integers(1, 5), max_size=6))
def test_items_leave_out_the_prefix(lengths: list[int]) -> None:
    tokens = make(lengths, prefix=1)
    expected = torch.cat([torch.zeros(0, 3), *(part[1:] for part in (tokens.x.split(lengths) if lengths else ()))])
    assert torch.equal(tokens.items(), expected)
    assert torch.equal(tokens.pad().items(), expected)


def test_packing_and_padding_pass_gradients() -> None:
    tokens = make([2, 0, 3])
    x = tokens.x.requires_grad_()
    tokens.replace(x=x).pad().pack().x.mul(torch.arange(15.0).view(5, 3)).sum().backward()
    assert torch.equal(x.grad, torch.arange(15.0).view(5, 3))


def test_edges_stay_with_their_sequences() -> None:
    edges = Edges(index=torch.tensor([[0, 4, 2], [1, 3, 4]]), features=torch.tensor([[7], [8], [9]]))
    tokens = make([2, 3]).replace(edges=edges)
    chosen = tokens.select(torch.tensor([1]))
    assert chosen.edges.index.tolist() == [[2, 0], [1, 2]]
    assert chosen.edges.features.tolist() == [[8], [9]]
    assert tokens.pad().edges is edges


def test_pairs_stay_with_their_sequences() -> None:
    padded = make([2, 3, 1]).pad()
    each = torch.arange(27.0).view(3, 3, 3, 1)
    tokens = padded.replace(pairs=Pairs(first=each, last=each + 100, tokens=padded.x))
    few = tokens.pack().select(torch.tensor([2, 0])).pad()  # of the two the longest has two tokens
    assert few.pairs is not None
    assert few.pairs.first[..., 0].tolist() == each[[2, 0], :2, :2, 0].tolist()
    assert torch.equal(few.pairs.last, few.pairs.first + 100)
    assert torch.equal(few.pairs.tokens, few.x)


def test_forms_say_what_they_lack() -> None:
    with pytest.raises(ValueError, match="pack"):
        _ = make([2]).pad().boundaries
    with pytest.raises(ValueError, match="no mask"):
        _ = Tokens(x=torch.zeros(1, 1, 1), positions=torch.zeros(1, 1, 1)).lengths
