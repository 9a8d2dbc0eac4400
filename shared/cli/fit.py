"""`polyfm fit`: train a recipe on data, test the best checkpoint, write the report."""

from __future__ import annotations

import contextlib
import copy
import io
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from polyfm.shared.cli.arguments import Arguments, choose_size
from polyfm.shared.data.progress import spinner
from polyfm.shared.errors import PolyfmError, UsageError
from polyfm.shared.training.recipe import Recipe, find_recipe, followers, read_yaml
from polyfm.shared.training.signals import NotFirst, Signals, Stopped, is_requeued, job

if TYPE_CHECKING:
    from polyfm.shared.evaluation.finish import Finished
    from polyfm.shared.training.init_from import InitFrom

OUT = "POLYFM_OUT"
"""By this variable the processes that a run starts, one for each device, find the folder that the first one chose."""

EPILOG = """options of the recipe (any key of its YAML):
  --data.path FILE            what to read
  --data.targets COLUMN       what to predict, in fine-tuning; several: --data.targets [A,B]; of cells: --data.label
  --data.batch_size N         samples in a step          --data.num_workers N   processes or threads that load
  --data.split NAME           how to split; the domain's README lists the names
  --trainer.max_epochs N      passes over the data       --trainer.max_time 00:00:30:00
  --trainer.precision bf16-mixed                         --trainer.accelerator cpu
  --trainer.devices N         processes, one a device    --trainer.strategy fsdp2 splits the weights among them
  --model.chunk N             pre-training: samples encoded at once; the loss stays that of the whole batch
  --model.optimizer.lr X      learning rate              --model.optimizer.layer_decay X
  --model.kind KIND           regression, binary or multiclass, if the labels do not say it
  --model.train_blocks K      fine-tuning: -1 full, 0 frozen, k the last k blocks
  --checkpoint.every_n_steps N  write checkpoints/last.ckpt more often than after each pass
  --seed_everything N         one number decides the run
  --config FILE               more YAML on top; options win over files
  --print_config              show the recipe with everything applied
  --help-all                  every option there is

examples:
  polyfm fit molecules/spmm --data.path compounds.smi --size small --out runs/spmm
  polyfm fit molecules/property --data.path F.csv --data.smiles smiles --data.targets y \\
      --init_from runs/spmm --size small --out runs/y
  polyfm fit --resume runs/y

SIGTERM and Ctrl+C end a run at the next step, with a checkpoint (exit codes 143, 130). In a SLURM job that asks for
it (#SBATCH --signal=USR1@90, srun polyfm fit ...) the run is queued again and goes on."""


def run(words: Sequence[str]) -> None:
    """Run the verb.

    Args:
        words: After ``fit``.
    """
    parser = Arguments("fit", "Train a recipe on data; the best checkpoint is tested and a report written.", EPILOG)
    parser.add_argument("recipe", nargs="?", help="a name from `polyfm list`, or a YAML file")
    parser.add_argument("--size", default="", help="small or paper; must be chosen on a CPU")
    parser.add_argument("--out", default="", help="the run's folder; runs/NAME by default")
    parser.add_argument(
        "--init_from",
        default="",
        metavar="RUN",
        help="start from the encoders of another run, or MODALITY=FOLDER: from transformers' config.json and "
        "model.safetensors (BERT family, CLIP)",
    )
    parser.add_argument(
        "--init_at_least", type=float, default=0.9, metavar="SHARE", help="of an encoder's numbers that must be found"
    )
    parser.add_argument(
        "--ensemble", type=int, default=1, metavar="N", help="train N seeds; predictions get a mean and sd"
    )
    parser.add_argument("--resume", default="", metavar="RUN", help="continue a run that stopped")
    parser.add_argument("--help-all", action="store_true", help="every option there is")
    ours, flags = parser.parse_some(words)
    if ours.resume:
        if ours.recipe or flags:
            parser.error("--resume takes the run's own recipe: give no other words")
        _resume(Path(ours.resume))
        return
    if not ours.recipe:
        parser.error("which recipe?")
    recipe = find_recipe(ours.recipe)
    if ours.help_all:
        _show(recipe, recipe.sized("small" if "small" in recipe.sizes else "paper"), ["--help"])
        return
    tree = recipe.sized(choose_size(ours.size))
    init_from: str | InitFrom = ""
    if ours.init_from:
        from polyfm.shared.training.init_from import InitFrom

        init_from = InitFrom.of(ours.init_from, ours.init_at_least)
        tree = start_from(init_from, tree)
    if "--print_config" in flags:
        _show(recipe, tree, flags)
        return
    out = Path(ours.out) if ours.out else _default_out(recipe)
    if ours.ensemble < 1:
        parser.error("--ensemble needs a number of at least 1")
    if ours.ensemble == 1:
        train(recipe, tree, flags, out, init_from=init_from)
        return
    from polyfm.shared.cli.ensemble import train_ensemble

    train_ensemble(recipe, tree, flags, out, members=ours.ensemble, init_from=init_from)


def _resume(path: Path) -> None:
    from polyfm.shared.training.run_folder import RunFolder

    if not RunFolder(path).members:
        resume(path)
        return
    from polyfm.shared.cli.ensemble import resume_ensemble

    resume_ensemble(path)


def _default_out(recipe: Recipe) -> Path:
    from polyfm.shared.training.run_folder import RunFolder, is_first, next_free

    if not is_first():
        if OUT not in os.environ:
            raise UsageError("processes that are started together need one folder", remedy="Add --out DIR")
        return Path(os.environ[OUT])
    parent, stem = Path("runs"), recipe.name.replace("/", "-")
    own = [path for path in sorted(parent.glob(f"{stem}*")) if is_requeued() and RunFolder(path).is_of_job(job())]
    unfinished = [path for path in own if not RunFolder(path).report.is_file()]
    out = unfinished[0] if unfinished else next_free(parent, stem)
    os.environ[OUT] = str(out)
    return out


def _show(recipe: Recipe, tree: dict[str, Any], flags: list[str]) -> None:
    from polyfm.shared.training.build import RecipeParser

    RecipeParser(recipe, tree, flags)


def start_from(init_from: str | Path | InitFrom, tree: dict[str, Any]) -> dict[str, Any]:
    """A recipe with the encoders of what it starts from, as they are there; of a run, its tokenizer, too.

    Args:
        init_from: Folder of the pre-trained run, or of a checkpoint that transformers wrote.
        tree: The recipe's; encoders that the run has none of stay as they are.
    """
    from polyfm.shared.deployment.inference import data_of
    from polyfm.shared.training.init_from import InitFrom, Pretrained
    from polyfm.shared.training.run_folder import RunFolder

    source = InitFrom.of(init_from)
    if source.is_transformers:
        return Pretrained(source.path).start(tree, source.modality)
    if source.modality:
        raise UsageError(
            "there is no checkpoint of transformers here (config.json and model.safetensors)",
            where=source.path,
            remedy="A run's encoders are found by their names: --init_from RUN",
        )
    folder = RunFolder.open(source.path)
    theirs = Recipe(name=source.path.name, path=folder.recipe, tree=read_yaml(folder.recipe)).tree
    available = theirs["model"]["encoders"]
    common = {name: available[name] for name in tree["model"]["encoders"] if name in available}
    if not common:
        raise UsageError(
            f"this run has encoders for {', '.join(available)}, the recipe for {', '.join(tree['model']['encoders'])}",
            where=source.path,
            remedy="Start from a run that has one of the recipe's encoders",
        )
    other = [name for name, encoder in common.items() if _extent(encoder) != _extent(tree["model"]["encoders"][name])]
    if other:
        print(f"of the size of {source.path}, whatever --size says: {', '.join(other)}")
    if fresh := [name for name in tree["model"]["encoders"] if name not in available]:
        print(f"not in {source.path}, so from scratch: {', '.join(fresh)}")
    own = tree["model"]["encoders"]
    started = copy.deepcopy({**tree, "model": {**tree["model"], "encoders": {**own, **common}}})
    base = data_of(source.path)
    if ours := {kind.__name__: kind for kind in (base, *base.__subclasses__())}.get(tree["data"]["class_path"]):
        # Items as the encoders were trained with, and no position that never was.
        for name in ours.INHERITED:
            if name in theirs["data"]["init_args"]:
                started["data"]["init_args"][name] = theirs["data"]["init_args"][name]
    return started


def _extent(encoder: dict[str, Any]) -> tuple[Any, Any]:
    """Width and depth that a recipe gives an encoder."""
    arguments = encoder.get("init_args", encoder)
    backbone = arguments.get("backbone")
    return arguments.get("width"), backbone.get("init_args", {}).get("depth") if isinstance(backbone, dict) else None


def train(
    recipe: Recipe, tree: dict[str, Any], flags: list[str], out: Path, *, init_from: str | InitFrom = ""
) -> Finished:
    """Train in a fresh folder, then test and report.

    Args:
        recipe: What is trained.
        tree: Its content at the chosen size.
        flags: The user's.
        out: The run's folder.
        init_from: What encoders, and of a run the transforms, are taken from.

    Raises:
        NotFirst: In all but the first of several processes, when training ends.
    """
    with spinner("loading libraries"):
        from polyfm.shared.training.build import RecipeParser, quiet_libraries
        from polyfm.shared.training.run_folder import RunFolder
        from polyfm.shared.training.targets.kinds import require_labels

    quiet_libraries()
    if is_requeued() and RunFolder(out).is_of_job(job()):
        return resume(out)  # a job that is queued again runs the same command again
    with _one_voice(), Signals() as signals:
        with spinner("building the model"):
            cli = RecipeParser(recipe, tree, flags)
        if tree["task"] == "finetune":
            # Before reading and splitting cost time.
            require_labels(cli.datamodule.target_names(), cli.datamodule.LABELS)
        folder = RunFolder.create(out)
        if folder.strangers:
            print(f"{out} holds other files, too, such as {folder.strangers[0]}: they stay as they are")
        with folder.locked():
            if init_from:
                take_over(cli, init_from)
            folder.write_recipe(cli.resolved())
            return _train(cli, folder, signals, resume=False)


def resume(path: Path) -> Finished:
    """Continue a run from its newest checkpoint.

    Args:
        path: The run's folder.
    """
    with spinner("loading libraries"):
        from polyfm.shared.training.build import RecipeParser, quiet_libraries
        from polyfm.shared.training.checkpoint import fitting, read_checkpoint
        from polyfm.shared.training.run_folder import RunFolder

    quiet_libraries()
    folder = RunFolder.open(path)
    last = folder.last  # refused before anything costs time
    with _one_voice(), Signals() as signals, folder.locked():
        recipe = Recipe(name=path.name, path=folder.recipe, tree=read_yaml(folder.recipe))
        cli = RecipeParser(recipe, recipe.tree)
        # Before the data are set up: fitted anew, tokens of a run that started from another one would be others, and
        # with them lengths, batches and neighbours.
        with fitting(folder.checkpoints):
            cli.datamodule.load_state_dict(read_checkpoint(last).get(type(cli.datamodule).__qualname__, {}))
        return _train(cli, folder, signals, resume=True)


@contextmanager
def _one_voice() -> Iterator[None]:
    """Of several processes the first one speaks."""
    from polyfm.shared.training.run_folder import is_first

    with contextlib.nullcontext() if is_first() else contextlib.redirect_stdout(io.StringIO()):
        yield


def take_over(cli: Any, init_from: str | Path | InitFrom) -> None:
    """Weights of encoders and fusion that both have, and the transforms they were trained with; a report of each.

    Args:
        cli: Built, not yet trained.
        init_from: What is taken from: a run, or a checkpoint that transformers wrote.
    """
    from polyfm.shared.backbones.encoder import num_parameters
    from polyfm.shared.training.checkpoint import fitting, load_weights, read_checkpoint
    from polyfm.shared.training.init_from import InitFrom, Pretrained
    from polyfm.shared.training.run_folder import RunFolder

    source = InitFrom.of(init_from)
    encoders = cli.model.model.encoders
    if source.is_transformers:
        name = source.modality or next(iter(encoders))
        what = f"{name} from {source.path}"
        pretrained = Pretrained(source.path)
        print(pretrained.load_into(encoders[name], what=what, at_least=source.at_least))
        pretrained.hand_tokenizer(cli.datamodule, name, encoders[name])
        return
    best = RunFolder.open(source.path).best
    content = read_checkpoint(best)
    with fitting(best):
        kinds = [kind.__qualname__ for kind in type(cli.datamodule).__mro__]  # its own, or that of a base
        state = next((content[name] for name in kinds if name in content), None)
        if state is not None:
            cli.datamodule.take_over(state)
        parts = {
            **{f"encoders.{name}": encoder for name, encoder in encoders.items()},
            "fusion": cli.model.model.fusion,
        }
        for path, part in parts.items():
            prefix = f"model.{path}."
            weights = {
                key.removeprefix(prefix): value
                for key, value in content["state_dict"].items()
                if key.startswith(prefix)
            }
            if weights and num_parameters(part):
                what = f"{path.removeprefix('encoders.')} from {source.path}"
                print(load_weights(part, weights, what=what, at_least=source.at_least))


def _train(cli: Any, folder: Any, signals: Signals, *, resume: bool) -> Finished:
    import torch
    from lightning.pytorch.callbacks import LambdaCallback

    from polyfm.shared.training.callbacks import Bar, Divergence, Throughput
    from polyfm.shared.training.checkpoint import RecipeInCheckpoint, fitting
    from polyfm.shared.training.seeding import StepSeed

    data = cli.datamodule
    data.setup("fit")
    data.require_room(cli.model.model.encoders)
    if resume:
        folder.require_same_data(data)
    folder.write_data(data)
    for line in data.summary():
        print(line)
    has_valid = len(data.part("valid")) > 0
    throughput = Throughput()
    checkpoint, patience = cli.config_init["checkpoint"], cli.config_init["patience"]
    if not has_valid:
        checkpoint.monitor = None
    callbacks = [
        LambdaCallback(on_fit_start=_announce),  # only now the task has its head
        StepSeed(data.seed),
        throughput,
        Divergence(),
        RecipeInCheckpoint(folder.recipe),
        checkpoint.within(folder.path, signals),
        *([patience] if has_valid else []),
    ]
    overrides: dict[str, Any] = {"enable_model_summary": False}
    if cli.config["trainer"].get("enable_progress_bar") is not False:
        callbacks.append(Bar(throughput))
    if cli.config["trainer"].get("precision") is None and torch.cuda.is_available() and torch.cuda.is_bf16_supported():
        overrides["precision"] = "bf16-mixed"
    trainer = cli.make_trainer(folder.path, callbacks, **overrides)
    whole = folder.path if cli.member < 0 else folder.path.parent
    try:
        with fitting(folder.checkpoints, trainer):
            trainer.fit(cli.model, datamodule=data, ckpt_path=folder.last if resume else None)
    except Stopped:
        if trainer.is_global_zero and folder.is_used:
            print(f"\nStopped. Continue with: polyfm fit --resume {whole}", file=sys.stderr)
        raise
    except PolyfmError:
        print()  # below the bar
        raise
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()  # what follows is the work of one process, on all the data
    if not trainer.is_global_zero:
        raise NotFirst(0)
    cli.model.to(trainer.strategy.root_device)  # Lightning leaves it on the CPU
    try:
        return _conclude(cli, folder, throughput)
    except Stopped:
        print(f"\nStopped. Test and report with: polyfm fit --resume {whole}", file=sys.stderr)
        raise


def _conclude(cli: Any, folder: Any, throughput: Any) -> Finished:
    """Test, report, and say what comes next."""
    from polyfm.shared.evaluation.finish import finish

    speed = {"samples_per_second": throughput.samples_per_second, "waiting": throughput.waiting}
    folder.write_metrics({f"train/{name}": value for name, value in speed.items()})
    finished = finish(cli, folder)
    print(f"\nReport:  {folder.report}")
    if cli.tree["task"] == "pretrain":
        print(f"Next:    polyfm embed {folder.path} NEW_FILE --out vectors.parquet")
        for name in followers(cli.recipe.domain, cli.model.model.encoders):
            print(f"         polyfm fit {name} --init_from {folder.path} --data.path LABELLED_FILE ...")
    else:
        print(f"Next:    polyfm predict {folder.path} NEW_FILE --out predictions.csv")
    return finished


def _announce(trainer: Any, task: Any) -> None:
    """What is about to be trained, and on what."""
    import torch

    from polyfm.shared.backbones.encoder import num_trained
    from polyfm.shared.training.targets.kinds import announced

    if trainer.is_global_zero:
        if (target := getattr(task, "target", None)) is not None:
            print(announced(target, task.kind))
        print(f"{num_trained(task) / 1e6:,.2f} million parameters to train, {torch.get_num_threads()} threads")
