"""What a recipe may not hold, whoever wrote it: nothing that runs code, writes outside the run's folder or connects.

Parts are built from an allow-list (`build.register`); this refuses what the allow-list's own classes would do with the
arguments that a stranger chose. It looks at text only: nothing is imported, and nothing has been built yet.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import PurePosixPath
from typing import Any

import yaml

Keys = tuple[str, ...]

MAX_BYTES = 2**20
"""A recipe is a page of text."""
MAX_NODES = 100_000
"""Keys and values with every alias written out."""
MAX_DEPTH = 40
"""Mappings and lists within one another."""
TAGS = {
    f"tag:yaml.org,2002:{name}" for name in ("str", "int", "float", "bool", "null", "map", "seq", "merge", "timestamp")
}

# With these alone a recipe made Lightning fetch a URL or unpickle a file; resuming is `polyfm fit --resume RUN`.
FORBIDDEN = ("ckpt_path", "weights_only", "default_root_dir")
USERS_OWN = ("logger", "plugins", "model_registry", "num_nodes")
"""Of the trainer, what connects, listens or writes where it likes: for a user's own options, not for a recipe."""
CALLED = ("_fn", "_func")
"""How arguments of callbacks end that are called: a recipe gives them nothing."""
CALLBACKS = (
    "BackboneFinetuning",
    "DeviceStatsMonitor",
    "EarlyStopping",
    "EMAWeightAveraging",
    "GradientAccumulationScheduler",
    "LearningRateMonitor",
    "ModelSummary",
    "RichModelSummary",
    "RichProgressBar",
    "StochasticWeightAveraging",
    "ThroughputMonitor",
    "Timer",
    "TQDMProgressBar",
)
"""Lightning's callbacks that write no file of their own and call nothing that they are given."""
TEXTS = ("title", "paper")
"""Keys for people: they may name a URL."""


class Distrust(Exception):
    """Something that may not stand in a recipe.

    Args:
        keys: Its path.
        message: What it is, after the path.
        remedy: What to do instead.
    """

    def __init__(self, keys: Keys, message: str, remedy: str) -> None:
        super().__init__(message)
        self.keys, self.message, self.remedy = keys, message, remedy


def vet_text(node: yaml.Node | None) -> None:
    """Refuse YAML that would make objects, or much out of little, before anything is made of it.

    Args:
        node: Of `yaml.compose`, in which an alias is the node that it stands for.

    Raises:
        Distrust: With the path of the key.
    """
    sizes: dict[int, int] = {}
    open_nodes: set[int] = set()

    def size(node: yaml.Node, keys: Keys) -> int:
        if id(node) in open_nodes:
            raise Distrust(keys, "stands within itself", "An alias (*) may not lie within its own anchor (&)")
        if node.tag not in TAGS:
            tag = node.tag.replace("tag:yaml.org,2002:", "!!")
            raise Distrust(keys, f"has the tag {tag}", "A recipe holds plain texts, numbers, lists and mappings")
        if len(keys) > MAX_DEPTH:
            raise Distrust(keys[:3], f"is nested more than {MAX_DEPTH} deep", "Parts nest a few levels at most")
        if id(node) not in sizes:
            open_nodes.add(id(node))
            sizes[id(node)] = 1 + sum(size(below, (*keys, *name)) for name, below in _below(node))
            open_nodes.remove(id(node))
        if sizes[id(node)] > MAX_NODES:
            raise Distrust(keys, f"has more than {MAX_NODES:,} entries once aliases are written out", "Shorten it")
        return sizes[id(node)]

    if node is not None:
        size(node, ())


def _below(node: yaml.Node) -> Iterator[tuple[Keys, yaml.Node]]:
    if isinstance(node, yaml.MappingNode):
        for name, value in node.value:
            yield (), name
            yield (str(name.value) if isinstance(name, yaml.ScalarNode) else "?",), value
    elif isinstance(node, yaml.SequenceNode):
        for i, value in enumerate(node.value):
            yield (str(i),), value


def vet(tree: Mapping[str, Any]) -> None:
    """Refuse what a recipe, or YAML on top of one, may not hold, in each of its sizes.

    Args:
        tree: As read.

    Raises:
        Distrust: With the path of the key.
    """
    sizes = tree.get("sizes") or {}
    if not isinstance(sizes, Mapping):
        raise Distrust(("sizes",), "is no mapping of names to partial trees", "Write sizes: {small: {...}}")
    _vet({key: value for key, value in tree.items() if key != "sizes"}, ())
    for name, overlay in sizes.items():
        if not isinstance(overlay, Mapping):
            raise Distrust(
                ("sizes", str(name)), "is no mapping", "Write what differs at that size, such as model: {...}"
            )
        _vet(overlay, ("sizes", str(name)))


def _vet(tree: Mapping[str, Any], prefix: Keys) -> None:
    domain = tree.get("domain")
    if domain is not None and not (domain == "" or (isinstance(domain, str) and domain.isidentifier())):
        raise Distrust((*prefix, "domain"), f"is no name of a domain, {domain!r}", "`polyfm list` shows them")
    for path, value in walk(tree):
        keys = (*prefix, *path)
        if path[-1] in FORBIDDEN:
            raise Distrust(
                keys,
                "may not stand in a recipe",
                "To continue a run: polyfm fit --resume RUN; its folder is chosen with --out",
            )
        if isinstance(value, str) and path[0] not in TEXTS and "://" in value:
            raise Distrust(
                keys, f"names a URL, {value!r}", "Recipes name files of this machine only: download it first"
            )
        if isinstance(value, str) and path[0] not in (*TEXTS, "data", "model", "domain") and _leads_out(value):
            raise Distrust(keys, f"leads out of the run's folder, {value!r}", "What a run writes goes where --out says")
    trainer = tree.get("trainer")
    if isinstance(trainer, Mapping):
        _vet_trainer(trainer, (*prefix, "trainer"))
        if isinstance(trainer.get("init_args"), Mapping):
            _vet_trainer(trainer["init_args"], (*prefix, "trainer", "init_args"))


def _vet_trainer(trainer: Mapping[str, Any], at: Keys) -> None:
    for key in USERS_OWN:
        if trainer.get(key) not in (None, False, *([1] if key == "num_nodes" else [])):
            raise Distrust(
                (*at, key), "may not stand in a recipe", f"Give it yourself: --trainer.{key} on the command line"
            )
    if not isinstance(trainer.get("profiler", ""), str | None):
        raise Distrust((*at, "profiler"), "may not be built in a recipe", "Write simple or advanced")
    callbacks = trainer.get("callbacks") or []
    for i, part in enumerate(callbacks if isinstance(callbacks, list) else [callbacks]):
        name = part.get("class_path") if isinstance(part, Mapping) else part
        if str(name).rpartition(".")[2] not in CALLBACKS:
            raise Distrust(
                (*at, "callbacks", str(i)) if isinstance(callbacks, list) else (*at, "callbacks"),
                f"may not name {name!r}",
                f"Callbacks that may: {', '.join(CALLBACKS)}; checkpoints are set under checkpoint:",
            )
        for path, value in walk(part):
            if path[-1].endswith(CALLED) and value is not None:
                where = (str(i), *path) if isinstance(callbacks, list) else path
                raise Distrust((*at, "callbacks", *where), "may not be given a function in a recipe", "Leave it out")


def storable(trainer: Mapping[str, Any]) -> dict[str, Any]:
    """Of the trainer's settings those that may stand in a recipe: a run's own recipe is vetted again when it is read.

    Args:
        trainer: With the user's options applied.
    """

    def trusted(key: str, value: Any) -> bool:
        try:
            vet({"trainer": {key: value}})
        except Distrust:
            return False
        return True

    return {key: value for key, value in trainer.items() if trusted(key, value)}


def walk(tree: Any, prefix: Keys = ()) -> Iterator[tuple[Keys, Any]]:
    """Every key of a tree with its path, and what stands there; from the root on.

    Args:
        tree: Mappings and lists.
        prefix: Path of the tree itself.
    """
    entries = tree.items() if isinstance(tree, Mapping) else enumerate(tree) if isinstance(tree, list) else ()
    for key, value in entries:
        path = (*prefix, str(key))
        yield path, value
        yield from walk(value, path)


def _leads_out(value: str) -> bool:
    path = PurePosixPath(value.replace("\\", "/"))
    return path.is_absolute() or ".." in path.parts or value.startswith("~")
