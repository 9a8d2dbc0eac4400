"""`polyfm describe`: the paper, its claim, inputs, sizes and parameters."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from polyfm.shared.cli.describe import ledger_row
from polyfm.shared.training.recipe import recipe_names

Polyfm = Callable[..., Any]


@pytest.mark.parametrize("name", recipe_names())
def test_every_recipe_can_be_described(polyfm: Polyfm, name: str) -> None:
    shown = polyfm("describe", name)
    assert shown.code == 0, shown.err
    assert shown.out.startswith(f"{name}: ")
    assert "size paper" in shown.out
    assert "size small" in shown.out
    assert f"Next: polyfm check {name}" in shown.out


def test_a_paper_s_recipe_says_which_and_what_differs(polyfm: Polyfm) -> None:
    out = polyfm("describe", "molecules/spmm").out
    assert "Bidirectional generation" in out
    assert "2024, 10.1038/s41467-024-46440-3" in out
    assert "differs" in out
    assert "inputs      smiles, properties" in out
    assert "objectives  contrast, match, next_token, next_property" in out
    assert "144.0 million trained parameters (smiles 43.3M, properties 42.8M)" in out
    row = ledger_row("molecules/spmm")
    assert row is not None
    assert row["claim"] in out
    assert f"[{row['status']}]" in out


def test_a_task_recipe_has_no_row_in_the_ledger() -> None:
    assert ledger_row("molecules/property") is None


def test_wrong_words(polyfm: Polyfm) -> None:
    assert polyfm("describe", "molecules/spm").err.endswith("a path to a YAML file works too\n")
    assert polyfm("describe", "molecules/spm").code == 2
    assert polyfm("describe").code == 2
