from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch.nn import functional as F

from polyfm.shared.backbones.masks import CAUSAL
from polyfm.shared.objectives.causal import CausalLM, NextValue
from polyfm.shared.objectives.heads import table
from polyfm.shared.objectives.objective import View, teacher
from polyfm.shared.tokens.masking import MaskValues
from polyfm.shared.training.optim import move_average

ALL = [True] * 6
FULL = {"context": "properties", "corrupt": {"properties": MaskValues(0.5)}, "distill": 0.4}


def test_tokens_by_hand(bench: Any, make: Any) -> None:
    """With a head of zeros and the bias (0, …, 0, ln 3) the last of 12 tokens has probability 3/14, others 1/14."""
    tested, batch = bench(CausalLM("smiles")), make(ALL, ALL)
    with torch.no_grad():
        tested.objective.head.norm.weight.zero_()
        tested.objective.head.bias[-1] = math.log(3)
    rows = batch["smiles"]
    ids = [token for i in range(6) for token in rows.ids[rows.cu_seqlens[i] + 1 : rows.cu_seqlens[i + 1]].tolist()]
    expected = sum(math.log(14 / 3) if token == 11 else math.log(14) for token in ids) / len(ids)
    output = tested.objective(tested.views(batch), batch)
    assert output.loss.item() == pytest.approx(expected, abs=1e-6)
    assert output.logs["perplexity"].item() == pytest.approx(math.exp(expected), rel=1e-5)


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("context", ["", "properties"])
def test_equals_cross_entropy_on_padded_logits(bench: Any, make: Any, packed: bool, context: str) -> None:
    tested, batch = bench(CausalLM("smiles", context), packed=packed), make(ALL, ALL)
    views = tested.views(batch)
    tokens = views[tested.objective.view].tokens.pad()
    logits = tested.objective.head(tokens.x, table(tested.model, "smiles"))
    labels = torch.full(tokens.mask.shape, -100)
    labels[tokens.mask] = batch["smiles"].ids
    dense = F.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten())
    torch.testing.assert_close(tested.objective(views, batch).loss, dense)


def test_no_token_sees_what_it_tells(bench: Any, make: Any) -> None:
    """Changing the last token of a sequence changes the loss only through its own target."""
    tested, batch = bench(CausalLM("smiles", "properties")), make(ALL, ALL)
    tokens = batch["smiles"]
    last = tokens.cu_seqlens[1:].long() - 1
    other = batch.replace(
        modalities={**batch.modalities, "smiles": tokens.replace(ids=tokens.ids.index_fill(0, last, 5))}
    )
    view = tested.objective.view
    before, after = tested.views(batch)[view].tokens, tested.views(other)[view].tokens
    unchanged = torch.arange(before.x.shape[1]) < (before.lengths - 1)[:, None]
    torch.testing.assert_close(before.x[unchanged], after.x[unchanged])
    ends = before.mask & ~unchanged
    assert not torch.allclose(before.x[ends], after.x[ends])


def test_distillation_by_hand(bench: Any, make: Any) -> None:
    tested, batch = bench(CausalLM("smiles", distill=0.4)), make([True], [True])
    views = tested.views(batch)
    objective = tested.objective
    ids = batch["smiles"].ids
    student = objective.head(views[objective.view].tokens.x[0, :-1], table(tested.model, "smiles")).log_softmax(-1)
    taught = objective.teacher_head(views[teacher(objective.view)].tokens.x[0, :-1], objective.teacher_table).softmax(
        -1
    )
    expected = 0.0
    for i, token in enumerate(ids[1:].tolist()):
        hard = -student[i, token].item()
        soft = -sum(p * q for p, q in zip(taught[i].tolist(), student[i].tolist(), strict=True))
        expected += (0.6 * hard + 0.4 * soft) / (len(ids) - 1)
    assert objective(views, batch).loss.item() == pytest.approx(expected, abs=1e-5)


def test_distillation_rises_over_the_first_pass(bench: Any, make: Any) -> None:
    tested, batch = bench(CausalLM("smiles", distill=0.4)), make(ALL, ALL)
    hard, half, full = (tested.loss(batch, epoch=epoch) for epoch in (0.0, 0.5, 3.0))
    torch.testing.assert_close(half, (hard + full) / 2)


@pytest.mark.parametrize(
    "without", [{"context": ""}, {"corrupt": {}}, {"distill": 0.0}], ids=["context", "masking", "distillation"]
)
def test_without_the_papers_term_it_is_another_loss(bench: Any, make: Any, ablated: Any, without: Any) -> None:
    ablated(bench(CausalLM("smiles", **FULL)), bench(CausalLM("smiles", **{**FULL, **without})), make(ALL, ALL))


def test_the_teachers_head_follows_as_the_teacher_does(bench: Any, make: Any) -> None:
    tested, batch = bench(CausalLM("smiles", distill=0.4)), make(ALL, ALL)
    objective = tested.objective
    averaged = torch.nn.ModuleDict({"head": objective.teacher_head})
    followed = torch.nn.ModuleDict({"head": objective.head})
    expected = bench(CausalLM("smiles", distill=0.4))
    for _ in range(3):
        tested.grads(batch)
        with torch.no_grad():
            for parameter in [*tested.model.parameters(), *objective.head.parameters()]:
                parameter += torch.randn_like(parameter)
        move_average(expected.objective.teacher_head, objective.head, 0.9)
        objective.follow(tested.model, 0.9)
    for ours, theirs in zip(averaged.parameters(), expected.objective.teacher_head.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs)
    assert not torch.allclose(averaged["head"].dense.weight, followed["head"].dense.weight)
    assert not torch.allclose(objective.teacher_table, expected.objective.teacher_table)


def test_next_value_by_hand(bench: Any, make: Any) -> None:
    """Output i, [CLS] being output 0, tells value i; the loss is on values that are known and not hidden."""
    tested, batch = bench(NextValue("properties", "smiles")), make(ALL, ALL)
    objective = tested.objective
    views = tested.views(batch)
    features = views[objective.view]
    hidden = features.selected.view(6, 5)
    predicted = objective.head(features.tokens.x)[..., 0]
    assert predicted.shape == (6, 6)
    errors = []
    for item in range(6):
        for column in range(5):
            if batch["properties"].known[item, column] and not hidden[item, column]:
                errors.append((predicted[item, column] - batch["properties"].values[item, column]).item() ** 2)
    output = objective(views, batch)
    assert output.loss.item() == pytest.approx(sum(errors) / len(errors), rel=1e-5)
    assert output.logs["values"] == len(errors)


def test_no_value_sees_itself(bench: Any, make: Any) -> None:
    tested, batch = bench(NextValue("properties", "smiles")), make(ALL, ALL)
    table_of = batch["properties"]
    changed = table_of.values.clone()
    changed[:, 3] += 1
    other = batch.replace(modalities={**batch.modalities, "properties": table_of.replace(values=changed)})
    view = tested.objective.view
    before, after = tested.views(batch)[view].tokens.x, tested.views(other)[view].tokens.x
    torch.testing.assert_close(before[:, :4], after[:, :4])  # [CLS] and values 0 to 2, which tell values 0 to 3
    assert not torch.allclose(before[:, 4:], after[:, 4:])


def test_spmm_asks_for_one_masking(bench: Any) -> None:
    half = MaskValues(0.5)
    objective = bench(NextValue("properties", "smiles", corrupt={"properties": half})).objective
    assert objective.needs() == {View("properties", half, CAUSAL, context=View("smiles"))}


@pytest.mark.parametrize(
    "without",
    [{"context": ""}, {"predict": "hidden"}, {"corrupt": {"properties": MaskValues(0.0)}}],
    ids=["context", "visible", "masking"],
)
def test_next_value_without_the_papers_term_is_another_loss(bench: Any, make: Any, without: Any) -> None:
    batch, name = make(ALL, ALL), "model.encoders.properties.embedder.value.weight"
    first, second = (
        bench(NextValue("properties", "smiles")),
        bench(NextValue("properties", **{"context": "smiles", **without})),
    )
    assert not torch.allclose(first.loss(batch), second.loss(batch))
    assert not torch.allclose(first.grads(batch)[name], second.grads(batch)[name], atol=1e-9)


@pytest.mark.parametrize("objective", [CausalLM("smiles", **FULL), NextValue("properties", "smiles")])
def test_missing_rows_count_for_nothing(bench: Any, make: Any, subset: Any, objective: Any) -> None:
    tested = bench(objective)
    batch = make([True, True, False, True, True], [True, False, True, True, False])
    whole = subset(batch, torch.tensor([0, 3]))
    torch.testing.assert_close(tested.loss(batch), tested.loss(whole))
    grads = tested.grads(batch)
    for name, expected in tested.grads(whole).items():
        torch.testing.assert_close(grads[name], expected, rtol=1e-4, atol=1e-6)
    nothing = make([True, False], [False, True])
    assert tested.loss(nothing) == 0
    assert not any(gradient.any() for gradient in tested.grads(nothing).values())
    assert "fusion.backbone.blocks.0.cross.query.weight" in tested.touched()
