"""What stands in recipes/_trainer, on top of recipes of both tasks: it starts here, on one process, and goes on."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch.distributed as dist
from lightning.pytorch.plugins.precision import MixedPrecision
from tests.recipes.test_recipes import FLAGS

from polyfm.shared.training.build import RecipeParser
from polyfm.shared.training.callbacks import Checkpoint
from polyfm.shared.training.checkpoint import read_checkpoint
from polyfm.shared.training.recipe import RECIPES, find_recipe, read_overlay
from polyfm.shared.training.seeding import StepSeed
from polyfm.shared.training.sharding import ShardedStrategy

OVERLAYS = sorted((RECIPES / "_trainer").glob("*.yaml"))


@pytest.fixture(autouse=True)
def _leave_no_group() -> Iterator[None]:
    yield
    if dist.is_initialized():
        dist.destroy_process_group()


def test_an_overlay_changes_nothing_but_the_trainer() -> None:
    assert OVERLAYS
    assert [set(read_overlay(path)) for path in OVERLAYS] == [{"trainer"}] * len(OVERLAYS)


def train(name: str, overlay: Path, folder: Path, data: Path, epochs: int) -> L.Trainer:
    recipe = find_recipe(name)
    flags = [f"--data.path={data}", "--data.batch_size=16", *FLAGS[recipe.domain, recipe.tree["task"]]]
    cli = RecipeParser(recipe, recipe.sized("small"), [*flags, f"--config={overlay}", "--trainer.devices=1"])
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}
    checkpoint = Checkpoint().within(folder)
    trainer = cli.make_trainer(folder, [StepSeed(0), checkpoint], max_epochs=epochs, limit_train_batches=2, **quiet)
    last = folder / "checkpoints" / "last.ckpt"
    trainer.fit(cli.model, datamodule=cli.datamodule, ckpt_path=last if last.exists() else None)
    return trainer


@pytest.mark.parametrize("overlay", OVERLAYS, ids=lambda path: path.stem)
@pytest.mark.parametrize("name", ["molecules/spmm", "molecules/property"])
def test_it_starts_saves_one_file_and_goes_on(name: str, overlay: Path, tmp_path: Path) -> None:
    synthetic: Any = importlib.import_module(f"polyfm.domains.{name.split('/')[0]}.synthetic")
    data = synthetic.write_synthetic(tmp_path, n=60)
    for epochs in (1, 2):
        trainer = train(name, overlay, tmp_path / "run", data, epochs)
        assert trainer.global_step == 2 * epochs
        content = read_checkpoint(tmp_path / "run" / "checkpoints" / "last.ckpt")
        assert content["global_step"] == 2 * epochs
        assert set(content["state_dict"]) == set(trainer.lightning_module.state_dict())
        assert content["optimizer_states"][0]["state"]
    if "strategy" in read_overlay(overlay)["trainer"]:
        assert isinstance(trainer.strategy, ShardedStrategy)
    else:
        assert isinstance(trainer.precision_plugin, MixedPrecision)
