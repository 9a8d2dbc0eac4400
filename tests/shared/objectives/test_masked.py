from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from polyfm.shared.errors import RecipeError
from polyfm.shared.objectives.causal import NextValue
from polyfm.shared.objectives.masked import MaskedTokens, MaskedValues, value_output
from polyfm.shared.objectives.objective import View
from polyfm.shared.tokens.masking import MaskTokens, MaskValues

ALL = [True] * 6


def test_tokens_by_hand(bench: Any, make: Any) -> None:
    """With a head of zeros and the bias (0, …, 0, ln 3) the last of 12 tokens has probability 3/14, others 1/14."""
    tested, batch = bench(MaskedTokens("smiles")), make(ALL, ALL)
    with torch.no_grad():
        tested.objective.head.norm.weight.zero_()
        tested.objective.head.bias[-1] = math.log(3)
    views = tested.views(batch)
    ids = batch["smiles"].ids[views[tested.objective.view].selected].tolist()
    expected = sum(math.log(14 / 3) if token == 11 else math.log(14) for token in ids) / len(ids)
    output = tested.objective(views, batch)
    assert output.loss.item() == pytest.approx(expected, abs=1e-6)
    assert output.logs["tokens"] == len(ids)
    assert output.logs["accuracy"].item() == pytest.approx(ids.count(11) / len(ids))


def test_values_by_hand() -> None:
    output = value_output(torch.tensor([1.0, -2.0, 0.5]), torch.tensor([0.0, 1.0, 0.5]))
    assert output.loss.item() == pytest.approx((1 + 9 + 0) / 3)
    assert output.logs["mae"].item() == pytest.approx((1 + 3 + 0) / 3)


def test_the_corruption_is_made_from_the_embedder(bench: Any) -> None:
    objective = bench(MaskedTokens("smiles", context="properties", corrupt={"properties": MaskValues(0.3)})).objective
    hide = MaskTokens(mask_id=3, vocabulary=12, specials=4, rate=0.15, masked=0.8, randomised=0.1)
    assert objective.needs() == {View("smiles", hide, context=View("properties", MaskValues(0.3)))}


@pytest.mark.parametrize(
    "without",
    [
        {"masked": 0.0},
        {"randomised": 0.0},
        {"masked": 0.9},
        {"rate": 0.9},
        {"context": ""},
        {"corrupt": {}},
    ],
    ids=["[MASK]", "random tokens", "kept tokens", "rate", "context", "corrupted context"],
)
def test_without_the_papers_term_it_is_another_loss(bench: Any, make: Any, ablated: Any, without: Any) -> None:
    full = {"context": "properties", "corrupt": {"properties": MaskValues(0.5)}, "rate": 0.5}
    batch = make([True] * 40, [True] * 40)
    ablated(bench(MaskedTokens("smiles", **full)), bench(MaskedTokens("smiles", **{**full, **without})), batch)


def test_only_chosen_tokens_go_through_the_head(bench: Any, make: Any) -> None:
    tested, batch = bench(MaskedTokens("smiles")), make(ALL, ALL)
    seen = []
    tested.objective.head.register_forward_hook(lambda head, inputs, output: seen.append(len(output)))
    views = tested.views(batch)
    tested.objective(views, batch)
    assert seen == [int(views[tested.objective.view].selected.sum())]


def test_hidden_and_visible_values_together_are_all_known_ones(bench: Any, make: Any) -> None:
    batch = make(ALL, ALL)
    hidden, visible = (bench(MaskedValues("properties", predict=kind)) for kind in ("hidden", "visible"))
    counts = [bench.objective(bench.views(batch), batch).logs["values"].item() for bench in (hidden, visible)]
    assert sum(counts) == batch["properties"].known.sum()
    assert all(counts)


def test_hidden_values_are_told_from_the_right_rows(bench: Any, make: Any) -> None:
    tested, batch = bench(MaskedValues("properties")), make(ALL, ALL)
    views = tested.views(batch)
    chosen = views[tested.objective.view].selected.view(6, 5)
    given = []
    tested.objective.head.register_forward_hook(lambda head, inputs, output: given.append(inputs[0]))
    tested.objective(views, batch)
    outputs = views[tested.objective.view].tokens.x[:, 1:]  # after [CLS]
    torch.testing.assert_close(given[0], outputs[chosen])


@pytest.mark.parametrize(
    "change", [{"context": "smiles"}, {"predict": "visible"}, {"corrupt": {"properties": MaskValues(0.1)}}]
)
def test_every_argument_changes_the_loss_of_values(bench: Any, make: Any, change: Any) -> None:
    batch = make(ALL, ALL)
    first, second = bench(MaskedValues("properties")), bench(MaskedValues("properties", **change))
    assert not torch.allclose(first.loss(batch), second.loss(batch))


@pytest.mark.parametrize("context", ["", "properties"])
@pytest.mark.parametrize("packed", [False, True])
def test_missing_rows_count_for_nothing(bench: Any, make: Any, subset: Any, context: str, packed: bool) -> None:
    tested = bench(MaskedTokens("smiles", context=context, rate=0.5), packed=packed)
    batch = make([True, True, False, True, True], [True, False, True, True, False])
    keep = torch.tensor([0, 3]) if context else torch.tensor([0, 1, 3, 4])
    whole = subset(batch, keep)
    torch.testing.assert_close(tested.loss(batch), tested.loss(whole))
    grads = tested.grads(batch)
    for name, expected in tested.grads(whole).items():
        torch.testing.assert_close(grads[name], expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    "objective", [MaskedTokens("smiles", context="properties"), MaskedValues("properties", "smiles")]
)
def test_no_rows_give_zero_gradients_everywhere(bench: Any, make: Any, objective: Any) -> None:
    tested, batch = bench(objective), make([True, False], [False, True])
    assert tested.loss(batch) == 0
    assert not any(gradient.any() for gradient in tested.grads(batch).values())
    assert "fusion.backbone.blocks.0.cross.query.weight" in tested.touched()


def test_shares_above_one_are_refused() -> None:
    with pytest.raises(RecipeError, match="exceed 1"):
        MaskedTokens("smiles", masked=0.9, randomised=0.2)


@pytest.mark.parametrize("objective", [MaskedValues("properties"), NextValue("properties")])
def test_weights_of_the_value_head_keep_the_names_that_checkpoints_hold(bench: Any, objective: Any) -> None:
    names = {f"head.{layer}.{kind}" for layer in (0, 2, 3) for kind in ("weight", "bias")}
    assert set(bench(objective).objective.state_dict()) == names
