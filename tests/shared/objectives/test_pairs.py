from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from polyfm.shared.errors import RecipeError
from polyfm.shared.objectives.contrastive import InfoNCE
from polyfm.shared.objectives.objective import View
from polyfm.shared.objectives.pairs import positives
from polyfm.shared.objectives.sigmoid import SigLIP
from polyfm.shared.tokens.masking import MaskValues


@given(rows=st.lists(st.integers(-3, 3), max_size=8), others=st.lists(st.integers(-3, 3), max_size=12))
@settings(max_examples=60, deadline=None)
def test_positives_are_the_mean_of_the_rows_group(rows: list[int], others: list[int]) -> None:
    groups, candidate_groups = torch.tensor(rows, dtype=torch.int64), torch.tensor(others, dtype=torch.int64)
    candidates = torch.rand(len(others), 3, generator=torch.Generator().manual_seed(0))
    mean, counts = positives(groups, candidates, candidate_groups)
    same = (groups[:, None] == candidate_groups).float()
    torch.testing.assert_close(counts, same.sum(1))
    torch.testing.assert_close(mean, same @ candidates / same.sum(1, keepdim=True).clamp(min=1))


def test_every_pair_with_projections_is_the_default(bench) -> None:
    objective = bench(SigLIP()).objective
    assert objective.pairs == {"properties-smiles": ("properties", "smiles")}
    assert objective.needs() == {View("properties"), View("smiles")}


def test_corruptions_and_teacher_are_asked_for(bench) -> None:
    hide = MaskValues(rate=0.5)
    objective = bench(InfoNCE(corrupt={"properties": hide}, queue=4)).objective
    assert objective.needs() == {
        View("properties", hide),
        View("smiles"),
        View("properties", hide, weights="teacher"),
        View("smiles", weights="teacher"),
    }


@pytest.mark.parametrize(
    ("pairs", "corrupt", "message"),
    [
        ({"x": ("smiles", "image")}, {}, "'image' is not among properties, smiles"),
        ({}, {"propertys": MaskValues()}, "'propertys' is not among properties, smiles"),
    ],
)
def test_unknown_modalities_are_named(bench, pairs, corrupt, message) -> None:
    with pytest.raises(RecipeError, match=message):
        bench(InfoNCE(pairs=pairs, corrupt=corrupt))


def test_several_pairs_are_summed_and_logged_by_name(bench, make) -> None:
    batch = make([True] * 4, [True] * 4)
    one = bench(InfoNCE(pairs={"x": ("properties", "smiles")}))
    two = bench(InfoNCE(pairs={"x": ("properties", "smiles"), "y": ("smiles", "properties")}))
    output = two.objective(two.views(batch), batch)
    torch.testing.assert_close(output.loss, 2 * one.loss(batch))
    assert {"x/accuracy", "y/accuracy", "temperature"} <= set(output.logs)
