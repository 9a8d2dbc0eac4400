"""What is told of reactions, how often it is right, and what simple methods tell."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from polyfm.domains.molecules.reaction_prediction import copied, evaluate_reactions, nearest, reaction_metrics, tell
from polyfm.domains.molecules.reactions import Reaction
from polyfm.domains.molecules.synthetic import write_reactions
from polyfm.shared.errors import UsageError
from polyfm.shared.tokens.masking import Draw
from polyfm.shared.training.build import RecipeParser
from polyfm.shared.training.recipe import find_recipe


@pytest.fixture(scope="module")
def learnt(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Any]:
    """Task and data: eight reactions, learnt by heart."""
    recipe = find_recipe("molecules/reaction")
    path = write_reactions(tmp_path_factory.mktemp("reactions"), n=12)
    flags = [f"--data.path={path}", "--data.batch_size=16", "--data.randomise=0", "--data.max_tokens=80"]
    cli = RecipeParser(recipe, recipe.sized("small"), flags)
    data = cli.datamodule
    data.setup()
    task = cli.model
    optimizer = torch.optim.AdamW(task.parameters(), lr=3e-3)
    (batch,) = data.loader("train", shuffle=False)
    for _ in range(120):
        views = task.answer(batch, Draw(0, 0))
        optimizer.zero_grad()
        task.objectives["next_token"](views, batch).loss.backward()
        optimizer.step()
    return task.eval(), data


def test_a_model_that_knows_tells_what_it_learnt_from_the_source_alone(learnt: tuple[Any, Any]) -> None:
    task, data = learnt
    pairs = [data.reactions.reactions[i] for i in data.part("train")]
    told = tell(task, data, data.samples_from([pair.source for pair in pairs]), beams=2)
    assert [said[0] for said in told] == [pair.target for pair in pairs]
    assert all(len(said) == 2 for said in told)
    # In chunks of one the answers are the same.
    assert [s[0] for s in tell(task, data, data.samples_from([p.source for p in pairs]), beams=2, chunk=1)] == [
        said[0] for said in told
    ]


def test_without_its_source_it_knows_nothing(learnt: tuple[Any, Any]) -> None:
    """Ablation: the decoder sees the source through the fusion only."""
    task, data = learnt
    pairs = [data.reactions.reactions[i] for i in data.part("train")]
    told = tell(task, data, data.samples_from(["C"] * len(pairs)), beams=1)
    assert len({said[0] for said in told}) == 1


def test_figures_stand_beside_those_of_simple_methods(learnt: tuple[Any, Any]) -> None:
    metrics, panels = evaluate_reactions(*learnt)
    for prefix in ("test/reactions", "baseline/copy", "baseline/nearest_reaction"):
        assert {f"{prefix}/{name}" for name in ("top1", "top3", "top5", "validity")} <= set(metrics)
        assert metrics[f"{prefix}/top1"] <= metrics[f"{prefix}/top3"] <= metrics[f"{prefix}/top5"]
    assert metrics["baseline/copy/validity"] == 1.0
    assert [panel.title for panel in panels] == ["Told reactions"]
    assert "beam search" in panels[0].note


def test_top_k_by_hand() -> None:
    written = [["OCC", "C"], ["xyz", "CC"], ["C", "CC", "N", "CCC"], []]
    found = reaction_metrics(written, ["CCO", "CC", "CCC", "C"])
    assert found == {"top1": 0.25, "top3": 0.5, "top5": 0.75, "validity": 0.5}


def test_stereochemistry_counts_where_it_is_kept() -> None:
    wanted = ["C[C@H](F)Cl"]
    assert reaction_metrics([["C[C@@H](F)Cl"]], wanted)["top1"] == 0.0
    assert reaction_metrics([["C[C@@H](F)Cl"]], ["CC(F)Cl"], isomeric=False)["top1"] == 1.0


def test_copies_are_the_largest_first() -> None:
    assert copied(["CC.CCCO.O"]) == [["CCCO", "CC", "O"]]


def test_the_nearest_reaction_answers_first_and_each_answer_once() -> None:
    known = [Reaction("CCCCO", "CCCC=O"), Reaction("c1ccccc1Br", "c1ccccc1I"), Reaction("CCCCCO", "CCCC=O")]
    assert nearest(["CCCCO", "c1ccccc1Br"], known, answers=2, chunk=1) == [
        ["CCCC=O", "c1ccccc1I"],
        ["c1ccccc1I", "CCCC=O"],
    ]


def test_another_run_is_refused(spmm: tuple[Any, Any], learnt: tuple[Any, Any], molecules: Path) -> None:
    with pytest.raises(UsageError, match="molecules/reaction"):
        tell(spmm[0], learnt[1], learnt[1].samples_from(["CCO"]))
