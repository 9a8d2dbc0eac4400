"""What is measured of atoms put back, by hand, and its panel."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from polyfm.domains.molecules.conformers import ELEMENTS, SPECIALS
from polyfm.domains.molecules.evaluate import evaluate
from polyfm.shared.tokens.masking import Draw
from polyfm.shared.training.build import RecipeParser
from polyfm.shared.training.recipe import find_recipe


@pytest.fixture(scope="module")
def unimol(molecules: Path) -> tuple[Any, Any]:
    """Task and data, set up, not trained."""
    recipe = find_recipe("molecules/unimol")
    cli = RecipeParser(recipe, recipe.sized("small"), [f"--data.path={molecules}", "--data.batch_size=5"])
    cli.datamodule.setup()
    return cli.model.eval(), cli.datamodule


def test_errors_are_those_of_all_chosen_atoms_of_the_test_part(unimol: tuple[Any, Any]) -> None:
    task, data = unimol
    metrics, panels = evaluate(task, data)
    squares, commonest = [], 0
    for batch in data.loader("test", shuffle=False):
        views = task.answer(batch, Draw(data.seed, -1))
        (features,) = views.values()
        rows = batch["conformer"]
        given = features.tokens.replace(x=features.tokens.positions).items()
        squares += (given - rows.coordinates)[features.selected].square().sum(-1).tolist()
        commonest += int((rows.ids[features.selected] == SPECIALS + ELEMENTS.index("H")).sum())
    assert metrics["baseline/as_given/rmsd"] == pytest.approx(np.sqrt(np.mean(squares)), rel=1e-5)
    assert metrics["baseline/commonest/atom_accuracy"] == pytest.approx(commonest / len(squares))
    assert 0.7 < metrics["baseline/as_given/rmsd"] < 1.3  # √3 · 1 Å / √3, of few atoms
    assert 0 < metrics["baseline/as_given/distance_mae"] < 1
    assert [panel.title for panel in panels] == ["Atoms put back", "Map of molecules"]
    assert panels[0].body.count("<tr>") == 1 + 3  # the head, and three measures beside what does nothing
    assert f"{metrics['test/denoising/rmsd']:.3f}" in panels[0].body


def test_the_five_terms_are_weighed_as_in_the_paper(unimol: tuple[Any, Any]) -> None:
    task, _ = unimol
    weights = {"atoms": 1.0, "coordinates": 5.0, "distances": 10.0, "token_norm": 0.01, "pair_norm": 0.01}
    assert len(task.needs) == 1  # all of one view
    for name, weight in weights.items():
        alone = {other: torch.tensor(float(other == name)) for other in weights}
        assert task.gradients(alone).item() == pytest.approx(weight)


def test_a_head_that_does_nothing_is_the_baseline(unimol: tuple[Any, Any]) -> None:
    task, data = unimol
    last = task.objectives["coordinates"].head[-1]
    before = {name: value.clone() for name, value in last.state_dict().items()}
    with torch.no_grad():
        last.weight.zero_()
        last.bias.zero_()
    metrics, _ = evaluate(task, data)
    last.load_state_dict(before)
    assert metrics["test/denoising/rmsd"] == pytest.approx(metrics["baseline/as_given/rmsd"])
