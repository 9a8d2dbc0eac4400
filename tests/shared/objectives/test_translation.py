"""TransE: the formula by hand, wrong triples, that relations are learnt, what is missing."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from polyfm.shared.backbones.encoder import Encoder, MultimodalModel
from polyfm.shared.backbones.pooling import Mean
from polyfm.shared.backbones.transformer import Transformer
from polyfm.shared.data import ragged
from polyfm.shared.data.batch import Batch, TokenIds, Triples
from polyfm.shared.errors import RecipeError
from polyfm.shared.objectives.objective import Progress, Views
from polyfm.shared.objectives.translation import TransE, corrupted
from polyfm.shared.tokens.entities import EntityTokens
from polyfm.shared.tokens.masking import Draw
from polyfm.shared.tokens.text import TextTokens

ENTITIES, SIZE = 6, 4


def make_encoder() -> Encoder:
    torch.manual_seed(0)
    return Encoder(8, partial(EntityTokens, entities=ENTITIES, size=SIZE), partial(Transformer, depth=0), Mean)


def facts(lists: list[list[tuple[int, int, int]]], entities: int = ENTITIES) -> Triples:
    rows = [row for row, triples in enumerate(lists) if triples]
    flat = [triple for triples in lists for triple in triples]
    lengths = torch.tensor([len(lists[row]) for row in rows], dtype=torch.int64)
    return Triples(
        rows=torch.tensor(rows, dtype=torch.int64),
        triples=torch.tensor(flat, dtype=torch.int64).view(-1, 3),
        cu_seqlens=ragged.boundaries(lengths),
        entities=entities,
    )


def batch_of(lists: list[list[tuple[int, int, int]]]) -> Batch:
    size = len(lists)
    none = TokenIds(
        rows=torch.zeros(0, dtype=torch.int64),
        ids=torch.zeros(0, dtype=torch.int64),
        cu_seqlens=torch.zeros(1, dtype=torch.int32),
    )
    return Batch(
        ids=[str(i) for i in range(size)],
        keys=torch.arange(size) + 7,
        modalities={"knowledge": none, "facts": facts(lists)},
        targets={},
        groups=torch.arange(size),
    )


def run(objective: TransE, encoder: Encoder, batch: Batch, epoch: int = 0) -> Any:
    return objective(Views({}, MultimodalModel({"knowledge": encoder}), Progress(), Draw(0, epoch)), batch)


@pytest.fixture
def built() -> tuple[TransE, Encoder]:
    encoder, objective = make_encoder(), TransE(relations=2)
    objective.build({"knowledge": encoder})
    return objective, encoder


@pytest.mark.parametrize("norm", [1, 2])
def test_by_hand(norm: Any) -> None:
    """Two triples of two items, with the wrong ones that were drawn, number by number."""
    encoder, objective = make_encoder(), TransE(relations=2, margin=0.7, norm=norm)
    objective.build({"knowledge": encoder})
    batch = batch_of([[(0, 1, 2)], [], [(3, 0, 4)]])
    wrong = corrupted(batch["facts"], batch.keys, Draw(0, 0)).tolist()
    vectors = encoder.embedder.entities.weight.detach()
    vectors = vectors / vectors.square().sum(1, keepdim=True).sqrt()
    moves = objective.translation.weight.detach()

    def distance(h: int, r: int, t: int) -> float:
        missed = (vectors[h] + moves[r] - vectors[t]).tolist()
        return sum(abs(x) for x in missed) if norm == 1 else sum(x * x for x in missed) ** 0.5

    expected = [
        max(0.0, 0.7 + distance(*right) - distance(*false))
        for right, false in zip([(0, 1, 2), (3, 0, 4)], wrong, strict=True)
    ]
    output = run(objective, encoder, batch)
    assert output.loss.item() == pytest.approx(sum(expected) / 2, abs=1e-6)
    assert output.logs["triples"] == 2


@given(entities=st.integers(2, 40), count=st.integers(0, 30), epoch=st.integers(0, 5))
@settings(max_examples=60)
def test_a_wrong_triple_has_one_other_entity_of_the_graph(entities: int, count: int, epoch: int) -> None:
    generator = torch.Generator().manual_seed(count)
    triples = torch.randint(entities, (count, 3), generator=generator)
    batch = facts([[tuple(triple) for triple in triples.tolist()], []], entities)  # type: ignore[misc]
    wrong = corrupted(batch, torch.arange(2), Draw(0, epoch))
    assert ((wrong != triples).sum(1) == 1).all()
    assert torch.equal(wrong[:, 1], triples[:, 1])
    assert ((wrong >= 0) & (wrong < entities)).all()


def test_heads_and_tails_are_replaced_alike_and_entities_drawn_evenly() -> None:
    batch = facts([[(0, 0, 1)] * 6000])
    wrong = corrupted(batch, torch.arange(1), Draw(0, 0))
    head = wrong[:, 0] != 0
    assert float(head.float().mean()) == pytest.approx(0.5, abs=0.03)
    counts = torch.bincount(wrong[head, 0], minlength=ENTITIES)
    assert counts[0] == 0
    assert (counts[1:] / int(head.sum()) - 0.2).abs().max() < 0.03


def test_wrong_triples_are_the_sample_s_own_in_every_batch() -> None:
    """A function of seed, pass and sample: a resumed run draws alike."""
    alone = batch_of([[(0, 0, 1), (0, 1, 2)]])
    both = batch_of([[(3, 0, 4)], [(0, 0, 1), (0, 1, 2)]]).replace(keys=torch.tensor([99, 7]))
    ours = corrupted(alone["facts"], alone.keys, Draw(0, 3))
    assert torch.equal(ours, corrupted(both["facts"], both.keys, Draw(0, 3))[1:])
    many = batch_of([[(0, 0, 1)] * 40])
    assert not torch.equal(*(corrupted(many["facts"], many.keys, Draw(0, epoch)) for epoch in (0, 1)))


def test_a_small_graph_is_learnt() -> None:
    """0 → 1 → 2 by relation 0, 3 → 4 → 5 by relation 1: afterwards every true triple is nearer than every wrong one."""
    encoder, objective = make_encoder(), TransE(relations=2)
    objective.build({"knowledge": encoder})
    true = [(0, 0, 1), (1, 0, 2), (3, 1, 4), (4, 1, 5)]
    batch = batch_of([[triple] for triple in true])
    optimizer = torch.optim.Adam([*encoder.parameters(), *objective.parameters()], lr=0.02)
    for epoch in range(400):
        optimizer.zero_grad()
        run(objective, encoder, batch, epoch).loss.backward()
        optimizer.step()
    with torch.no_grad():
        for head, relation, tail in true:
            tails = torch.tensor([(head, relation, other) for other in range(ENTITIES) if other != head])
            assert int(tails[objective.distance(encoder.embedder, tails).argmin(), 2]) == tail


def test_without_the_translation_it_is_another_loss(built: tuple[TransE, Encoder]) -> None:
    """Ablation: h + r ≈ t, not h ≈ t."""
    objective, encoder = built
    batch = batch_of([[(0, 1, 2)], [(3, 0, 4)]])
    loss = run(objective, encoder, batch).loss
    loss.backward()
    assert objective.translation.weight.grad.abs().sum() > 0
    with torch.no_grad():
        objective.translation.weight.zero_()
    assert run(objective, encoder, batch).loss.item() != pytest.approx(loss.item(), rel=1e-3)


def test_items_without_facts_add_nothing(built: tuple[TransE, Encoder]) -> None:
    objective, encoder = built
    output = run(objective, encoder, batch_of([[], []]))
    assert output.loss == 0
    output.loss.backward()
    assert (encoder.embedder.entities.weight.grad == 0).all()
    with_none = run(objective, encoder, batch_of([[(0, 1, 2)], []])).loss
    torch.testing.assert_close(with_none, run(objective, encoder, batch_of([[(0, 1, 2)]])).loss)


def test_translations_start_at_unit_length(built: tuple[TransE, Encoder]) -> None:
    torch.testing.assert_close(built[0].translation.weight.norm(dim=1), torch.ones(2))


def test_only_entities_can_be_translated() -> None:
    text = Encoder(8, partial(TextTokens, vocabulary=9), partial(Transformer, depth=0))
    for encoders in ({"knowledge": text}, {}):
        with pytest.raises(RecipeError, match="'knowledge' is no encoder of entities.*EntityTokens"):
            TransE().build(encoders)
