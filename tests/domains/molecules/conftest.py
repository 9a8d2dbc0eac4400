"""A tiny SPMM and a tiny MolFM over a few synthetic molecules, for tests of what is done with a pre-trained model."""

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
    return trained(cli.model, cli.datamodule), cli.datamodule


def trained(task: Any, data: MoleculeDataModule) -> Any:
    """A task after three passes over its data."""
    optimizer = torch.optim.AdamW(task.optimizer.groups(task), lr=3e-3)
    for epoch in range(3):
        for batch in data.loader("train", shuffle=True):
            views = task.answer(batch, Draw(0, epoch))
            losses = {name: objective(views, batch).loss for name, objective in task.objectives.items()}
            optimizer.zero_grad()
            task.gradients(losses).backward()
            optimizer.step()
    return task.eval()


def as_run(cli: RecipeParser, folder: Path) -> Path:
    """A task and its data as the folder of a run."""
    run = RunFolder.create(folder)
    run.write_recipe(cli.resolved())
    run.checkpoints.mkdir()
    content = {"state_dict": cli.model.state_dict(), "MoleculeDataModule": cli.datamodule.state_dict()}
    torch.save(content, run.checkpoints / "last.ckpt")
    return run.path


@pytest.fixture(scope="session")
def spmm_run(spmm: tuple[Any, MoleculeDataModule], molecules: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same model as the folder of a run."""
    recipe = find_recipe("molecules/spmm")
    cli = RecipeParser(recipe, merge(recipe.sized("small"), TINY), [f"--data.path={molecules}"])
    cli.model, cli.datamodule = spmm
    return as_run(cli, tmp_path_factory.mktemp("run") / "spmm")


TINY_MOLFM = {
    "data": {"modalities": ["graph", "text", "knowledge", "smiles"], "text_vocabulary": 400, "entities": 120},
    "model": {
        "encoders": {
            "graph": {"width": 32, "backbone": {"depth": 1}, "projection": 16},
            "text": {
                "width": 32,
                "embedder": {"vocabulary": 400},
                "backbone": {"depth": 1, "block": {"heads": 2}},
                "projection": 16,
            },
            "knowledge": {"width": 32, "embedder": {"entities": 120, "size": 8}},
        },
        "fusion": {"width": 32, "backbone": {"depth": 1, "block": {"heads": 2}}},
    },
}
# One model that does all that MolFM's two recipes do.
WRITERS = {
    "model": {
        "encoders": {
            "smiles": {
                "width": 32,
                "embedder": {"class_path": "SmilesTokens", "init_args": {"dropout": 0.0}},
                "backbone": {
                    "class_path": "Transformer",
                    "init_args": {"depth": 1, "block": {"class_path": "PostNorm", "init_args": {"heads": 2}}},
                },
            }
        },
        "objectives": {
            "describe": {"class_path": "CausalLM", "init_args": {"modality": "text", "context": "graph+knowledge"}},
            "write": {"class_path": "CausalLM", "init_args": {"modality": "smiles", "context": "text"}},
        },
    }
}


def molfm_parser(molecules: Path) -> RecipeParser:
    recipe = find_recipe("molecules/molfm")
    tree = merge(merge(recipe.sized("small"), TINY_MOLFM), WRITERS)
    return RecipeParser(recipe, tree, [f"--data.path={molecules}", "--data.batch_size=16"])


@pytest.fixture(scope="session")
def molfm(molecules: Path) -> tuple[Any, MoleculeDataModule]:
    """Task and data, set up, trained for a few passes."""
    cli = molfm_parser(molecules)
    cli.datamodule.setup()
    return trained(cli.model, cli.datamodule), cli.datamodule


@pytest.fixture(scope="session")
def molfm_run(molfm: tuple[Any, MoleculeDataModule], molecules: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same model as the folder of a run."""
    cli = molfm_parser(molecules)
    cli.model, cli.datamodule = molfm
    return as_run(cli, tmp_path_factory.mktemp("run") / "molfm")
