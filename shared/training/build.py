"""From a recipe's tree and flags to objects: Lightning's CLI underneath, and only parts of our own may be named."""

from __future__ import annotations

import difflib
import enum
import importlib
import itertools
import json
import os
import pkgutil
import re
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning as L
import torch
import yaml
from jsonargparse import ArgumentError, set_parsing_settings
from lightning.fabric.plugins.environments.slurm import SLURMEnvironment
from lightning.fabric.plugins.environments.torchelastic import TorchElasticEnvironment
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from torch import nn

from polyfm.shared.backbones.encoder import Encoder
from polyfm.shared.data.datamodule import DataModule
from polyfm.shared.errors import MissingExtraError, PolyfmError, RecipeError, UsageError, require
from polyfm.shared.training.callbacks import Checkpoint, Patience
from polyfm.shared.training.checkpoint import SafeCheckpointIO
from polyfm.shared.training.curves import Curves
from polyfm.shared.training.finetune import FinetuneTask
from polyfm.shared.training.pretrain import PretrainTask
from polyfm.shared.training.recipe import KEYS, Paper, Recipe, base_of, locate, merge, read_overlay
from polyfm.shared.training.schema import FORM, Misfit, Schema, placed
from polyfm.shared.training.trust import FORBIDDEN, storable

# Callbacks of Lightning have members of enumerations as defaults (Timer).
yaml.SafeDumper.add_multi_representer(enum.Enum, lambda dumper, member: dumper.represent_data(member.value))

TASKS: dict[str, type[L.LightningModule]] = {"pretrain": PretrainTask, "finetune": FinetuneTask}
PARTS = ("tokens", "backbones", "objectives", "training.optim", "training.gradients", "training.stages")
"""Packages and modules of shared/ whose classes a recipe may name."""
DOMAIN_FILES = ("data", "reaction_data", "embedder", "transforms", "heads", "backbone", "objectives")
"""Modules of a domain whose classes a recipe may name."""
# Never all of lightning.pytorch: its cli module can import anything by name.
LIBRARIES = (
    "torch.nn",
    "torch.optim",
    "lightning.pytorch.callbacks",
    "lightning.pytorch.loggers",
    "lightning.pytorch.strategies",
)
"""Packages of others whose classes a recipe may name, by their whole path."""


def register(domain: str) -> list[str]:
    """Import what recipes of a domain may name, and allow nothing else.

    Args:
        domain: Of the recipe.

    Returns:
        The modules and packages whose classes may be named.
    """
    allowed = [f"polyfm.shared.{part}" for part in PARTS]
    for name in allowed:
        package = importlib.import_module(name)
        for module in pkgutil.iter_modules(getattr(package, "__path__", [])):
            importlib.import_module(f"{name}.{module.name}")
    home = f"polyfm.domains.{domain}"
    try:
        folder = Path(str(importlib.import_module(home).__file__)).parent
    except ModuleNotFoundError:
        raise RecipeError(f"there is no domain {domain!r}", remedy="`polyfm list` shows them") from None
    for name in DOMAIN_FILES:
        if (folder / f"{name}.py").is_file():
            try:
                importlib.import_module(f"{home}.{name}")
            except ModuleNotFoundError as error:
                raise MissingExtraError(str(error.name), domain) from error
            allowed.append(f"{home}.{name}")
    allowed += LIBRARIES
    trainer = f"{L.Trainer.__module__}.{L.Trainer.__name__}"
    set_parsing_settings(import_path_denylist=["*"], import_path_allowlist=[*allowed, trainer])
    return allowed


class RecipeParser(LightningCLI):
    """Parses a recipe and flags; builds the task and the data, and the trainer on demand.

    Args:
        recipe: Where the tree comes from.
        tree: The recipe at one size.
        flags: The user's, which go before the tree; of ``--config`` files the last goes first.
    """

    def __init__(self, recipe: Recipe, tree: dict[str, Any], flags: Sequence[str] = ()) -> None:
        self.recipe = recipe
        size = next((size for size in recipe.sizes if recipe.sized(size) == tree), "paper")
        self._files: list[tuple[Path, tuple[str, ...]]] = [(base_of(tree), ()), (recipe.path, ())]
        if size != "paper":
            self._files.append((recipe.path, ("sizes", size)))
        overlays, self._flags = _config_files(flags)
        for path in overlays:
            tree = merge(tree, read_overlay(path))
            self._files.append((path, ()))
        self.tree = tree
        _check_paper(tree.get("paper"), recipe.path)
        self._schema = Schema(fields_of(tree["task"]), register(recipe.domain))
        self._check(self._schema)
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

    def _check(self, schema: Schema) -> None:
        """Every name in the tree and in the flags stands where a signature has it."""
        try:
            schema.check(self.tree)
        except Misfit as misfit:
            raise RecipeError(str(misfit), where=self._where(misfit.keys), remedy=misfit.remedy) from None
        for group in ("encoders", "objectives"):
            for name in self.tree["model"].get(group, {}):
                if hasattr(nn.ModuleDict, name) or "." in name:
                    raise RecipeError(
                        f"model.{group}: {name!r} is a name that torch keeps for itself",
                        where=self._where(("model", group, name)),
                        remedy=f"Choose another, such as {name.replace('.', '_')}_1",
                    )
        whole = self._check_options(schema)
        try:
            missing = schema.missing(whole)
        except Misfit:  # of options that only together make a part: jsonargparse says what is wrong
            missing = []
        for keys in () if {"--help", "--print_config"} & set(self._flags) else missing:
            option = ".".join(key for key in keys if key not in FORM)
            if keys[0] == "data":
                raise UsageError(f"--{option} is missing", remedy="`polyfm fit --help` shows the options")
            raise RecipeError(f"{'.'.join(keys)} is missing", where=self._where(keys), remedy="It has no default")

    def _check_options(self, schema: Schema) -> dict[str, Any]:
        """Every option is known and its value fits; returned is the tree with `UNKNOWN` for whatever they set."""
        self._flags = [_listed(flag, schema, self.tree) for flag in self._flags]
        whole = judged = self.tree
        for option, _, text in (flag[2:].partition("=") for flag in self._flags if flag.startswith("--")):
            option, appends = option.rstrip("+"), option.endswith("+")
            if option.rpartition(".")[2] in FORBIDDEN:
                raise UsageError(f"--{option} is not an option", remedy="Use --out DIR, or polyfm fit --resume RUN")
            if option in ("help", "print_config"):
                continue
            whole = placed(whole, option)
            try:
                schema.check(placed(judged, option))
            except Misfit as misfit:
                near = [*misfit.path[:-1], misfit.nearest] if misfit.nearest else schema.elsewhere(option, self.tree)
                hint = f"Did you mean --{'.'.join(near)}?" if near else "`polyfm fit --help-all` shows all"
                raise UsageError(f"there is no option --{option}", remedy=hint) from None
            if f"--{option}" in self._flags:
                raise UsageError(f"--{option} needs a value", remedy="`polyfm fit --help` shows how")
            value = _value(text, schema.type_of(option, judged))
            if appends or isinstance(value, dict):
                continue  # laid into what is there: jsonargparse knows how
            judged = placed(judged, option, value)
            try:
                schema.check(judged)
            except Misfit as misfit:
                is_bare = "," in text and text[0] not in "[(" and "expected a list" in misfit.message
                remedy = f"Write --{option} [{text}]" if is_bare else misfit.remedy
                raise UsageError(f"--{option}: {misfit.message}", remedy=remedy) from None
        return whole

    def _where(self, keys: tuple[str, ...]) -> str:
        return locate(keys, *self._files)

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Keys beside data, model and trainer."""
        parser.add_argument("--task", type=str, help="pretrain or finetune")
        parser.add_argument("--title", type=str, default="", help="One line that says what the recipe does")
        parser.add_argument("--domain", type=str, default="", help="Domain package of a recipe outside recipes/")
        parser.add_argument("--paper", type=dict, default={}, help="The published system that the recipe follows")
        parser.add_argument(
            "--member",
            type=int,
            default=-1,
            help="Of an ensemble, from 0: each has a seed of its own for weights, order and dropout, and the split of "
            "seed_everything (-1: none)",
        )
        parser.add_lightning_class_args(Checkpoint, "checkpoint")
        parser.add_lightning_class_args(Patience, "patience")

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        """Parse the tree as a ``--config``, then the user's flags."""
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "recipe.yaml"
            path.write_text(yaml.safe_dump(self.tree, sort_keys=False))
            try:
                self.config = parser.parse_args(["--config", str(path), *self._flags])
            except (ArgumentError, TypeError, ValueError) as error:
                raise self._explain(str(error)) from error

    def instantiate_classes(self) -> None:
        """Build the data module and the task, not the trainer."""
        encoders: list[Encoder] = []

        def make(kind: type[Encoder], **arguments: Any) -> Encoder:
            encoders.append(kind(**arguments))
            return encoders[-1]

        try:
            for limit in ("max_epochs", "max_steps"):
                given = self.config["trainer"][limit]
                fits = given is None or given == -1 or given >= 1
                require(fits, f"trainer.{limit}", "at least 1, or -1 for no limit", given)
            micro = self.config["trainer"]["accumulate_grad_batches"]
            require(micro >= 1, "trainer.accumulate_grad_batches", "at least 1", micro)
            _require_room(self.config["trainer"])
            self.config_init = self.parser.instantiate(self.config, instantiators=[(make, Encoder, True)])
        except (PolyfmError, ValueError, TypeError, RuntimeError, ArithmeticError) as error:
            cause = _cause(error)
            if not isinstance(cause, PolyfmError):
                raise RecipeError(str(error), where=self.recipe.path) from error
            raise self._located(cause, len(encoders)) from None
        self.datamodule = self.config_init["data"]
        self.model = self.config_init["model"]
        self.datamodule.split_seed, self.datamodule.seed = int(self.config["seed_everything"]), self.seed

    def _located(self, error: PolyfmError, encoders: int) -> PolyfmError:
        """An error that says where in the recipe, or in the flags, its cause stands.

        Args:
            error: Of a constructor.
            encoders: How many had been made by then: they are made first, in their order.
        """
        where = str(error.where or "")
        found = [tuple(where.split("."))] if where.partition(".")[0] in self.tree else []
        if isinstance(error.where, str) and where[:1].isupper():
            tree = self._dumped()
            found = self._schema.setting(where, error.given, tree)
            names = list(tree["model"]["encoders"])
            begun = ("model", "encoders", *names[encoders : encoders + 1])
            found = [keys for keys in found if keys[:3] == begun] or found
        paths = [".".join(key for key in keys if key not in FORM) for keys in found]
        if error.where is None:
            error.where = self.recipe.path
        elif options := [option for path in paths if (option := self._option(path))]:
            return UsageError(error.message, where=options[0], remedy=error.remedy)
        elif found:
            common = itertools.takewhile(lambda keys: len(set(keys)) == 1, zip(*found, strict=False))
            error.where = f"{self._where(tuple(keys[0] for keys in common))}: {' or '.join(paths)}"
        return error

    def _option(self, path: str) -> str:
        """The option that set what stands at a path, and the path if it set more; empty if none did."""
        for flag in self._flags:
            option, _, value = flag.partition("=")
            plain = ".".join(word for word in option[2:].split(".") if word not in FORM)
            if plain == path:
                return f"--{path}"
            if path.startswith(f"{plain}.") and value.startswith("{"):
                return f"{option}: {path}"
        return ""

    def _dumped(self) -> dict[str, Any]:
        """The recipe with flags and defaults, as jsonargparse writes it."""
        text: str = self.parser.dump(self.config, format="yaml", skip_unset=True, skip_validation=True)
        tree: dict[str, Any] = yaml.safe_load(text)
        return {key: value for key, value in tree.items() if key != "config"}

    @property
    def member(self) -> int:
        """Of an ensemble, from 0; -1 for a run of its own."""
        return int(self.config["member"])

    @property
    def seed(self) -> int:
        """Of weights, order and dropout; the split's is ``seed_everything``, the same for all members."""
        return int(self.config["seed_everything"]) + 1_000 * max(self.member, 0)

    def _set_seed(self) -> None:
        if not 0 <= self.seed < 2**32:
            raise UsageError(
                f"expected a whole number from 0 to {2**32 - 1}, not {self.seed}", where="--seed_everything"
            )
        L.seed_everything(self.seed, workers=True, verbose=False)

    def _explain(self, text: str) -> PolyfmError:
        """One message out of jsonargparse's: the key, what was expected, what was given."""
        if text.startswith("unrecognized arguments"):
            return UsageError(text, remedy="`polyfm fit --help` shows the options")
        found = re.findall(r'[Kk]ey "([\w.]+)"', text)
        keys = tuple(".".join(found).split("."))
        wanted = [kind for kind in re.findall(r"Expected an? <class '(\w+)'>", text) if kind != "NoneType"]
        given = re.search(r"(?:Got value|Given value): (.+?)\.?$", text, flags=re.MULTILINE)
        said = " ".join(text.split())
        if denied := re.search(r"Importing '([\w.]+)' is not allowed", text):
            said = f"{denied.group(1)!r} may not be named in a recipe"
        elif wanted and given:
            said = f"expected {' or '.join(dict.fromkeys(wanted))}, not {given.group(1)!r}"
        # The tree has been held against the schema: what is wrong at a place that an option goes to is the option.
        options = [flag for flag in self._flags if found and flag.startswith(f"--{found[0]}")]
        if options:
            option = max(options, key=lambda flag: bool(given and given.group(1) in flag)).split("=")[0]
            return UsageError(f"{option}: {said}")
        return RecipeError(f"{'.'.join(keys)}: {said}", where=self._where(keys))

    def resolved(self) -> dict[str, Any]:
        """The recipe as it was run: flags applied, parts by their short names.

        Paths of data are absolute, so that a run can be tested and resumed from any folder. It says where files stand
        on this machine: what is made to be passed on (`write_exchange`, the report) keeps the file's name only.
        """
        tree = self._dumped()
        if self.member < 0:
            tree.pop("member")
        defaults = vars(self.parser.get_defaults(skip_validation=True)["trainer"])
        tree["trainer"] = {key: value for key, value in tree.get("trainer", {}).items() if value != defaults.get(key)}
        tree["trainer"] = storable(tree["trainer"])  # loggers that the user chose are not for whoever reads the recipe
        data = tree["data"]["init_args"]
        for name in type(self.datamodule).FILES:
            data[name] = _absolute(data[name])
        resolved: dict[str, Any] = _short_names({**tree, "domain": self.recipe.domain})
        return resolved

    def make_trainer(self, run: Path, callbacks: list[L.Callback], **overrides: Any) -> L.Trainer:
        """The trainer of a run.

        Args:
            run: Its folder.
            callbacks: Beside those of the recipe.
            overrides: Arguments of the Trainer that go before the recipe's.
        """
        settings = {**self.config_init["trainer"], **overrides}
        settings["callbacks"] = [*_as_list(settings.get("callbacks")), *callbacks]
        if "logger" not in overrides:
            settings["logger"] = [Curves(run), *_as_list(settings.get("logger"))]
        settings["plugins"] = [*(settings.get("plugins") or []), SafeCheckpointIO()]
        # The data module deals out batches to processes itself, in equal numbers and resumable.
        settings |= {"default_root_dir": str(run), "use_distributed_sampler": False}
        if settings.get("num_nodes", 1) == 1:
            settings["num_nodes"] = _nodes()
        try:
            return L.Trainer(**settings)
        except (MisconfigurationException, ValueError, TypeError, RuntimeError, ImportError) as error:
            options = [flag for flag in self._flags if flag.startswith("--trainer.")]
            meant = [flag for flag in options if set(flag[10:].split("=", 1)) & set(re.findall(r"[\w.-]+", str(error)))]
            where = ", ".join(flag.replace("=", " ", 1) for flag in meant or options) or self._where(("trainer",))
            raise RecipeError(f"Lightning refuses this trainer: {error}", where=where) from error


def _require_room(trainer: Any) -> None:
    """On a CPU each of the devices is a process with a model of its own: a slip of the finger fills the memory."""
    devices, accelerator = trainer["devices"], trainer["accelerator"]
    on_cpu = accelerator == "cpu" or (accelerator == "auto" and not torch.cuda.is_available())
    room = max(os.cpu_count() or 1, 2)
    if on_cpu and str(devices).isdecimal():
        require(1 <= int(devices) <= room, "trainer.devices", f"1 to {room} processes on this machine's CPU", devices)


def _nodes() -> int:
    """Machines of the job, as its launcher tells: no recipe holds them, and a run may go on on other ones."""
    if SLURMEnvironment.detect():
        return int(os.environ.get("SLURM_NNODES", 1))
    if TorchElasticEnvironment.detect():
        return int(os.environ.get("GROUP_WORLD_SIZE", 1))
    return 1


def fields_of(task: str) -> dict[str, Any]:
    """Types of a recipe's top-level keys.

    Args:
        task: A key of `TASKS`.
    """
    plain = {"task": str, "title": str, "domain": str, "paper": Any, "seed_everything": int, "member": int}
    parts = {"data": DataModule, "model": TASKS[task], "trainer": L.Trainer}
    return {**plain, **parts, "checkpoint": Checkpoint, "patience": Patience}


def _config_files(flags: Sequence[str]) -> tuple[list[Path], list[str]]:
    """The ``--config`` files among flags, and the other flags, each with its value as one word."""
    joined: list[str] = []
    for word in flags:
        if joined and joined[-1].startswith("--") and "=" not in joined[-1] and not word.startswith("--"):
            joined[-1] += f"={word}"
        else:
            joined.append(word)
    files = [Path(word.partition("=")[2]) for word in joined if word.partition("=")[0] == "--config"]
    return files, [word for word in joined if word.partition("=")[0] != "--config"]


def _listed(flag: str, schema: Schema, tree: dict[str, Any]) -> str:
    """A flag as it is, but of an option that takes a list of texts a single one becomes a list of one."""
    option, given, value = flag.partition("=")
    if not given or value.startswith("[") or schema.type_of(option[2:], tree) != list[str]:
        return flag
    return f"{option}={json.dumps([value], ensure_ascii=False)}"


def _absolute(path: str | list[str]) -> str | list[str]:
    """Paths from the root of the file system; the empty one stays."""
    if isinstance(path, list):
        return [str(Path(one).absolute()) for one in path]
    return path and str(Path(path).absolute())


def _as_list(given: Any) -> list[Any]:
    """What Lightning takes alone or in a list; none for what is switched off."""
    return given if isinstance(given, list) else [given] if given else []


def _value(text: str, hint: Any) -> Any:
    """What the text of an option stands for; what YAML cannot read is the text itself."""
    if hint in (str, Any):
        return text
    try:
        return yaml.safe_load(text)
    except (yaml.YAMLError, ValueError):
        return text


def _check_paper(paper: Any, path: Path) -> None:
    """The ``paper:`` block, if there is one, has the fields of `Paper`, typed."""
    if not paper:
        return
    fields = Paper.__annotations__
    for name in paper if isinstance(paper, dict) else ():
        if name not in fields:
            near = difflib.get_close_matches(str(name), fields, n=1)
            hint = f"Did you mean {near[0]!r}?" if near else f"Known: {', '.join(fields)}"
            raise RecipeError(
                f"paper has no {name!r}",
                where=locate(("paper", str(name)), (path, ())),
                remedy="It belongs at the top of the recipe" if name in KEYS else hint,
            )
    if not isinstance(paper, dict) or set(paper) != set(fields):
        raise RecipeError(f"paper needs the keys {', '.join(fields)}", where=locate(("paper",), (path, ())))
    for field, kind in fields.items():
        if type(paper[field]).__name__ != kind and paper[field] != "unverified":
            raise RecipeError(f"paper.{field} must be {kind}", where=locate(("paper", field), (path, ())))


def _cause(error: BaseException) -> BaseException:
    """The error of ours that a library wrapped into its own, if there is one."""
    inner: BaseException | None = error
    while inner is not None and not isinstance(inner, PolyfmError):
        inner = inner.__cause__ or inner.__context__
    return error if inner is None else inner


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


def quiet_libraries() -> None:
    """Silence libraries that talk about things a user cannot act on."""
    import logging
    import warnings

    for name in ("lightning.pytorch", "lightning.fabric", "pytorch_lightning"):
        logging.getLogger(name).setLevel(logging.ERROR)
    for pattern in (
        ".*Total length of `list` across ranks is zero.*",  # a split may have no validation part
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
