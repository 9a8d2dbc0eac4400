"""Recipes of a stranger: each is refused in one line that names the key, and nothing has happened by then."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from tests.safety.conftest import Watch

from polyfm.domains.molecules.synthetic import write_synthetic
from polyfm.shared.cli.main import main
from polyfm.shared.errors import RecipeError
from polyfm.shared.training.build import RecipeParser
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
      backbone: {class_path: Transformer, init_args: {depth: 1, block: {class_path: PostNorm, init_args: {heads: 2}}}}
  kind: auto
  optimizer: {class_path: AdamW, init_args: {lr: 1.0e-3}}
trainer:
  max_epochs: 1
sizes:
  small:
    model: {encoders: {smiles: {width: 8}}}
"""
BACKBONE, TRAINER, DATA, SMALL = (
    "class_path: Transformer,",
    "  max_epochs: 1",
    "    batch_size: 8",
    "    model: {encoders",
)
BOMB = "title: &a [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{b}: &{b} [{', '.join([f'*{a}'] * 10)}]\n" for a, b in zip("abcdefgh", "bcdefghi", strict=True)
)
MERGE_BOMB = "a: &a {k: 1}\n" + "".join(
    f"{b}: &{b} {{<<: [{', '.join([f'*{a}'] * 10)}]}}\n" for a, b in zip("abcdefgh", "bcdefghi", strict=True)
)

# What is replaced in TEXT ("" for the whole), by what, and what the message must hold: the key. CANARY, URL and OUT
# stand for the file that no attack may make, a listener on loopback, and a folder outside the run's.
HOSTILE = {
    # Lightning's own ways to load and to write
    "ckpt_path: a URL": (TRAINER, "  ckpt_path: URL", "trainer.ckpt_path"),
    "ckpt_path: a file": (TRAINER, "  ckpt_path: CANARY.ckpt", "trainer.ckpt_path"),
    "ckpt_path: last": (TRAINER, "  ckpt_path: last", "trainer.ckpt_path"),
    "ckpt_path: local, at the top": ("task: finetune", "task: finetune\nckpt_path: last.ckpt", "ckpt_path"),
    "ckpt_path: in a size": (SMALL, "    trainer: {ckpt_path: URL}\n" + SMALL, "sizes.small.trainer.ckpt_path"),
    "weights_only at the top": ("task: finetune", "task: finetune\nweights_only: false", "weights_only"),
    "weights_only": (DATA, "    weights_only: false", "data.init_args.weights_only"),
    "weights_only of the trainer": (TRAINER, "  weights_only: false", "trainer.weights_only"),
    "default_root_dir outside": (TRAINER, "  default_root_dir: OUT", "trainer.default_root_dir"),
    "default_root_dir: a bucket": (TRAINER, "  default_root_dir: s3://bucket/x", "trainer.default_root_dir"),
    "model registry": (TRAINER, "  model_registry: org/teamspace/model", "trainer.model_registry"),
    "config within a recipe": ("task: finetune", "task: finetune\nconfig: other.yaml", "config"),
    # YAML
    "tag: os.system": ("task: finetune", "task: !!python/object/apply:os.system ['touch CANARY']", "task has the tag !!python"),
    "tag: a name": ("kind: auto", "kind: !!python/name:os.system", "model.kind has the tag !!python/name"),
    "tag: a module": ("kind: auto", "kind: !!python/module:this", "model.kind has the tag !!python/module"),
    "tag: an object": ("kind: auto", "kind: !!python/object:os._wrap_close {}", "model.kind has the tag !!python/object"),
    "tag: new": ("kind: auto", "kind: !!python/object/new:os.system ['touch CANARY']", "model.kind has the tag"),
    "tag: of its own": ("kind: auto", "kind: !evil x", "model.kind has the tag !evil"),
    "tag: binary": ("kind: auto", "kind: !!binary aGVsbG8=", "model.kind has the tag !!binary"),
    "tag on a key": ("kind: auto", "!!python/name:os.system '': auto", "model has the tag"),
    "anchors bomb": ("", BOMB, "entries once aliases are written out"),
    "merge bomb": ("", MERGE_BOMB, "entries once aliases are written out"),
    "anchor within itself": ("", "title: &a [*a]\n", "title.0 stands within itself"),
    "deep nesting": ("", "title: " + "[" * 200 + "]" * 200, "title.0.0 is nested more than"),
    "nesting beyond the parser": ("", "title: " + "[" * 30_000, "nested too deep"),
    "too large": ("", "title: x\n" + "# pad\n" * 200_000, "a recipe has at most"),
    "a date that is none": ("kind: auto", "kind: 2024-99-99", "not valid YAML"),
    "a truth that is none": ("kind: auto", "kind: !!bool maybe", "not valid YAML"),
    # Parts
    "os.system": (BACKBONE, "class_path: os.system,", "'os.system' may not be named"),
    "subprocess": (BACKBONE, "class_path: subprocess.Popen,", "'subprocess.Popen' may not be named"),
    "builtins": (BACKBONE, "class_path: builtins.eval,", "'builtins.eval' may not be named"),
    "torch.load": (BACKBONE, "class_path: torch.load,", "'torch.load' may not be named"),
    "torch.hub": (BACKBONE, "class_path: torch.hub.load,", "'torch.hub.load' may not be named"),
    "read_pickle": (BACKBONE, "class_path: pandas.read_pickle,", "'pandas.read_pickle' may not be named"),
    "urlopen": (BACKBONE, "class_path: urllib.request.urlopen,", "'urllib.request.urlopen' may not be named"),
    "importer of lightning": (BACKBONE, "class_path: lightning.pytorch.cli.instantiate_class,", "instantiate_class' may not be named"),
    "importer of lightning, as the model": ("model:\n", "model:\n  class_path: lightning.pytorch.cli.instantiate_class\n", "model"),
    "re-export of torch": (BACKBONE, "class_path: torch.nn.modules.module.functools.partial,", "functools.partial' may not be named"),
    "re-export of an allowed module": (BACKBONE, "class_path: torch.nn.modules.module.torch.load,", "torch.load' may not be named"),
    "re-export of ours": (BACKBONE, "class_path: polyfm.shared.backbones.block.partial,", "partial' may not be named"),
    "module beside ours": (BACKBONE, "class_path: polyfm.shared.training.checkpoint.read_checkpoint,", "may not be named"),
    "dict_kwargs": (BACKBONE, "class_path: Transformer, dict_kwargs: {a: 1},", "'dict_kwargs' stands beside class_path"),
    "a file instead of a part": ("embedder: SmilesTokens", "embedder: OUT/part.yaml", "model.encoders.smiles.embedder"),
    "a file instead of the data": ("data:\n  class_path: MoleculeDataModule", "data:\n  class_path: OUT/part.yaml", "data"),
    "domain elsewhere": ("domain: molecules", "domain: ../../evil", "domain is no name of a domain"),
    "domain of another package": ("domain: molecules", "domain: molecules.data", "domain is no name of a domain"),
    # Callbacks, loggers, plugins
    "callback that writes elsewhere": (TRAINER, "  callbacks: [{class_path: lightning.pytorch.callbacks.ModelCheckpoint, init_args: {dirpath: ../up}}]", "trainer.callbacks.0"),
    "callback that names a file elsewhere": (TRAINER, "  callbacks: [{class_path: ModelCheckpoint, init_args: {filename: ../../x}}]", "trainer.callbacks.0"),
    "callback on exceptions": (TRAINER, "  callbacks: [{class_path: OnExceptionCheckpoint, init_args: {dirpath: OUT}}]", "trainer.callbacks.0"),
    "callback that writes a list": (TRAINER, "  callbacks: [{class_path: SpikeDetection, init_args: {exclude_batches_path: OUT/x}}]", "trainer.callbacks.0"),
    "callback that calls": (TRAINER, "  callbacks: [{class_path: LambdaCallback, init_args: {on_fit_start: os.system}}]", "trainer.callbacks.0"),
    "callback: a function": (TRAINER, "  callbacks: {class_path: os.system}", "trainer.callbacks"),
    "callback: a file of callbacks": (TRAINER, "  callbacks: OUT/callbacks.yaml", "trainer.callbacks"),
    "callback with a way out": (TRAINER, "  callbacks: [{class_path: Timer, init_args: {interval: ../../x}}]", "trainer.callbacks.0.init_args.interval"),
    "logger that connects": (TRAINER, "  logger: {class_path: WandbLogger, init_args: {project: x}}", "trainer.logger"),
    "logger that connects, in a list": (TRAINER, "  logger: [{class_path: lightning.pytorch.loggers.CometLogger}]", "trainer.logger"),
    "logger with a server": (TRAINER, "  logger: {class_path: MLFlowLogger, init_args: {tracking_uri: 'URL'}}", "trainer.logger"),
    "logger of the maker": (TRAINER, "  logger: {class_path: LitLogger}", "trainer.logger"),
    "logger that writes elsewhere": (TRAINER, "  logger: {class_path: CSVLogger, init_args: {save_dir: OUT}}", "trainer.logger"),
    "logger of the default kind": (TRAINER, "  logger: true", "trainer.logger"),
    "logger in a size": (SMALL, "    trainer: {logger: {class_path: WandbLogger}}\n" + SMALL, "sizes.small.trainer.logger"),
    "logger, a level lower": (TRAINER, "  init_args: {logger: {class_path: WandbLogger}}", "trainer.init_args.logger"),
    "checkpoint reader": (TRAINER, "  plugins: [{class_path: lightning.fabric.plugins.io.TorchCheckpointIO}]", "trainer.plugins"),
    "checkpoint reader of a strategy": (TRAINER, "  strategy: {class_path: DDPStrategy, init_args: {checkpoint_io: lightning.fabric.plugins.io.TorchCheckpointIO}}", "trainer.strategy"),
    "cluster of a strategy": (TRAINER, "  strategy: {class_path: DDPStrategy, init_args: {cluster_environment: {class_path: os.system}}}", "trainer.strategy"),
    "offload elsewhere": (TRAINER, "  strategy: {class_path: DeepSpeedStrategy, init_args: {nvme_path: OUT}}", "trainer.strategy.init_args.nvme_path"),
    "profiler that writes elsewhere": (TRAINER, "  profiler: {class_path: SimpleProfiler, init_args: {dirpath: OUT}}", "trainer.profiler"),
    "callback that is given a function": (TRAINER, "  callbacks: [{class_path: EMAWeightAveraging, init_args: {avg_fn: torch.nn.Linear}}]", "trainer.callbacks.0.init_args.avg_fn"),
    "callback that is given a part": (TRAINER, "  callbacks: [{class_path: BackboneFinetuning, init_args: {lambda_func: {class_path: torch.nn.Linear}}}]", "trainer.callbacks.0.init_args.lambda_func"),
    "waits for another machine": (TRAINER, "  num_nodes: 2", "trainer.num_nodes"),
    "accelerator: a function": (TRAINER, "  accelerator: {class_path: os.system}", "trainer.accelerator"),
    # Addresses
    "data from a URL": (DATA, "    path: URL", "data.init_args.path names a URL"),
    "data from a bucket": (DATA, "    path: s3://bucket/x.csv", "data.init_args.path names a URL"),
    "a chained address": (DATA, "    path: simplecache::URL", "data.init_args.path names a URL"),
    "a URL as a part": ("embedder: SmilesTokens", "embedder: URL", "model.encoders.smiles.embedder names a URL"),
}  # fmt: skip


def test_size_of_the_corpus() -> None:
    print(f"{len(HOSTILE)} hostile recipes")
    assert len(HOSTILE) == 75


@pytest.fixture(scope="module")
def _built_once(tmp_path_factory: pytest.TempPathFactory) -> None:
    """jsonargparse asks an interpreter for its paths when it first reads signatures: before any watch."""
    path = tmp_path_factory.mktemp("built") / "tiny.yaml"
    path.write_text(TEXT)
    recipe = find_recipe(str(path))
    RecipeParser(recipe, recipe.sized("small"), ["--data.path=x.csv"])


@pytest.fixture
def files(watch: Watch, tmp_path: Path, _built_once: None) -> Callable[[str, str], Path]:
    """Writes a hostile recipe into the folder that may be written, and data beside it."""
    write_synthetic(watch.folder, n=20)
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "callbacks.yaml").write_text("- class_path: os.system\n")
    (outside / "part.yaml").write_text("class_path: os.system\n")

    def write(old: str, new: str) -> Path:
        assert old in TEXT
        text = TEXT.replace(old, new, 1) if old else new
        for word, value in {"CANARY": watch.canary, "URL": watch.url, "OUT": outside}.items():
            text = text.replace(word, str(value))
        path = watch.folder / "hostile.yaml"
        path.write_text(text)
        return path

    return write


def test_without_an_attack_the_recipe_is_built(files: Callable[[str, str], Path], watch: Watch) -> None:
    recipe = find_recipe(str(files("", TEXT)))
    watch.on = True
    assert RecipeParser(recipe, recipe.sized("small"), ["--data.path=x.csv"]).model is not None


@pytest.mark.parametrize(("old", "new", "message"), HOSTILE.values(), ids=HOSTILE)
def test_a_hostile_recipe_is_refused(
    files: Callable[[str, str], Path],
    watch: Watch,
    capsys: pytest.CaptureFixture[str],
    old: str,
    new: str,
    message: str,
) -> None:
    path = files(old, new)
    watch.on = True
    code = main(["fit", str(path), "--size", "small", "--data.path", "data.csv", "--out", str(watch.folder / "run")])
    watch.on = False
    said = capsys.readouterr().err
    assert code == RecipeError.exit_code, said
    assert message in said
    assert said.startswith(f"polyfm: {path}")
    assert len(said.splitlines()) == 1
    assert not (watch.folder / "run").exists()


@pytest.mark.parametrize(("old", "new", "message"), HOSTILE.values(), ids=HOSTILE)
def test_it_is_refused_as_the_recipe_of_a_run_too(
    files: Callable[[str, str], Path], watch: Watch, old: str, new: str, message: str
) -> None:
    """Whoever sends the folder of a run sends a recipe."""
    path = files(old, new)
    watch.on = True
    with pytest.raises(RecipeError) as refused:
        tree = read_yaml(path)
        recipe = Recipe("run", path, tree)
        RecipeParser(recipe, recipe.sized("small"), ["--data.path=x.csv"])
    assert message in str(refused.value)


@pytest.mark.parametrize("words", [["fit", "URL"], ["fit", "molecules/spmm", "--config", "URL"], ["fit", "molecules/spmm", "--config=URL"], ["check", "URL"], ["describe", "URL"]], ids=" ".join)  # fmt: skip
def test_recipes_come_from_this_machine(watch: Watch, capsys: pytest.CaptureFixture[str], words: list[str]) -> None:
    watch.on = True
    words = [word.replace("URL", watch.url) for word in words]
    flags = [] if words[0] == "describe" else ["--size", "small", "--data.path", "x.csv"]
    assert main([*words, *flags]) == RecipeError.exit_code
    assert f"{watch.url}: recipes are read from files of this machine only" in capsys.readouterr().err


OVERLAYS = {
    "trainer: {ckpt_path: URL}\n": "trainer.ckpt_path may not stand in a recipe",
    "trainer: {logger: {class_path: WandbLogger}}\n": "trainer.logger may not stand in a recipe",
    "trainer: {callbacks: [{class_path: ModelCheckpoint, init_args: {dirpath: ../up}}]}\n": "trainer.callbacks.0",
    "data: {path: URL}\n": "data.path names a URL",
    "patience: {monitor: ../up}\n": "patience.monitor leads out of the run's folder",
    "title: !!python/name:os.system ''\n": "title has the tag !!python/name:os.system",
}


@pytest.mark.parametrize(("text", "message"), OVERLAYS.items(), ids=OVERLAYS.values())
def test_yaml_on_top_of_a_recipe_is_refused_too(
    files: Callable[[str, str], Path], watch: Watch, capsys: pytest.CaptureFixture[str], text: str, message: str
) -> None:
    path = files("", TEXT)
    overlay = watch.folder / "overlay.yaml"
    overlay.write_text(text.replace("URL", watch.url))
    watch.on = True
    words = ["fit", str(path), "--size", "small", "--data.path", "data.csv", "--config", str(overlay)]
    assert main([*words, "--out", str(watch.folder / "run")]) == RecipeError.exit_code
    assert f"{overlay}:1: {message}" in capsys.readouterr().err


def test_what_the_user_says_is_not_kept_for_others(files: Callable[[str, str], Path], watch: Watch) -> None:
    """A logger or a callback that the user names works, but does not stand in the run's recipe, which is vetted again."""
    recipe = find_recipe(str(files("", TEXT)))
    flags = [
        "--data.path=x.csv",
        f"--trainer.logger={{class_path: lightning.pytorch.loggers.CSVLogger, init_args: {{save_dir: {watch.folder}}}}}",
        "--trainer.callbacks=[{class_path: lightning.pytorch.callbacks.DeviceStatsMonitor}]",
    ]
    cli = RecipeParser(recipe, recipe.sized("small"), flags)
    kept = cli.resolved()
    assert "logger" not in kept["trainer"]
    assert kept["trainer"]["callbacks"][0]["class_path"] == "lightning.pytorch.callbacks.DeviceStatsMonitor"
    again = watch.folder / "recipe.yaml"
    again.write_text(yaml.safe_dump(kept))
    assert Recipe("run", again, read_yaml(again)).tree["model"]
