"""From a recipe's tree and flags to objects: Lightning's CLI underneath, and only parts of our own may be named."""

from __future__ import annotations

import contextlib
import importlib
import io
import pkgutil
import re
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning as L
import yaml
from jsonargparse import set_parsing_settings
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI

import polyfm.shared as shared
from polyfm.shared.training.recipe import FORBIDDEN, Paper, Recipe, locate, walk
from polyfm.shared.data.datamodule import DataModule
from polyfm.shared.errors import MissingExtraError, PolyfmError, RecipeError, UsageError
from polyfm.shared.training.callbacks import Checkpoint, Patience
from polyfm.shared.training.checkpoint import SafeCheckpointIO
from polyfm.shared.training.finetune import FinetuneTask
from polyfm.shared.training.pretrain import PretrainTask

TASKS: dict[str, type[L.LightningModule]] = {"pretrain": PretrainTask, "finetune": FinetuneTask}
LAYERS = ("tokens", "backbones", "objectives", "training", "data")
"""Packages of shared/ whose classes a recipe may name."""
DOMAIN_FILES = ("data", "embedder", "transforms", "heads", "backbone", "objectives")
"""Modules of a domain whose classes a recipe may name."""


def register(domain: str) -> None:
    """Import what recipes of a domain may name, and allow nothing else.

    Args:
        domain: Of the recipe.
    """
    for layer in LAYERS:
        for module in pkgutil.iter_modules([str(Path(shared.__file__).parent / layer)]):
            importlib.import_module(f"polyfm.shared.{layer}.{module.name}")
    package = f"polyfm.domains.{domain}"
    try:
        folder = Path(str(importlib.import_module(package).__file__)).parent
    except ModuleNotFoundError:
        raise RecipeError(f"there is no domain {domain!r}", remedy="`polyfm list` shows them") from None
    for name in DOMAIN_FILES:
        if (folder / f"{name}.py").is_file():
            try:
                importlib.import_module(f"{package}.{name}")
            except ModuleNotFoundError as error:
                raise MissingExtraError(str(error.name), domain) from error
    allowed = [f"polyfm.shared.{layer}" for layer in LAYERS] + [f"{package}.{name}" for name in DOMAIN_FILES]
    # Never all of lightning.pytorch: its cli module can import anything by name.
    allowed += ["torch.nn", "torch.optim", "lightning.pytorch.callbacks", "lightning.pytorch.loggers"]
    allowed += ["lightning.pytorch.strategies", "lightning.pytorch.trainer.trainer.Trainer"]
    set_parsing_settings(import_path_denylist=["*"], import_path_allowlist=allowed)


class RecipeParser(LightningCLI):
    """Parses a recipe and flags; builds the task and the data, and the trainer on demand.

    Args:
        recipe: Where the tree comes from.
        tree: The recipe at one size.
        flags: The user's, which go before the tree.
        member: Of an ensemble: another seed for weights, order and dropout; splits stay those of the seed given.
    """

    def __init__(self, recipe: Recipe, tree: dict[str, Any], flags: Sequence[str] = (), *, member: int = 0) -> None:
        self.recipe, self.tree, self.member = recipe, tree, member
        self._flags = list(flags)
        for flag in self._flags:
            if flag.lstrip("-").split("=")[0].split(".")[-1] in FORBIDDEN:
                raise UsageError(f"{flag.split('=')[0]} is not an option", remedy="Use --out DIR, or polyfm fit --resume RUN")
        register(recipe.domain)
        super().__init__(
            model_class=TASKS[tree["task"]],
            datamodule_class=DataModule,
            subclass_mode_data=True,
            save_config_callback=None,
            seed_everything_default=0,
            auto_configure_optimizers=False,
            load_from_checkpoint_support=False,
            parser_kwargs={"allow_abbrev": False, "exit_on_error": False, "prog": "polyfm fit"},
            args=[],
            run=False,
        )

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Keys beside data, model and trainer."""
        parser.add_argument("--task", type=str, help="pretrain or finetune")
        parser.add_argument("--title", type=str, default="", help="One line that says what the recipe does")
        parser.add_argument("--domain", type=str, default="", help="Domain package of a recipe outside recipes/")
        parser.add_argument("--paper", type=dict, default={}, help="The published system that the recipe follows")
        parser.add_lightning_class_args(Checkpoint, "checkpoint")
        parser.add_lightning_class_args(Patience, "patience")

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        """Parse the tree as the first ``--config``, then the user's flags."""
        if "paper" in self.tree:
            _check_paper(self.tree["paper"], self.recipe.path)
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "recipe.yaml"
            path.write_text(yaml.safe_dump(self.tree, sort_keys=False))
            noise = io.StringIO()
            try:
                with contextlib.redirect_stderr(noise):
                    self.config = parser.parse_args(["--config", str(path), *self._flags])
            except (Exception, SystemExit) as error:
                if isinstance(error, SystemExit) and not error.code:
                    raise  # --help and --print_config
                raise _explain(error, noise.getvalue(), self.recipe.path, self._flags) from error

    def instantiate_classes(self) -> None:
        """Build the data module and the task, not the trainer."""
        try:
            self.config_init = self.parser.instantiate_classes(self.config)
        except PolyfmError:
            raise
        except (ValueError, TypeError) as error:
            raise RecipeError(str(error), where=self.recipe.path) from error
        self.datamodule = self.config_init["data"]
        self.model = self.config_init["model"]
        seed = int(self.config["seed_everything"])
        self.datamodule.split_seed, self.datamodule.seed = seed, seed + 1_000 * self.member

    def _set_seed(self) -> None:
        L.seed_everything(int(self.config["seed_everything"]) + 1_000 * self.member, workers=True, verbose=False)

    def resolved(self) -> dict[str, Any]:
        """The recipe as it was run: flags applied, parts by their short names."""
        text = self.parser.dump(self.config, format="yaml", skip_none=True, skip_validation=True)
        tree = yaml.safe_load(text)
        tree.pop("config", None)
        defaults = vars(self.parser.get_defaults(skip_validation=True)["trainer"])
        tree["trainer"] = {key: value for key, value in tree.get("trainer", {}).items() if value != defaults.get(key)}
        for key in FORBIDDEN:
            tree["trainer"].pop(key, None)
        return _short_names({**tree, "domain": self.recipe.domain})

    def make_trainer(self, run: Path, callbacks: list[L.Callback], **overrides: Any) -> L.Trainer:
        """The trainer of a run.

        Args:
            run: Its folder.
            callbacks: Beside those of the recipe.
            overrides: Arguments of the Trainer that go before the recipe's.
        """
        settings = {**self.config_init["trainer"], **overrides}
        settings["callbacks"] = [*(settings.get("callbacks") or []), *callbacks]
        settings["plugins"] = [*(settings.get("plugins") or []), SafeCheckpointIO()]
        return L.Trainer(**{**settings, "default_root_dir": str(run)})


def _check_paper(paper: Any, path: Path) -> None:
    """The ``paper:`` block has the fields of `Paper`, typed."""
    fields = {field: kind for field, kind in Paper.__annotations__.items()}
    if not isinstance(paper, dict) or set(paper) != set(fields):
        raise RecipeError(f"paper needs the keys {', '.join(fields)}", where=locate(path, ("paper",)))
    for field, kind in fields.items():
        if type(paper[field]).__name__ != kind and paper[field] != "unverified":
            raise RecipeError(f"paper.{field} must be {kind}", where=locate(path, ("paper", field)))


def _short_names(tree: Any) -> Any:
    """Class paths of our own become class names: short names survive a move of the file, module paths do not."""
    if isinstance(tree, dict):
        return {
            key: value.rsplit(".", 1)[-1]
            if key == "class_path" and isinstance(value, str) and value.startswith("polyfm.")
            else _short_names(value)
            for key, value in tree.items()
        }
    return [_short_names(item) for item in tree] if isinstance(tree, list) else tree


def _explain(error: BaseException, noise: str, path: Path, flags: list[str]) -> PolyfmError:
    """One message out of jsonargparse's many: the key, what was expected, and the nearest right name."""
    import difflib

    text = str(error) if not isinstance(error, SystemExit) else noise
    unknown = re.search(r"(?:Unrecognized arguments: |Key \"?'?|[Nn]o action for key \"?'?|Unknown keys? )(--)?([\w.]+)", text)
    line = " ".join(part.strip() for part in text.strip().splitlines()[:12] if part.strip())
    keys = re.findall(r'key "([\w.]+)"', text)
    if flags and unknown and any(flag.lstrip("-").startswith(unknown.group(2)) for flag in flags):
        wrong = unknown.group(2)
        near = difflib.get_close_matches(wrong, _known_flags(), n=1)
        hint = f"Did you mean --{near[0]}?" if near else "`polyfm fit --help` shows the options"
        return UsageError(f"there is no option --{wrong}", remedy=hint)
    where = path
    if keys:
        located = locate(path, tuple(keys[0].replace(".init_args", "").split(".")))
        return RecipeError(line, where=located)
    return RecipeError(line, where=where)


def _known_flags() -> list[str]:
    """Dotted flags that users most often mean."""
    from polyfm.shared.training.recipe import RECIPES, read_yaml

    found = {".".join(key).replace(".init_args", "") for file in RECIPES.glob("*/*.yaml") for key in walk(read_yaml(file))}
    return sorted(key for key in found if not key.startswith(("sizes", "paper")))


def quiet_libraries() -> None:
    """Silence libraries that talk about things a user cannot act on."""
    import logging
    import warnings

    for name in ("lightning.pytorch", "lightning.fabric", "pytorch_lightning"):
        logging.getLogger(name).setLevel(logging.ERROR)
    for pattern in (
        ".*does not have many workers.*",  # small data are made faster than a worker process starts
        ".*The number of training batches.*",
        ".*Trying to infer the `batch_size`.*",
        ".*`isinstance\\(treespec, LeafSpec\\)`.*",
        ".*Checkpoint directory.*exists and is not empty.*",  # resuming is our own decision
        ".*'set_vital' is deprecated.*",  # torchdata calls it
        ".*Experiment logs directory.*",  # the run folder is ours; nothing in it is deleted
        ".*could not find the monitored key.*",  # a run may end before its first validation
    ):
        warnings.filterwarnings("ignore", pattern)
    if not sys.warnoptions:
        warnings.filterwarnings("ignore", category=FutureWarning)
