from __future__ import annotations

from typing import Any

import jsonargparse
import pytest
import torch
import yaml
from hypothesis import given
from hypothesis import strategies as st

from polyfm.shared.backbones.masks import CAUSAL
from polyfm.shared.objectives import causal, contrastive, masked, matching, sigmoid
from polyfm.shared.objectives.objective import Objective, Progress, View, inputs_of, paired, teacher
from polyfm.shared.tokens.masking import MaskValues
from polyfm.shared.tokens.tokens import Features, Tokens
from polyfm.shared.training.views import answer

SPMM = """
contrast:
  class_path: InfoNCE
  init_args:
    pairs: {molecule: [properties, smiles]}
    corrupt: {properties: &half {class_path: MaskValues, init_args: {rate: 0.5}}}
    queue: 36864
    soft: 0.4
    intra: true
match:
  class_path: Matching
  init_args: {a: properties, b: smiles, corrupt: {properties: *half}}
next_token:
  class_path: CausalLM
  init_args: {modality: smiles, context: properties, corrupt: {properties: *half}, distill: 0.4}
next_property:
  class_path: NextValue
  init_args: {modality: properties, context: smiles, corrupt: {properties: *half}}
"""


def features(rows: list[int]) -> Features:
    x = torch.zeros(len(rows), 1, 2)
    tokens = Tokens(x=x, positions=x[..., :1], mask=torch.ones(x.shape[:2], dtype=torch.bool))
    return Features(tokens=tokens, pooled=x[:, 0], projected=None, rows=torch.tensor(rows, dtype=torch.int64))


@given(a=st.sets(st.integers(0, 9)), b=st.sets(st.integers(0, 9)))
def test_paired_finds_the_rows_of_both(a: set[int], b: set[int]) -> None:
    rows_a, rows_b = sorted(a), sorted(b)
    i, j = paired(features(rows_a), features(rows_b))
    both = sorted(a & b)
    assert [rows_a[index] for index in i] == both
    assert [rows_b[index] for index in j] == both


def test_inputs_of_a_fused_view_are_those_of_its_rows(make: Any) -> None:
    batch = make([True, True, False, True], [True] * 4)["smiles"]
    chosen = inputs_of(features([1, 3]), batch)
    assert chosen.rows.tolist() == [1, 3]
    assert chosen.lengths.tolist() == batch.lengths[1:].tolist()
    assert inputs_of(features([0, 1, 3]), batch) is batch


def test_ramps_rise_linearly() -> None:
    assert [Progress(epoch=epoch).ramp(2.0) for epoch in (0.0, 0.5, 2.0, 9.0)] == [0.0, 0.25, 1.0, 1.0]
    assert Progress(epoch=0.0).ramp(0.0) == 1.0


def test_the_teachers_view_looks_at_the_teachers_context() -> None:
    view = View("smiles", mask=CAUSAL, context=View("properties", MaskValues(0.5)))
    seen = teacher(view)
    assert (seen.weights, seen.mask, seen.context) == ("teacher", CAUSAL, teacher(View("properties", MaskValues(0.5))))


def test_a_recipe_builds_spmms_four_objectives(bench: Any, make: Any) -> None:
    parser = jsonargparse.ArgumentParser(exit_on_error=False)
    parser.add_argument("--objectives", type=dict[str, Objective])
    built = parser.instantiate(parser.parse_object({"objectives": yaml.safe_load(SPMM)})).objectives
    kinds = [contrastive.InfoNCE, matching.Matching, causal.CausalLM, causal.NextValue]
    assert [type(objective) for objective in built.values()] == kinds

    batch, half = make([True] * 6, [True] * 6), MaskValues(0.5)
    benches = [bench(objective) for objective in built.values()]
    needs = set().union(*(tested.objective.needs() for tested in benches))
    masked_properties, smiles = View("properties", half), View("smiles")
    token = View("smiles", mask=CAUSAL, context=masked_properties)
    assert needs == {
        masked_properties,
        smiles,
        teacher(masked_properties),
        teacher(smiles),
        View("properties", half, context=smiles),
        View("smiles", context=masked_properties),
        token,
        teacher(token),
        View("properties", half, CAUSAL, context=smiles),
    }
    # The properties are hidden once: every objective sees the same ones.
    views = answer(needs, batch, benches[0].model, benches[0].teacher, benches[0].views(batch).draw, Progress())
    chosen = [views[view].selected for view in needs if view.modality == "properties"]
    assert all(torch.equal(chosen[0], other) for other in chosen)
    for tested in benches:
        tested.objective(views, batch).loss.backward(retain_graph=True)


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("{class_path: SigLIP, init_args: {scale: 10, bias: -10}}", sigmoid.SigLIP),
        ("{class_path: MaskedTokens, init_args: {modality: smiles, context: properties}}", masked.MaskedTokens),
        ("{class_path: MaskedValues, init_args: {modality: properties, predict: visible}}", masked.MaskedValues),
        ("InfoNCE", contrastive.InfoNCE),
    ],
)
def test_a_recipe_builds_every_objective(text: str, kind: type) -> None:
    parser = jsonargparse.ArgumentParser(exit_on_error=False)
    parser.add_argument("--objectives", type=dict[str, Objective])
    built = parser.instantiate(parser.parse_object({"objectives": {"one": yaml.safe_load(text)}}))
    assert type(built.objectives["one"]) is kind
