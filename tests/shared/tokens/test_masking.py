"""Shares are exact or as drawn; a draw depends on nothing but its keys."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from polyfm.shared.data import ragged
from polyfm.shared.data.batch import TokenIds, Values
from polyfm.shared.tokens.embedder import Embedder
from polyfm.shared.tokens.masking import Corruption, Draw, MaskTokens, MaskValues, TokenDropout
from polyfm.shared.tokens.text import TextTokens
from polyfm.shared.tokens.tokens import Edges, Pairs, Tokens

MASK, SPECIALS, VOCABULARY = 4, 5, 60
CORRUPT = MaskTokens(mask_id=MASK, vocabulary=VOCABULARY, specials=SPECIALS)


def sequences(lengths: list[int]) -> TokenIds:
    """Sequences that begin with [CLS] = 2."""
    cu = ragged.boundaries(torch.tensor(lengths, dtype=torch.int64))
    ids = torch.randint(SPECIALS, VOCABULARY, (sum(lengths),))
    ids[ragged.places(cu, len(ids)) == 0] = 2
    return TokenIds(rows=torch.arange(len(lengths)), ids=ids, cu_seqlens=cu)


def test_uniform_numbers_are_uniform() -> None:
    keys = torch.arange(200_000)
    numbers = Draw(0, 0).uniform("a", keys)
    assert 0 <= numbers.min() < numbers.max() < 1
    counts = torch.histc(numbers, 20, 0, 1)
    assert ((counts - 10_000).square() / 10_000).sum() < 50  # chi², 19 degrees of freedom: 50 is beyond 0.9999
    others = [Draw(1, 0).uniform("a", keys), Draw(0, 1).uniform("a", keys), Draw(0, 0).uniform("b", keys)]
    for other in [*others, numbers.roll(1)]:
        assert abs(torch.corrcoef(torch.stack([numbers, other]))[0, 1]) < 0.01


def test_masking_draws_the_shares_of_bert() -> None:
    batch = sequences([200] * 200)
    corrupted, selected = CORRUPT(batch, torch.arange(200), Draw(0, 0))
    chosen, new = batch.ids[selected], corrupted.ids[selected]
    assert torch.equal(corrupted.ids[~selected], batch.ids[~selected])
    assert (batch.ids[selected] >= SPECIALS).all()
    assert selected.float().mean() == pytest.approx(0.15 * 199 / 200, abs=0.005)
    assert (new == MASK).float().mean() == pytest.approx(0.8, abs=0.015)
    assert (new == chosen).float().mean() == pytest.approx(0.1 + 0.1 / (VOCABULARY - SPECIALS), abs=0.012)
    random = new[(new != MASK) & (new != chosen)]
    assert random.min() >= SPECIALS
    assert len(random.unique()) == VOCABULARY - SPECIALS


def test_every_sequence_with_something_to_mask_has_a_masked_token() -> None:
    batch = sequences([2] * 50 + [1] * 5)
    _, selected = CORRUPT(batch, torch.arange(55), Draw(0, 0))
    assert selected.sum() == 50


def test_no_sequences() -> None:
    corrupted, selected = CORRUPT(sequences([]), torch.arange(0), Draw(0, 0))
    assert len(selected) == len(corrupted.ids) == 0


def test_a_sample_is_corrupted_alike_in_any_batch() -> None:
    batch, keys = sequences([30, 20, 25]), torch.tensor([-5, 7, 9])
    whole, _ = CORRUPT(batch, keys, Draw(3, 2))
    some = torch.tensor([2, 0])
    part, _ = CORRUPT(batch.select(some), keys[some], Draw(3, 2))
    assert torch.equal(part.ids, whole.select(some).ids)
    other, _ = CORRUPT(batch, keys, Draw(3, 3))
    assert not torch.equal(other.ids, whole.ids)


def test_hidden_values() -> None:
    known = torch.rand(500, 53) < 0.9
    batch = Values(rows=torch.arange(500), values=torch.randn(500, 53) * known, known=known)
    corrupted, selected = MaskValues(0.5)(batch, torch.arange(500), Draw(0, 0))
    hidden = selected.view(500, 53)
    assert not (hidden & ~known).any()
    assert torch.equal(corrupted.known, known & ~hidden)
    assert not corrupted.values[hidden].any()
    assert torch.equal(corrupted.values[corrupted.known], batch.values[corrupted.known])
    assert hidden[known].float().mean() == pytest.approx(0.5, abs=0.01)


def test_corruptions_are_requests() -> None:
    assert MaskTokens(4, 60, 5) == CORRUPT
    assert len({CORRUPT, MaskTokens(4, 60, 5), MaskValues()}) == 2
    with pytest.raises(TypeError, match="has no __call__"):
        Corruption()(None, torch.arange(0), Draw(0, 0))


class Marked(Embedder):
    """Tokens that say who and where they are."""

    def __init__(self, width: int, lengths: list[int], prefix: int, packed: bool) -> None:
        super().__init__()
        cu = ragged.boundaries(torch.tensor(lengths, dtype=torch.int64))
        total = sum(lengths)
        place = ragged.places(cu, total)
        x = torch.stack([ragged.owners(cu, total), place], dim=-1).float()
        tokens = Tokens(x=x, positions=place[:, None], cu_seqlens=cu, prefix=prefix)
        self.tokens = tokens if packed else tokens.pad()

    def forward(self, batch: object) -> Tokens:
        return self.tokens


@given(
    lengths=st.lists(st.integers(1, 12), max_size=5),
    rate=st.sampled_from([0.1, 0.3, 0.5, 0.7, 0.75]),
    prefix=st.integers(0, 1),
    packed=st.booleans(),
)
def test_exactly_the_share_is_dropped(lengths: list[int], rate: float, prefix: int, packed: bool) -> None:
    dropout = TokenDropout(2, lambda width: Marked(width, lengths, prefix, packed), rate).train()
    tokens = dropout(None)
    assert tokens.packed == packed
    flat = tokens.pack()
    expected = [n - int(round(rate * 100) * (n - prefix) // 100) for n in lengths]
    assert flat.lengths.tolist() == expected
    for row, part in enumerate(flat.x.split(expected) if expected else ()):
        places = part[:, 1].tolist()
        assert part[:, 0].eq(row).all()
        assert places == sorted(set(places))  # in order, each once
        assert prefix == 0 or places[0] == 0
    assert torch.equal(flat.positions[:, 0].float(), flat.x[:, 1])


def test_dropped_tokens_differ_and_evaluation_keeps_all() -> None:
    dropout = TokenDropout(8, partial(TextTokens, vocabulary=VOCABULARY), 0.5)
    batch = sequences([40, 40])
    dropout.train()
    first, second = dropout(batch).positions, dropout(batch).positions
    assert first.shape == (2, 20, 1)
    assert not torch.equal(first, second)
    assert dropout.eval()(batch).x.shape[1] == 40


def test_nodes_of_graphs_are_not_dropped() -> None:
    dropout = TokenDropout(2, lambda width: Marked(width, [2], 0, True)).train()
    edges = Edges(index=torch.zeros(2, 0, dtype=torch.int64), features=torch.zeros(0, 1, dtype=torch.int64))
    dropout.embedder.tokens = dropout.embedder.tokens.replace(edges=edges)
    with pytest.raises(ValueError, match="graph"):
        dropout(None)
    tokens = dropout.embedder.tokens
    pairs = Pairs(first=torch.zeros(1, 2, 2, 1), last=torch.zeros(1, 2, 2, 1), tokens=torch.zeros(1, 2, 2))
    dropout.embedder.tokens = tokens.replace(edges=None, pairs=pairs)
    with pytest.raises(ValueError, match="pairs"):
        dropout(None)
