"""A tiny SPMM over a few synthetic molecules, for tests of what is done with a pre-trained model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from polyfm.domains.molecules.data import MoleculeDataModule
from polyfm.domains.molecules.synthetic import write_synthetic
from polyfm.shared.tokens.masking import Draw
from polyfm.shared.training.build import RecipeParser
from polyfm.shared.training.recipe import find_recipe, merge
from polyfm.shared.training.run_folder import RunFolder

TINY = {
    "model": {
        "encoders": {
            name: {"width": 32, "backbone": {"depth": 1, "block": {"heads": 2}}, "projection": 16}
            for name in ("smiles", "properties")
        },
        "fusion": {"width": 32, "backbone": {"depth": 1, "block": {"heads": 2}}},
        "objectives": {"contrast": {"queue": 32}},
    },
}


@pytest.fixture(scope="session")
def molecules(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """CSV of 80 invented molecules."""
    return write_synthetic(tmp_path_factory.mktemp("molecules"), n=80)


@pytest.fixture(scope="session")
def spmm(molecules: Path) -> tuple[Any, MoleculeDataModule]:
    """Task and data, set up, not trained but for a little."""
    recipe = find_recipe("molecules/spmm")
    flags = [f"--data.path={molecules}", "--data.batch_size=16"]
    cli = RecipeParser(recipe, merge(recipe.sized("small"), TINY), flags)
    cli.datamodule.setup()
    task, data = cli.model, cli.datamodule
    optimizer = torch.optim.AdamW(task.optimizer.groups(task), lr=3e-3)
    for epoch in range(3):
        for batch in data.loader("train", shuffle=True):
            views = task.answer(batch, Draw(0, epoch))
            losses = {name: objective(views, batch).loss for name, objective in task.objectives.items()}
            optimizer.zero_grad()
            task.gradients(losses).backward()
            optimizer.step()
    return task.eval(), data


@pytest.fixture(scope="session")
def spmm_run(spmm: tuple[Any, MoleculeDataModule], molecules: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same model as the folder of a run."""
    task, data = spmm
    recipe = find_recipe("molecules/spmm")
    cli = RecipeParser(recipe, merge(recipe.sized("small"), TINY), [f"--data.path={molecules}"])
    folder = RunFolder.create(tmp_path_factory.mktemp("run") / "spmm")
    folder.write_recipe(cli.resolved())
    folder.checkpoints.mkdir()
    content = {"state_dict": task.state_dict(), "MoleculeDataModule": data.state_dict()}
    torch.save(content, folder.checkpoints / "last.ckpt")
    return folder.path
