"""Every recipe, because it exists: parsed, built at both sizes, and trained for two steps at the small one."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch

from polyfm.shared.backbones.encoder import num_parameters, on_meta
from polyfm.shared.evaluation.finish import collect
from polyfm.shared.training.build import RecipeParser
from polyfm.shared.training.recipe import RECIPES, Recipe, find_recipe, read_yaml, recipe_names
from polyfm.shared.training.run_folder import RunFolder
from polyfm.shared.training.seeding import StepSeed

# Trained parameters at paper size, by the arithmetic of the paper. A BERT layer of width D and inner width F holds
# 4 (D² + D) of attention, 2 D F + F + D of feed-forward and 4 D of two norms; a cross-attention adds 4 (D² + D) + 2 D.
D, F = 768, 3072
ATTENTION, FEED_FORWARD, NORM = 4 * (D * D + D), 2 * D * F + F + D, 2 * D
LAYER = ATTENTION + FEED_FORWARD + 2 * NORM
CROSS_LAYER = LAYER + ATTENTION + NORM
SMILES = (300 + 512) * D + NORM + 6 * LAYER  # 300 tokens, 512 positions
PROPERTIES = 2 * D + 2 * D + (53 + 1) * D + NORM + 6 * LAYER  # Linear(1, D); unknown and [CLS]; columns
PROJECTION = D * 256 + 256
GIN_LAYER = 18 * 300 + (300 * 600 + 600) + (600 * 300 + 300) + 2 * 300  # bond categories, MLP, norm

# MolFM: GIN of 300 over 124 atom and 9 bond categories, widened to 768; 6 layers over 31,090 pieces of text; 49,151 entities
# of 256, widened to 768, with 8 relations; 6 fusion layers.
TOKEN_HEAD = D * D + D + NORM  # and a bias for each token; the decoder is the embedder's table
GRAPH = 124 * 300 + 5 * (GIN_LAYER - 9 * 300) + 300 * D + D
TEXT = (31090 + 512) * D + NORM + 6 * LAYER
KNOWLEDGE = 49151 * 256 + 256 * D + D

# Uni-Mol: 29 types in pairs, 128 Gaussians, 15 layers of 512 and 2048 with 64 heads.
PAIRS = 2 * 29 * 29 + 2 * 128 + (128 * 128 + 128) + (128 * 64 + 64)
CONFORMER = 29 * 512 + 2 * 512 + PAIRS + 2 * 512 + 15 * (4 * (512 * 512 + 512) + 2 * 512 * 2048 + 2048 + 512 + 4 * 512)


def layer(width: int, inner: int) -> int:
    """Of a BERT layer."""
    return 4 * (width * width + width) + 2 * width * inner + inner + width + 4 * width


# scGPT: 60,000 genes of 512 and their values, a norm for each, 12 layers of 512 and 512.
CELL = 60000 * 512 + 4 * 512 + 2 * 512 + (512 * 512 + 512) + 12 * layer(512, 512)

# A BERT layer that also attends to a context of its own width.
CROSS = 4 * (512 * 512 + 512) + 2 * 512
GENES = 4 * 512 + 2 * 512 + (512 * 512 + 512)  # beside the table of genes
VALUES = 2 * (512 * 512 + 512) + 512 + 1  # the decoder of values
PAIR = 2 * (512 * 256 + 256)

PARAMETERS = {
    # Theodoris et al.'s 6 layers of 256 and 512, here over 60,000 genes: 10 million with their 25,426. The token head.
    "singlecell/geneformer": (60000 + 2048) * 256 + 2 * 256 + 6 * layer(256, 512) + (256 * 256 + 256 + 2 * 256 + 60000),
    # Cui et al. name 12 layers of 512 with 8 heads. The decoder of values, the query and the cell's map.
    "singlecell/scgpt": CELL + 2 * (512 * 512 + 512) + 512 + 1 + (512 * 512 + 512) + 512 * 512,
    # The same; the head is made when the labels are known. No paper of its own.
    "singlecell/annotate": CELL,
    # singlecell/scgpt, and a classifier of 256 batches. No paper of its own.
    "singlecell/integrate": CELL + VALUES + (512 * 512 + 512) + 512 * 512 + (512 * 512 + 512) + 2 * 512 + 512 * 256 + 256,
    # The same encoder, one of 4 layers for 509 proteins, 4 fusion layers, both projections; the decoder of
    # genes' values, the query and the cell's map. No paper of its own.
    "singlecell/proteins": CELL + (512 * 512 + GENES + 4 * layer(512, 512)) + 4 * (layer(512, 512) + CROSS) + PAIR
    + 1 + (2 * 512 * 2 + 2) + VALUES + (512 * 512 + 512) + 512 * 512,
    # Shi et al. publish no count that was found. scGPT's encoder, a bridge, 32 queries and 6 layers that read it, 6 layers
    # of text, 6 of fusion; temperature, matching, the token head and the pseudo-cell's map, one number for each gene.
    "singlecell/scmmgpt": CELL + 2 * 512 + 32 * 512 + 6 * (layer(512, 2048) + CROSS) + PAIR
    + (30522 + 512) * 512 + 2 * 512 + 6 * layer(512, 2048) + 6 * (layer(512, 2048) + CROSS)
    + 1 + (512 * 2 + 2) + (512 * 512 + 512 + 2 * 512 + 30522) + 2 * (512 * 512 + 512) + 60000,
    # Chang and Ye publish no count. 12 BERT layers for SMILES, of which the upper 6 attend to the properties, and 6 for
    # the properties; then the temperature, the matching head, the token head tied to the table, the value head.
    "molecules/spmm": SMILES + PROPERTIES + 2 * PROJECTION + 6 * CROSS_LAYER
    + 1 + (2 * D * 2 + 2) + (D * D + D + NORM + 300) + (D * D + D + NORM + D + 1),
    # SPMM's lower 6 layers of SMILES; the head is made when the labels are known. No paper of its own.
    "molecules/property": SMILES,
    # The same; 217 descriptors and 2,048 bits, each through two layers. No paper of its own.
    "molecules/property_views": SMILES + (217 * D + D) + (2048 * D + D) + 2 * (NORM + D * D + D),
    # 8,000 words and 2,265 features through two layers and a projection, the temperature. No paper of its own.
    "molecules/words_features": (8000 + 2265 + 2) * 512 + 2 * (2 * 512 + 512 * 512 + 512) + 2 * (512 * 256 + 256) + 1,
    # Luo et al. publish no count that was found. The temperature, the matching head on the text's side, the token head tied
    # to the table, the translations.
    "molecules/molfm": GRAPH + TEXT + KNOWLEDGE + 2 * PROJECTION + 6 * CROSS_LAYER
    + 1 + (D * 2 + 2) + (TOKEN_HEAD + 31090) + 8 * 256,
    # No paper's own: MolFM's encoders, 6 layers over 1,000 pieces of SMILES, a token head for each of the two.
    "molecules/molfm_generation": GRAPH + TEXT + KNOWLEDGE + (1000 + 512) * D + NORM + 6 * LAYER + 2 * PROJECTION
    + 6 * CROSS_LAYER + 1 + (TOKEN_HEAD + 31090) + (TOKEN_HEAD + 1000),
    # Zhou et al. publish no count that was found. The token head, tied to the table; those of coordinates and distances.
    "molecules/unimol": CONFORMER + (512 * 512 + 512 + 2 * 512 + 29) + 2 * (64 * 64 + 64 + 2 * 64 + 64 + 1),
    "molecules/conformer_property": CONFORMER,
    # SPMM's lower 6 layers for the source and as many for the target, its 6 fusion layers, the token head.
    "molecules/reaction": 2 * SMILES + 6 * CROSS_LAYER + (D * D + D + NORM + 300),
    # GIN of Hu et al. in the size of MolFM and MoMu: 171 atom categories, 5 layers of 300.
    "molecules/graph_property": 171 * 300 + 5 * GIN_LAYER,
}  # fmt: skip

WRITERS = {"ReactionDataModule": "write_reactions"}
"""Of synthetic data, by the data module."""

# What a recipe's data need beside a path, by domain and task.
FLAGS = {
    ("molecules", "finetune"): ["--data.targets=[activity]"],
    ("molecules", "pretrain"): [],
    ("singlecell", "finetune"): ["--data.label=[cell_type]"],
    ("singlecell", "pretrain"): ["--data.split=random"],
}


@pytest.fixture(scope="module", params=recipe_names())
def recipe(request: pytest.FixtureRequest) -> Recipe:
    return find_recipe(request.param)


@pytest.fixture(scope="module")
def flags(recipe: Recipe, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    synthetic: Any = importlib.import_module(f"polyfm.domains.{recipe.domain}.synthetic")
    write = getattr(synthetic, WRITERS.get(recipe.tree["data"]["class_path"], "write_synthetic"))
    path = write(tmp_path_factory.mktemp(recipe.domain), n=60)
    return [f"--data.path={path}", "--data.batch_size=8", *FLAGS[recipe.domain, recipe.tree["task"]]]


def test_every_recipe_has_its_count() -> None:
    assert set(PARAMETERS) == set(recipe_names())


def test_paper_size_is_built_without_memory_and_has_the_paper_s_parameters(recipe: Recipe) -> None:
    task = on_meta(lambda: RecipeParser(recipe, recipe.sized("paper"), ["--data.path=none"]).model)
    assert {parameter.device.type for parameter in task.parameters()} == {"meta"}
    trained = sum(parameter.numel() for parameter in task.parameters() if parameter.requires_grad)
    assert trained == PARAMETERS[recipe.name]


def test_small_size_is_small(recipe: Recipe) -> None:
    task = RecipeParser(recipe, recipe.sized("small"), ["--data.path=none"]).model
    assert num_parameters(task) < 5e6


class Gradients(L.Callback):
    """Keeps the losses, and which trained parameters got no gradient."""

    def __init__(self) -> None:
        self.losses: list[float] = []
        self.unused: set[str] = set()

    def on_after_backward(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        named = [(name, p) for name, p in pl_module.named_parameters() if p.requires_grad]
        self.unused |= {name for name, parameter in named if parameter.grad is None}

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.losses.append(float(outputs["loss"]))


def train(cli: RecipeParser, folder: Path, *callbacks: L.Callback) -> None:
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}
    trainer = cli.make_trainer(folder, [StepSeed(0), *callbacks], enable_checkpointing=False, **quiet)
    trainer.fit(cli.model, datamodule=cli.datamodule)


def test_small_size_trains_two_steps_and_leaves_no_parameter_unused(
    recipe: Recipe, flags: list[str], tmp_path: Path
) -> None:
    watch = Gradients()
    cli = RecipeParser(recipe, recipe.sized("small"), [*flags, "--trainer.max_steps=2"])
    before = {name: parameter.detach().clone() for name, parameter in cli.model.named_parameters()}
    train(cli, tmp_path, watch)
    assert len(watch.losses) == 2
    assert all(torch.tensor(watch.losses).isfinite())
    assert watch.unused == set()
    assert [name for name, p in cli.model.named_parameters() if name in before and not torch.equal(p, before[name])]


def test_a_run_can_be_repeated_from_its_resolved_recipe(recipe: Recipe, flags: list[str], tmp_path: Path) -> None:
    first = RecipeParser(recipe, recipe.sized("small"), [*flags, "--trainer.max_steps=2"])
    folder = RunFolder.create(tmp_path / "run")
    folder.write_recipe(first.resolved())
    tree = read_yaml(folder.recipe)
    again = RecipeParser(Recipe("run", folder.recipe, tree), tree)
    losses = []
    for cli in (first, again):
        watch = Gradients()
        train(cli, tmp_path, watch)
        losses.append(watch.losses)
    assert losses[0] == losses[1]


@pytest.mark.parametrize("name", [name for name in recipe_names() if find_recipe(name).tree["task"] == "finetune"])
def test_a_fine_tuning_recipe_learns_a_batch_by_heart(name: str, tmp_path: Path) -> None:
    recipe = find_recipe(name)
    synthetic: Any = importlib.import_module(f"polyfm.domains.{recipe.domain}.synthetic")
    path = synthetic.write_synthetic(tmp_path, n=40)
    flags = [
        f"--data.path={path}",
        *FLAGS[recipe.domain, "finetune"],
        "--data.split=random",
        "--data.batch_size=40",
        "--trainer.max_epochs=80",
    ]
    quick = ["--model.optimizer.lr=2e-3", "--model.optimizer.layer_decay=1.0", "--model.dropout=0"]
    cli = RecipeParser(recipe, recipe.sized("small"), [*flags, *quick])
    train(cli, tmp_path)
    rows = cli.datamodule.part("train")
    assert len(rows) > 25
    predictions, values = collect(cli.model, cli.datamodule, "train"), cli.datamodule.target_values(rows)
    found = cli.model.target.metrics(predictions, values)
    assert found.get("r2", found.get("accuracy", 0)) > 0.9


def test_the_folder_holds_nothing_but_recipes() -> None:
    names = {path.relative_to(RECIPES).as_posix() for path in RECIPES.rglob("*") if path.is_file()}
    expected = {f"{name}.yaml" for name in recipe_names()} | {
        "ledger.csv",
        "_base/finetune.yaml",
        "_base/pretrain.yaml",
        "_trainer/bf16.yaml",
        "_trainer/fsdp2.yaml",
    }
    assert names == expected
