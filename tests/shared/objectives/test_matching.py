from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from polyfm.shared.errors import RecipeError
from polyfm.shared.objectives import matching
from polyfm.shared.objectives.matching import Matching
from polyfm.shared.objectives.objective import View, Views
from polyfm.shared.objectives.tiled import Best, hardest
from polyfm.shared.tokens.masking import Draw, MaskValues

ALL = [True] * 6
ARGUMENTS = {"a": "properties", "b": "smiles"}


@pytest.fixture
def wrong(monkeypatch: pytest.MonkeyPatch) -> list[Best]:
    """The wrong partners that were drawn: for each a, then for each b."""
    drawn: list[Best] = []

    def spy(*args: Any, **kwargs: Any) -> Best:
        drawn.append(hardest(*args, **kwargs))
        return drawn[-1]

    monkeypatch.setattr(matching, "hardest", spy)
    return drawn


def test_by_hand(bench: Any, make: Any, wrong: list[Best]) -> None:
    """One pair at a time through the fusion both ways; classes by hand."""
    tested, batch = bench(Matching(**ARGUMENTS)), make(ALL, ALL)
    views = tested.views(batch)
    loss = tested.objective(views, batch).loss
    a, b = views[View("properties")].tokens, views[View("smiles")].tokens

    def logits(i: int, j: int) -> Tensor:
        one, other = a.select(torch.tensor([i])), b.select(torch.tensor([j]))
        forth, back = tested.model.fuse(one, other), tested.model.fuse(other, one)
        return tested.objective.head(torch.cat([forth.x[0, 0], back.x[0, 0]]))

    losses = []
    for item in range(6):
        losses.append(F.cross_entropy(logits(item, item), torch.tensor(1)))
        losses.append(F.cross_entropy(logits(item, int(wrong[0].indices[item, 0])), torch.tensor(0)))
        losses.append(F.cross_entropy(logits(int(wrong[1].indices[item, 0]), item), torch.tensor(0)))
    torch.testing.assert_close(loss, torch.stack(losses).mean(), rtol=1e-5, atol=1e-6)


@given(groups=st.lists(st.integers(0, 3), min_size=2, max_size=9))
@settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_wrong_partners_are_of_other_groups(bench: Any, make: Any, wrong: list[Best], groups: list[int]) -> None:
    wrong.clear()
    tested, there = bench(Matching(**ARGUMENTS)), [True] * len(groups)
    batch = make(there, there, groups=groups)
    output = tested.objective(tested.views(batch), batch)
    group = torch.tensor(groups)
    if len(set(groups)) == 1:
        assert output.loss == 0
        return
    for best in wrong:
        assert (group[best.indices[:, 0]] != group).all()


def test_a_small_temperature_takes_the_most_similar(bench: Any, make: Any, wrong: list[Best]) -> None:
    batch = make(ALL, ALL)
    tested = bench(Matching(**ARGUMENTS, temperature=1e-4))
    views = tested.views(batch)
    tested.objective(views, batch)
    z = views[View("properties")].projected @ views[View("smiles")].projected.T
    z.fill_diagonal_(-torch.inf)
    assert torch.equal(wrong[0].indices[:, 0], z.argmax(1))
    assert torch.equal(wrong[1].indices[:, 0], z.argmax(0))


def test_hard_negatives_change_loss_and_gradient(bench: Any, make: Any, ablated: Any) -> None:
    hard, any_one = bench(Matching(**ARGUMENTS, temperature=1e-4)), bench(Matching(**ARGUMENTS, temperature=1e4))
    ablated(hard, any_one, make([True] * 12, [True] * 12))


def test_property_masking_changes_loss_and_gradient(bench: Any, make: Any, ablated: Any) -> None:
    masked = bench(Matching(**ARGUMENTS, corrupt={"properties": MaskValues(0.5)}))
    ablated(masked, bench(Matching(**ARGUMENTS)), make(ALL, ALL))


def test_draws_are_a_function_of_pass_and_items(bench: Any, make: Any, wrong: list[Best]) -> None:
    tested, there = bench(Matching(**ARGUMENTS, temperature=10.0)), [True] * 30
    batch = make(there, there)
    views = tested.views(batch)
    for draw in (Draw(0, 0), Draw(0, 0), Draw(0, 1)):
        tested.objective(Views(dict(views), tested.model, views.progress, draw), batch)
    first, again, later = (wrong[i].indices for i in (0, 2, 4))
    assert torch.equal(first, again)
    assert not torch.equal(first, later)


@pytest.mark.parametrize("packed", [False, True])
def test_missing_rows_count_for_nothing(bench: Any, make: Any, subset: Any, packed: bool) -> None:
    tested = bench(Matching(**ARGUMENTS), packed=packed)
    batch = make([True, True, False, True, True], [True, False, True, True, True])
    whole = subset(batch, torch.tensor([0, 3, 4]))
    torch.testing.assert_close(tested.loss(batch), tested.loss(whole))
    grads = tested.grads(batch)
    for name, expected in tested.grads(whole).items():
        torch.testing.assert_close(grads[name], expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("chunks", [2, 3, 50])
def test_wrong_pairs_may_go_through_the_fusion_in_parts(bench: Any, make: Any, chunks: int) -> None:
    tested, batch = bench(Matching(**ARGUMENTS)), make(ALL, ALL)
    expected = tested.grads(batch)
    tested.model.zero_grad()
    tested.objective.zero_grad()
    views = tested.views(batch)
    views.chunks = chunks
    loss = tested.objective(views, batch).loss
    loss.backward()
    torch.testing.assert_close(loss, tested.loss(batch))
    for name, gradient in tested.touched().items():
        torch.testing.assert_close(gradient, expected[f"model.{name}"], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("smiles", "properties"), [([True], [True]), ([True, False], [False, True]), ([True, False], [True, False])]
)
def test_fewer_than_two_pairs_give_zero_gradients(bench: Any, make: Any, smiles: Any, properties: Any) -> None:
    tested, batch = bench(Matching(**ARGUMENTS)), make(smiles, properties)
    assert tested.loss(batch) == 0
    assert not any(gradient.any() for gradient in tested.grads(batch).values())
    touched = tested.touched()
    assert "fusion.backbone.blocks.0.cross.query.weight" in touched
    assert "encoders.smiles.embedder.table.weight" in touched


def test_a_modality_without_projection_is_named(bench: Any) -> None:
    with pytest.raises(RecipeError, match="'image' is no encoder with a projection"):
        bench(Matching("properties", "image"))


@pytest.mark.parametrize("side", ["a", "b"])
def test_one_side_alone_may_be_asked(bench: Any, make: Any, wrong: list[Best], side: str) -> None:
    """MolFM: the text that attends to the molecule, by hand; the fusion runs no other way."""
    tested, batch = bench(Matching(**ARGUMENTS, queries=side)), make(ALL, ALL)
    assert tested.objective.head.in_features == tested.model.encoders["smiles"].width
    views = tested.views(batch)
    assert [view.modality for view in views if view.context] == [ARGUMENTS[side]]
    a, b = views[View("properties")].tokens, views[View("smiles")].tokens

    def logits(i: int, j: int) -> Tensor:
        pair = a.select(torch.tensor([i])), b.select(torch.tensor([j]))
        return tested.objective.head(tested.model.fuse(*(pair if side == "a" else pair[::-1])).x[0, 0])

    loss = tested.objective(views, batch).loss
    losses = []
    for item in range(6):
        losses.append(F.cross_entropy(logits(item, item), torch.tensor(1)))
        losses.append(F.cross_entropy(logits(item, int(wrong[0].indices[item, 0])), torch.tensor(0)))
        losses.append(F.cross_entropy(logits(int(wrong[1].indices[item, 0]), item), torch.tensor(0)))
    torch.testing.assert_close(loss, torch.stack(losses).mean(), rtol=1e-5, atol=1e-6)


def test_a_side_may_be_a_sum_of_modalities(bench: Any, make: Any, wrong: list[Best]) -> None:
    """Negatives are found by the first; what stands behind it is seen by the head."""
    joint = bench(Matching(a="properties+smiles", b="smiles", queries="b"))
    alone = bench(Matching(a="properties", b="smiles", queries="b"))
    batch = make(ALL, ALL)
    losses = [float(each.loss(batch)) for each in (joint, alone)]
    assert losses[0] != pytest.approx(losses[1], rel=1e-6)
    assert torch.equal(wrong[0].indices, wrong[2].indices)
