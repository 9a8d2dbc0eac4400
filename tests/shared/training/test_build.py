"""From recipe and flags to objects: what is built, what is refused, and in which words."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from polyfm.shared.errors import PolyfmError, RecipeError, UsageError
from polyfm.shared.training.build import LIBRARIES, RecipeParser, register
from polyfm.shared.training.finetune import FinetuneTask
from polyfm.shared.training.pretrain import PretrainTask
from polyfm.shared.training.recipe import Recipe, find_recipe, read_yaml

TEXT = """\
title: "tiny"
task: finetune
domain: molecules
data:
  class_path: MoleculeDataModule
  init_args:
    modalities: [smiles]
    batch_size: 8
model:
  encoders:
    smiles:
      width: 16
      embedder: SmilesTokens
      backbone:
        class_path: Transformer
        init_args:
          depth: 1
          block: {class_path: PostNorm, init_args: {heads: 2}}
  kind: auto
  optimizer: {class_path: AdamW, init_args: {lr: 1.0e-3}}
trainer:
  max_epochs: 2
sizes:
  small:
    model: {encoders: {smiles: {width: 8}}}
"""

Build = Callable[..., RecipeParser]


@pytest.fixture
def build(tmp_path: Path) -> Build:
    def make(*flags: str, change: tuple[str, str] = ("", ""), size: str = "paper", path: str = "x.csv") -> RecipeParser:
        file = tmp_path / "tiny.yaml"
        assert change[0] in TEXT
        file.write_text(TEXT.replace(*change, 1) if change[0] else TEXT)
        recipe = find_recipe(str(file))
        return RecipeParser(recipe, recipe.sized(size), [f"--data.path={path}", *flags])

    return make


class TestBuilding:
    def test_a_recipe_becomes_task_and_data(self, build: Build) -> None:
        cli = build()
        assert isinstance(cli.model, FinetuneTask)
        assert cli.model.model.encoders["smiles"].width == 16
        assert (cli.datamodule.batch_size, cli.datamodule.path) == (8, "x.csv")
        assert build(size="small").model.model.encoders["smiles"].width == 8

    def test_layers_have_weights_of_their_own(self, build: Build) -> None:
        blocks = (
            build("--model.encoders.smiles.backbone.init_args.depth=2").model.model.encoders["smiles"].backbone.blocks
        )
        assert len(blocks) == 2
        assert not torch.equal(blocks[0].feed_forward.inner.weight, blocks[1].feed_forward.inner.weight)

    @pytest.mark.parametrize(
        "flags",
        [
            ["--model.optimizer.lr=0.5"],
            ["--model.optimizer.lr", "0.5"],
            ["--model.optimizer.init_args.lr=5e-1"],
            ["--model.optimizer", "{class_path: AdamW, init_args: {lr: 0.5}}"],
        ],
    )
    def test_flags_win(self, build: Build, flags: list[str]) -> None:
        assert build(*flags).model.optimizer.lr == 0.5

    def test_config_files_are_laid_on_top_of_one_another(self, build: Build, tmp_path: Path) -> None:
        """Key by key, without repeating classes; the last file wins, and flags win over all."""
        first, second = tmp_path / "first.yaml", tmp_path / "second.yaml"
        first.write_text(
            "model: {encoders: {smiles: {backbone: {init_args: {depth: 3}}}}, optimizer: {lr: 0.2, floor: 0.5}}\n"
        )
        second.write_text("model: {optimizer: {lr: 0.3}}\ntrainer: {max_epochs: 7}\n")
        cli = build(f"--config={first}", "--config", str(second), "--trainer.max_epochs=9")
        assert len(cli.model.model.encoders["smiles"].backbone.blocks) == 3
        assert cli.model.model.encoders["smiles"].backbone.blocks[0].attention.heads == 2
        assert (cli.model.optimizer.lr, cli.model.optimizer.floor) == (0.3, 0.5)
        assert cli.config["trainer"]["max_epochs"] == 9

    def test_the_seed_decides_weights_and_data(self, build: Build) -> None:
        def first(cli: RecipeParser) -> torch.Tensor:
            weight: torch.Tensor = cli.model.model.encoders["smiles"].embedder.table.weight
            return weight

        assert torch.equal(first(build("--seed_everything=3")), first(build("--seed_everything=3")))
        other = build("--seed_everything=4")
        assert not torch.equal(first(build("--seed_everything=3")), first(other))
        assert (other.datamodule.seed, other.datamodule.split_seed) == (4, 4)

    def test_members_of_an_ensemble_share_the_split_and_nothing_else(self, tmp_path: Path) -> None:
        file = tmp_path / "tiny.yaml"
        file.write_text(TEXT)
        recipe = find_recipe(str(file))
        members = [
            RecipeParser(recipe, recipe.sized("small"), ["--data.path=x.csv", f"--member={member}"])
            for member in (0, 1)
        ]
        assert [cli.datamodule.split_seed for cli in members] == [0, 0]
        assert [cli.datamodule.seed for cli in members] == [0, 1000]
        weights = [cli.model.model.encoders["smiles"].embedder.table.weight for cli in members]
        assert not torch.equal(*weights)

    def test_the_resolved_recipe_of_a_member_builds_that_member_again(self, build: Build, tmp_path: Path) -> None:
        cli = build("--seed_everything=7", "--member=2")
        tree = cli.resolved()
        assert (tree["seed_everything"], tree["member"]) == (7, 2)
        file = tmp_path / "recipe.yaml"
        file.write_text(yaml.safe_dump(tree))
        again = RecipeParser(Recipe("run", file, read_yaml(file)), read_yaml(file))
        assert (again.datamodule.split_seed, again.datamodule.seed, again.member) == (7, 2007, 2)
        ours, theirs = (made.model.model.encoders["smiles"].embedder.table.weight for made in (cli, again))
        assert torch.equal(ours, theirs)

    def test_a_run_of_its_own_is_no_member(self, build: Build) -> None:
        cli = build("--seed_everything=7")
        assert (cli.member, cli.datamodule.seed, cli.datamodule.split_seed) == (-1, 7, 7)
        assert "member" not in cli.resolved()

    def test_the_resolved_recipe_builds_the_same_again(self, build: Build, tmp_path: Path) -> None:
        cli = build("--model.optimizer.lr=0.5", "--data.targets=[y]", size="small")
        tree = cli.resolved()
        assert tree["domain"] == "molecules"
        assert tree["trainer"] == {
            "max_epochs": 2,
            "gradient_clip_val": 1.0,
            "log_every_n_steps": 10,
            "num_sanity_val_steps": 0,
        }
        assert (
            tree["model"]["encoders"]["smiles"]["init_args"]["backbone"]["class_path"] == "Transformer"
        )  # no module path
        assert "polyfm." not in yaml.safe_dump(tree)
        file = tmp_path / "run" / "recipe.yaml"
        file.parent.mkdir()
        file.write_text(yaml.safe_dump(tree))
        again = RecipeParser(Recipe("run", file, read_yaml(file)), read_yaml(file))
        assert again.resolved() == tree
        assert again.model.optimizer.lr == 0.5
        assert again.datamodule.targets == ["y"]

    def test_the_path_of_the_data_is_kept_so_that_it_is_found_from_anywhere(self, build: Build) -> None:
        assert build(path="x.csv").resolved()["data"]["init_args"]["path"] == str(Path.cwd() / "x.csv")
        assert build(path="/data/x.csv").resolved()["data"]["init_args"]["path"] == "/data/x.csv"
        assert build(path="x.csv").datamodule.path == "x.csv"  # what a user sees is what was given

    @pytest.mark.parametrize(
        ("flags", "targets"),
        [
            (["--data.targets=y"], ["y"]),
            (["--data.targets", "y"], ["y"]),
            (["--data.targets", "log P, [measured]: 'x'"], ["log P, [measured]: 'x'"]),
            (["--data.targets=7"], ["7"]),
            (["--data.targets", "[y, z]"], ["y", "z"]),
            (["--data.targets+=y", "--data.targets+=z"], ["y", "z"]),
        ],
    )
    def test_a_single_name_is_a_list_of_one(self, build: Build, flags: list[str], targets: list[str]) -> None:
        assert build(*flags).datamodule.targets == targets

    def test_print_config_shows_everything_and_stops(self, build: Build, capsys: pytest.CaptureFixture[str]) -> None:
        with pytest.raises(SystemExit) as stop:
            build("--print_config", "--model.optimizer.lr=0.5")
        assert not stop.value.code
        shown = yaml.safe_load(capsys.readouterr().out)
        assert shown["model"]["optimizer"]["init_args"]["lr"] == 0.5
        assert shown["trainer"]["max_epochs"] == 2

    def test_the_trainer_reads_and_writes_checkpoints_safely(self, build: Build, tmp_path: Path) -> None:
        trainer = build().make_trainer(tmp_path, [], logger=False, enable_checkpointing=False)
        assert type(trainer.strategy.checkpoint_io).__name__ == "SafeCheckpointIO"
        assert trainer.max_epochs == 2
        assert trainer.default_root_dir == str(tmp_path)


# Wrong recipes: what is changed in TEXT, and the message; its line is the line that was changed.
WRONG_RECIPES = {
    "key of the task": ("  kind: auto", "  kinds: auto", "model: FinetuneTask has no 'kinds'. Did you mean 'kind'?"),
    "key of an encoder": ("      width: 16", "      widht: 16", "model.encoders.smiles: Encoder has no 'widht'. Did you mean 'width'?"),
    "argument": ("          depth: 1", "          dept: 1", "model.encoders.smiles.backbone: Transformer has no 'dept'. Did you mean 'depth'?"),
    "argument in one line": ("{heads: 2}", "{head: 2}", "model.encoders.smiles.backbone.block: PostNorm has no 'head'. Did you mean 'heads'?"),
    "argument of the data": ("    batch_size: 8", "    batchsize: 8", "data: MoleculeDataModule has no 'batchsize'. Did you mean 'batch_size'?"),
    "key of the trainer": ("  max_epochs: 2", "  max_epoch: 2", "trainer: Trainer has no 'max_epoch'. Did you mean 'max_epochs'?"),
    "class": ("Transformer", "Transfromer", "model.encoders.smiles.backbone: there is no Backbone named 'Transfromer'. Did you mean 'Transformer'?"),
    "class in short": ("embedder: SmilesTokens", "embedder: SmileTokens", "model.encoders.smiles.embedder: there is no Embedder named 'SmileTokens'. Did you mean 'SmilesTokens'?"),
    "class of the data": ("MoleculeDataModule", "MoleculeData", "data: there is no DataModule named 'MoleculeData'. Did you mean 'MoleculeDataModule'?"),
    "class of another kind": ("class_path: Transformer", "class_path: PostNorm", "model.encoders.smiles.backbone: there is no Backbone named 'PostNorm'. Known: "),
    "type: a word for a number": ("      width: 16", "      width: wide", "model.encoders.smiles.width: expected a whole number, not 'wide'"),
    "type: a fraction": ("          depth: 1", "          depth: 1.5", "model.encoders.smiles.backbone.depth: expected a whole number, not 1.5"),
    "type: a word for a rate": ("{lr: 1.0e-3}", "{lr: fast}", "model.optimizer.lr: expected a number, not 'fast'"),
    "type: one for many": ("modalities: [smiles]", "modalities: smiles", "data.modalities: expected a list, not 'smiles'"),
    "type of the trainer": ("  max_epochs: 2", "  max_epochs: many", "trainer.max_epochs: expected a whole number, not 'many'"),
    "choice": ("  kind: auto", "  kind: regresion", "model.kind: 'regresion' is no choice. Did you mean 'regression'?"),
    "value: a modality": ("modalities: [smiles]", "modalities: [smile]", "data.modalities: molecules have no modality 'smile'. Choose from: smiles, properties, descriptors, fingerprint, features, graph"),
    "value: of a part": ("          depth: 1", "          depth: -1", "model.encoders.smiles.backbone.depth: expected at least 0 blocks, not -1"),
    "value: of what a part passes on": ("{heads: 2}", "{heads: 3}", "model.encoders.smiles.backbone.block.heads: expected a divisor of the width 16, not 3"),
    "value: of a part without a class": ("      width: 16", "      width: 0", "model.encoders.smiles.width: expected at least 1, not 0"),
    "top-level key": ("trainer:", "trianer:", "unknown key 'trianer'. Did you mean 'trainer'?"),
    "a name of torch's": ("    smiles:\n", "    keys:\n", "model.encoders: 'keys' is a name that torch keeps for itself. Choose another, such as keys_1"),
    "os.system": ("class_path: Transformer", "class_path: os.system", "model.encoders.smiles.backbone: 'os.system' may not be named in a recipe"),
    "torch.load": ("class_path: Transformer", "class_path: torch.load", "'torch.load' may not be named in a recipe"),
    "torch.hub": ("class_path: Transformer", "class_path: torch.hub.load", "'torch.hub.load' may not be named in a recipe"),
    "a function that a module of ours imports": ("class_path: Transformer", "class_path: polyfm.shared.backbones.block.partial", "'polyfm.shared.backbones.block.partial' may not be named in a recipe"),
    "a function of ours": ("class_path: Transformer", "class_path: polyfm.shared.backbones.encoder.on_meta", "'polyfm.shared.backbones.encoder.on_meta' may not be named in a recipe"),
    "lightning's own importer": ("class_path: Transformer", "class_path: lightning.pytorch.cli.instantiate_class", "'lightning.pytorch.cli.instantiate_class' may not be named in a recipe"),
    "another domain's or a stranger's module": ("class_path: Transformer", "class_path: this_package.would.be.imported", "'this_package.would.be.imported' may not be named in a recipe"),
    "a callback that imports": ("  max_epochs: 2", "  callbacks: [{class_path: lightning.pytorch.cli.SaveConfigCallback}]", "trainer.callbacks.0 may not name 'lightning.pytorch.cli.SaveConfigCallback'. Callbacks that may: "),
    "ckpt_path": ("  max_epochs: 2", "  ckpt_path: https://example.org/x", "trainer.ckpt_path may not stand in a recipe"),
    "default_root_dir": ("  max_epochs: 2", "  default_root_dir: /", "trainer.default_root_dir may not stand in a recipe"),
    "weights_only": ("    batch_size: 8", "    weights_only: false", "data.init_args.weights_only may not stand in a recipe"),
}  # fmt: skip


def test_size_of_the_corpus_of_wrong_recipes() -> None:
    print(f"{len(WRONG_RECIPES)} wrong recipes, {len(WRONG_FLAGS)} wrong options")
    assert (len(WRONG_RECIPES), len(WRONG_FLAGS)) == (33, 38)


@pytest.mark.parametrize(("old", "new", "message"), WRONG_RECIPES.values(), ids=WRONG_RECIPES)
def test_a_wrong_recipe_is_one_message_with_its_line(
    build: Build, tmp_path: Path, old: str, new: str, message: str
) -> None:
    with pytest.raises(RecipeError) as error:
        build(change=(old, new))
    line = next(i for i, text in enumerate(TEXT.replace(old, new, 1).splitlines(), 1) if new.splitlines()[0] in text)
    said = str(error.value)
    assert "\n" not in said
    assert message in said
    assert re.match(rf"{tmp_path}/tiny.yaml:({line}|{line - 1}): ", said), said  # the key, or the part that it names
    assert error.value.exit_code == 4


TWO = """\
    smiles:
      width: 16
      embedder: SmilesTokens
      backbone: {class_path: Transformer, init_args: {depth: 1, block: {class_path: PostNorm, init_args: {heads: 4}}}}
    descriptors:
      width: 24
      embedder: SmilesTokens
      backbone: {class_path: Transformer, init_args: {depth: 1, block: {class_path: PostNorm, init_args: {heads: 4}}}}
"""
ONE = TEXT[TEXT.index("    smiles:") : TEXT.index("  kind: auto")]
HEADS = ".backbone.block.heads: expected a divisor of the width "


@pytest.mark.parametrize(
    ("options", "old", "new", "message"),
    [
        ([], "width: 24", "width: 30", f"tiny.yaml:18: model.encoders.descriptors{HEADS}30, not 4"),
        ([], "width: 16", "width: 30", f"tiny.yaml:14: model.encoders.smiles{HEADS}30, not 4"),
        (
            ["--model.encoders.descriptors.width=30"],
            "",
            "",
            f"tiny.yaml:18: model.encoders.descriptors{HEADS}30, not 4",
        ),
        (
            ["--model.encoders.smiles.backbone.block.heads=3"],
            *("heads: 4}}}}\n    d", "heads: 2}}}}\n    d"),
            f"--model.encoders.smiles{HEADS}16, not 3",
        ),
        (
            ["--model.encoders.smiles.width=32", "--model.encoders.descriptors.width=0"],
            *("", ""),
            "--model.encoders.descriptors.width: expected at least 1, not 0",
        ),
    ],
    ids=["second", "first", "its width by option", "by option", "another one's width by option"],
)
def test_of_several_alike_the_part_at_fault_is_named(
    build: Build, options: list[str], old: str, new: str, message: str
) -> None:
    with pytest.raises(PolyfmError) as error:
        build(*options, change=(ONE, TWO.replace(old, new, 1)))
    assert message in str(error.value)


def test_options_that_make_a_part_together(build: Build) -> None:
    with pytest.raises(PolyfmError, match="--model.encoders.smiles.backbone") as error:
        build("--model.encoders.smiles.backbone=GAT", "--model.encoders.smiles.backbone.heads=3")
    assert "\n" not in str(error.value)


def test_what_is_refused_is_not_imported(build: Build, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "stranger.py").write_text("raise SystemExit('code of a recipe ran')")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(RecipeError, match="'stranger.Part' may not be named in a recipe"):
        build(change=("class_path: Transformer", "class_path: stranger.Part"))
    with pytest.raises(PolyfmError, match="'stranger.Part' may not be named in a recipe"):
        build("--trainer.logger=stranger.Part")
    with pytest.raises(UsageError, match="^--model.encoders.smiles.backbone: 'stranger.Part' may not be named"):
        build("--model.encoders.smiles.backbone=stranger.Part")
    assert "stranger" not in sys.modules


WRONG_FLAGS = {
    "--model.kinds=auto": "there is no option --model.kinds. Did you mean --model.kind?",
    "--data.batchsize=3": "there is no option --data.batchsize. Did you mean --data.batch_size?",
    "--trainer.max_epoch=3": "there is no option --trainer.max_epoch. Did you mean --trainer.max_epochs?",
    "--model.optimizer.learn=3": "there is no option --model.optimizer.learn. `polyfm fit --help-all` shows all",
    "--model.encoders.smiles.backbone.dept=3": "Did you mean --model.encoders.smiles.backbone.depth?",
    "--batch_size=3": "there is no option --batch_size. Did you mean --data.batch_size?",
    "--max_epochs=3": "there is no option --max_epochs. Did you mean --trainer.max_epochs?",
    "--seed=3": "there is no option --seed. Did you mean --seed_everything?",
    "--nonsense": "there is no option --nonsense. `polyfm fit --help-all` shows all",
    "stray": "unrecognized arguments: stray. `polyfm fit --help` shows the options",
    "--trainer.max_epochs=many": "--trainer.max_epochs: expected a whole number, not 'many'",
    "--model.optimizer.lr=fast": "--model.optimizer.lr: expected a number, not 'fast'",
    "--data.batch_size=few": "--data.batch_size: expected a whole number, not 'few'",
    "--ckpt_path=x": "--ckpt_path is not an option. Use --out DIR, or polyfm fit --resume RUN",
    "--trainer.default_root_dir=x": "--trainer.default_root_dir is not an option",
    "--trainer.weights_only=false": "--trainer.weights_only is not an option",
    "--data.targets": "--data.targets needs a value. `polyfm fit --help` shows how",
    "--data.fractions=0.8,0.1,0.1": "--data.fractions: expected a list of 3 numbers, not '0.8,0.1,0.1'. Write --data.fractions [0.8,0.1,0.1]",
    "--data.fractions=[0.5,0.5]": "--data.fractions: expected a list of 3 numbers, not [0.5, 0.5]",
    "--data.tokenizer=BPETokenizer": "there is no SmilesTokenizer named 'BPETokenizer'. Did you mean 'BpeTokenizer'?",
    "--data.tokenizer.vocabulary=30": "--data.tokenizer.vocabulary: expected at least",
    "--model.optimizer=SGD": "--model.optimizer: there is no AdamW named 'SGD'. Known: AdamW",
    "--trainer.precision=foo": "--trainer.precision: expected one of 64, 32, 16 or one of transformer-engine",
    "--model.optimizer.lr=-1": "--model.optimizer.lr: expected more than 0, not -1",
    "--model.dropout=2": "--model.dropout: expected a share from 0 to less than 1, not 2",
    "--model.hidden=-5": "--model.hidden: expected at least 1, or 0 for a linear head, not -5",
    "--model.train_blocks=99": "--model.train_blocks: expected -1, or 0 to 1 blocks, not 99",
    "--data.batch_size=0": "--data.batch_size: expected at least 1, not 0",
    "--data.max_tokens=1": "--data.max_tokens: expected at least 3",
    "--data.token_budget=-1": "--data.token_budget: expected at least 1, or 0 for none, not -1",
    "--data.fields=gon": "--data.fields: expected one of gin, full, not 'gon'",
    "--model.encoders.smiles.width=0": "--model.encoders.smiles.width: expected at least 1, not 0",
    "--model.encoders.smiles.backbone.block.heads=3": "--model.encoders.smiles.backbone.block.heads: expected a divisor of the width 16, not 3",
    "--model.encoders.smiles.backbone.block.heads=0": "--model.encoders.smiles.backbone.block.heads: expected a divisor of the width 16, not 0",
    "--model.encoders.smiles.backbone.init_args.depth=-1": "--model.encoders.smiles.backbone.depth: expected at least 0 blocks, not -1",
    "--model.encoders.smiles.backbone={class_path: Transformer, init_args: {depth: -1}}": "--model.encoders.smiles.backbone: model.encoders.smiles.backbone.depth: expected at least 0 blocks, not -1",
    "--data.init_args.batch_size=0": "--data.batch_size: expected at least 1, not 0",
    "--patience.patience=-1": "--patience.patience: expected at least 1, or 0 for never, not -1",
}


@pytest.mark.parametrize(("flag", "message"), WRONG_FLAGS.items(), ids=WRONG_FLAGS)
def test_a_wrong_option_is_one_message(build: Build, flag: str, message: str) -> None:
    with pytest.raises(UsageError) as error:
        build(flag)
    assert message in str(error.value)
    assert "\n" not in str(error.value)
    assert error.value.exit_code == 2


@pytest.mark.parametrize("flag", ["--data.batch=3", "--trainer.max_e=3", "--seed_every=3", "--model.optim.lr=1"])
def test_abbreviations_are_off(build: Build, flag: str) -> None:
    with pytest.raises(UsageError, match="there is no option"):
        build(flag)


def test_a_mistake_in_a_config_file_is_told_its_file_and_line(build: Build, tmp_path: Path) -> None:
    over = tmp_path / "over.yaml"
    over.write_text("trainer:\n  max_epochs: 3\nmodel:\n  optimizer:\n    rate: 0.1\n")
    with pytest.raises(RecipeError, match=f"^{over}:5: model.optimizer: AdamW has no 'rate'"):
        build(f"--config={over}")


def test_a_mistake_in_a_size_is_told_its_line(build: Build, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=f"^{tmp_path}/tiny.yaml:25: model.encoders.smiles: Encoder has no 'wdith'"):
        build(change=("{width: 8}", "{wdith: 8}"), size="small")


@pytest.mark.parametrize(
    ("paper", "message"),
    [
        ("{title: x}", "paper needs the keys title, year, identifier, differs"),
        ("{title: x, year: twenty, identifier: y, differs: z}", "paper.year must be int"),
        ("[1]", "paper needs the keys"),
    ],
)
def test_the_paper_block_is_typed(build: Build, paper: str, message: str) -> None:
    with pytest.raises(RecipeError, match=f"tiny.yaml:2: {message}"):
        build(change=("task: finetune", f"paper: {paper}\ntask: finetune"))


@pytest.mark.parametrize(
    ("field", "message"),
    [
        ("yaer", "paper has no 'yaer'. Did you mean 'year'?"),
        ("doi", "paper has no 'doi'. Known: title, year, identifier, differs"),
        ("trainer", "paper has no 'trainer'. It belongs at the top of the recipe"),
    ],
)
def test_a_field_that_no_paper_has(build: Build, field: str, message: str) -> None:
    with pytest.raises(RecipeError, match="tiny.yaml:3: ") as error:
        build(change=("task: finetune", f"paper:\n  {field}: x\ntask: finetune"))
    assert str(error.value).endswith(message)


@pytest.mark.parametrize(
    ("objective", "where"),
    [("InfoNCE", "4: model.objectives.align"), ("{class_path: InfoNCE}", "4: model.objectives.align")],
)
def test_an_objective_is_told_by_the_name_that_it_has_in_the_recipe(tmp_path: Path, objective: str, where: str) -> None:
    path = tmp_path / "pretrain.yaml"
    encoders = (
        "{smiles: {width: 8, embedder: SmilesTokens, backbone: {class_path: Transformer, init_args: {depth: 1}}}}"
    )
    path.write_text(
        "{task: pretrain, domain: molecules, data: MoleculeDataModule, model: {\n"
        f"  encoders: {encoders},\n  objectives: {{\n    align: {objective}}}}}}}\n"
    )
    recipe = find_recipe(str(path))
    with pytest.raises(RecipeError, match="no pair of encoders has a projection") as error:
        RecipeParser(recipe, recipe.sized("paper"), ["--data.path=x.csv"])
    assert str(error.value).startswith(f"{path}:{where}: ")


def test_a_year_that_was_not_looked_up_may_say_so(build: Build) -> None:
    paper = "paper: {title: x, year: unverified, identifier: unverified, differs: z}"
    assert build(change=("task: finetune", f"{paper}\ntask: finetune")).model


def test_an_unknown_domain(build: Build) -> None:
    with pytest.raises(RecipeError, match="there is no domain 'alchemy'. `polyfm list` shows them"):
        build(change=("domain: molecules", "domain: alchemy"))


def test_what_may_be_named_is_listed_and_never_all_of_lightning() -> None:
    allowed = register("molecules")
    assert all(
        name.startswith(("polyfm.shared.", "polyfm.domains.molecules.")) or name in LIBRARIES for name in allowed
    )
    assert "lightning.pytorch" not in allowed
    assert not [name for name in allowed if "lightning.pytorch.cli".startswith(name)]
    assert not [name for name in allowed if name.split(".")[-1] in ("checkpoint", "build", "recipe", "run_folder")]


def test_both_tasks_can_be_built_in_one_process() -> None:
    spmm = find_recipe("molecules/spmm")
    assert isinstance(RecipeParser(spmm, spmm.sized("small"), ["--data.path=x"]).model, PretrainTask)
    other = find_recipe("molecules/property")
    assert isinstance(RecipeParser(other, other.sized("small"), ["--data.path=x"]).model, FinetuneTask)


def test_no_state_leaks_from_one_task_into_another() -> None:
    """Default parts are shared objects: nothing may be written into them."""
    spmm = find_recipe("molecules/spmm")
    tasks: list[Any] = [RecipeParser(spmm, spmm.sized("small"), ["--data.path=x"]).model for _ in range(2)]
    tasks[0].stage_weights = {"match": 0.0}
    assert tasks[1].stage_weights == {}
    assert tasks[0].gradients is not tasks[1].gradients


def test_options_after_one_that_chooses_a_part(build: Build) -> None:
    built = build("--model.encoders.smiles.pooling", "Mean", "--trainer.max_steps", "2")
    assert type(built.model.model.encoders["smiles"].pooling).__name__ == "Mean"


def test_of_several_options_the_wrong_one_is_told(build: Build) -> None:
    words = ("--data.batch_size", "4", "--data.fractions", "half", "--data.num_workers", "0")
    with pytest.raises(UsageError, match=r"^--data.fractions: expected a list of 3 numbers, not 'half'"):
        build(*words)


def test_a_value_of_a_file_is_refused_at_its_line(build: Build) -> None:
    with pytest.raises(RecipeError, match=r"tiny.yaml:8: data.batch_size: expected at least 1, not 0"):
        build(change=("batch_size: 8", "batch_size: 0"))


def test_a_callback_of_lightning_alone_or_in_a_list(build: Build, tmp_path: Path) -> None:
    for flag in ("--trainer.callbacks=Timer", "--trainer.callbacks=[{class_path: Timer}]"):
        cli = build(flag)
        assert "Timer" in yaml.safe_dump(cli.resolved())
        assert type(cli.make_trainer(tmp_path, []).callbacks[0]).__name__ == "Timer"
