"""Recipes as text: finding, reading and merging them. Nothing heavy is imported and nothing is instantiated here."""

from __future__ import annotations

import copy
import dataclasses
import difflib
import json
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import yaml

from polyfm.shared.errors import RecipeError, UsageError
from polyfm.shared.training.trust import MAX_BYTES, Distrust, vet, vet_text

ROOT = Path(__file__).resolve().parents[2]
"""Holds recipes/ and data_cards/: the checkout, or the installed package."""

RECIPES = ROOT / "recipes"
KEYS = ("title", "task", "paper", "seed_everything", "data", "model", "trainer", "checkpoint", "patience", "sizes")
"""Top-level keys of a recipe, in the order of the flow."""

ALIASES: dict[str, str] = {}
"""Former names of classes that recipes and checkpoints name, and what they are called now. An entry is never removed:
files that were written with the old name stay readable."""


@dataclasses.dataclass
class Paper:
    """The published system that a recipe follows."""

    title: str
    """Of the paper."""
    year: int
    """Of its first publication."""
    identifier: str
    """arXiv or DOI; `unverified` where it was not looked up."""
    differs: str
    """What is not as in the paper, and why."""


@dataclasses.dataclass(frozen=True)
class Recipe:
    """A recipe as read from its file."""

    name: str
    """``domain/system``, or the file's stem outside the package."""
    path: Path
    """Of the YAML file."""
    tree: dict[str, Any]
    """Its content, with the defaults of its task below it."""

    def __post_init__(self) -> None:
        """Refuse what no recipe may hold, also that of a run: its folder may come from someone else."""
        check_keys(self.tree, self.path, (*KEYS, "domain", "member"))
        if self.tree.get("task") not in ("pretrain", "finetune"):
            raise RecipeError(
                f"task must be pretrain or finetune, not {self.tree.get('task')!r}",
                where=locate(("task",), (self.path, ())),
            )

    @property
    def target(self) -> str:
        """What names it at the command line: its name, or the path of a file outside the package."""
        return self.name if self.path.is_relative_to(RECIPES) else str(self.path)

    @property
    def domain(self) -> str:
        """The domain package that must be imported before it is parsed."""
        if self.tree.get("domain"):
            return str(self.tree["domain"])
        if self.path.parent.parent == RECIPES:
            return self.path.parent.name
        raise RecipeError(
            "a recipe outside recipes/ must say its domain",
            where=self.path,
            remedy="Add a line such as domain: molecules",
        )

    @property
    def sizes(self) -> list[str]:
        """Names of its sizes; ``paper`` is the tree itself."""
        return ["paper", *self.tree.get("sizes", {})]

    def sized(self, size: str) -> dict[str, Any]:
        """The tree at a size, without ``sizes``.

        Args:
            size: A name of `sizes`.
        """
        tree = copy.deepcopy(self.tree)
        overlays = tree.pop("sizes", {})
        if size not in self.sizes:
            raise UsageError(
                f"recipe {self.name} has no size {size!r}", remedy=f"Choose one of: {', '.join(self.sizes)}"
            )
        return tree if size == "paper" else merge(tree, overlays[size])


def merge(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """``over`` on top of ``base``, key by key; another ``class_path`` drops the arguments of the old one.

    On top of a part, arguments may stand without ``init_args``.

    Args:
        base: Tree below.
        over: Tree on top.
    """
    out = dict(base)
    if "class_path" in out and not {"class_path", "init_args"} & set(over):
        over = {"init_args": over}
    if "class_path" in over and over["class_path"] != base.get("class_path"):
        out.pop("init_args", None)
    for key, value in over.items():
        below = out.get(key)
        if isinstance(below, str) and isinstance(value, Mapping):
            below = {"class_path": below}  # the short form of a part without arguments
        if isinstance(below, Mapping) and isinstance(value, Mapping):
            out[key] = merge(below, value)
        else:
            out[key] = copy.deepcopy(value)
    return out


def recipe_names() -> list[str]:
    """Names of all recipes in the package, sorted."""
    found = RECIPES.glob("*/*.yaml")
    return sorted(f"{path.parent.name}/{path.stem}" for path in found if not path.parent.name.startswith("_"))


def followers(domain: str, encoders: Iterable[str]) -> list[str]:
    """Names of the domain's fine-tuning recipes that can start from a run with these encoders.

    Args:
        domain: Of the run.
        encoders: Names of its encoders.
    """
    known = set(encoders)
    trees = {name: read_yaml(RECIPES / f"{name}.yaml") for name in recipe_names() if name.startswith(f"{domain}/")}
    tuned = {name: tree["model"]["encoders"] for name, tree in trees.items() if tree.get("task") == "finetune"}
    return [name for name, own in tuned.items() if known & set(own)]


def read_yaml(path: Path) -> dict[str, Any]:
    """A YAML mapping, read safely; parts under former names get their present ones.

    Args:
        path: Of the file.
    """
    if path.stat().st_size > MAX_BYTES:
        raise RecipeError(f"a recipe has at most {MAX_BYTES:,} bytes", where=path)
    try:
        text = path.read_text(encoding="utf-8")
        loader = yaml.SafeLoader(text)
        node = loader.get_single_node()
        vet_text(node)
        tree = None if node is None else loader.construct_document(node)
    except Distrust as refused:
        raise _refusal(refused, path) from None
    except RecursionError:
        raise RecipeError("this is nested too deep", where=path) from None
    # Beside its own errors, yaml lets through those of int(), bool tables and dates: !!bool maybe, 2024-99-99.
    except (yaml.YAMLError, ValueError, KeyError, AttributeError, TypeError) as error:
        mark = getattr(error, "problem_mark", None)
        where = f"{path}:{mark.line + 1}" if mark is not None else str(path)
        problem = getattr(error, "problem", None) or str(error)
        raise RecipeError(f"this is not valid YAML: {problem}", where=where) from None
    if not isinstance(tree, dict):
        raise RecipeError("a recipe is a mapping of keys such as data: and model:", where=path)
    renamed: dict[str, Any] = present_names(tree)
    return renamed


def present_names(tree: Any) -> Any:
    """A tree in which parts that were renamed have their present names.

    Args:
        tree: Of a recipe. Texts in lists stay: they name columns and modalities, never parts.
    """
    if isinstance(tree, dict):
        return {
            key: ALIASES.get(value, value) if isinstance(value, str) else present_names(value)
            for key, value in tree.items()
        }
    return [present_names(item) for item in tree] if isinstance(tree, list) else tree


def _refusal(refused: Distrust, path: Path) -> RecipeError:
    key = ".".join(refused.keys) or "the recipe"
    return RecipeError(f"{key} {refused.message}", where=locate(refused.keys, (path, ())), remedy=refused.remedy)


def find_recipe(target: str) -> Recipe:
    """A recipe by name (``molecules/spmm``) or by the path of a YAML file.

    Args:
        target: As a user wrote it.
    """
    _no_url(target)
    path = RECIPES / f"{target}.yaml"
    name = target
    if not path.is_file():
        path = Path(target)
        if not path.is_file():
            near = difflib.get_close_matches(target, recipe_names(), n=1, cutoff=0.4)
            hint = f"Did you mean {near[0]}? " if near else ""
            raise UsageError(
                f"there is no recipe {target!r}",
                remedy=f"{hint}`polyfm list` shows all; a path to a YAML file works too",
            )
        name = path.stem
    own = Recipe(name=name, path=path, tree=read_yaml(path))
    return dataclasses.replace(own, tree=merge(read_yaml(base_of(own.tree)), own.tree))


def _no_url(target: str) -> None:
    if "://" in target:
        raise RecipeError("recipes are read from files of this machine only", where=target, remedy="Download it first")


def base_of(tree: Mapping[str, Any]) -> Path:
    """The file of defaults for a recipe's task.

    Args:
        tree: Of the recipe.
    """
    return RECIPES / "_base" / f"{tree['task']}.yaml"


def read_overlay(path: Path) -> dict[str, Any]:
    """A YAML file that goes on top of a recipe (``--config``).

    Args:
        path: Of the file.
    """
    _no_url(str(path).replace(":/", "://"))  # a path keeps one slash of two
    if not path.is_file():
        raise UsageError("there is no such file", where=path, remedy="--config takes a YAML file")
    tree = read_yaml(path)
    check_keys(tree, path, tuple(key for key in KEYS if key not in ("task", "paper", "sizes")))
    return tree


def check_keys(tree: Mapping[str, Any], path: Path, known: Sequence[str]) -> None:
    """Refuse top-level keys that are not known, and what no recipe may hold (`trust.vet`).

    Args:
        tree: Content of a file.
        path: Of the file.
        known: Top-level keys.
    """
    for key in tree:
        if key not in known:
            near = difflib.get_close_matches(str(key), known, n=1)
            hint = f"Did you mean {near[0]!r}?" if near else _usual_place(key) or f"Known keys: {', '.join(known)}"
            raise RecipeError(f"unknown key {key!r}", where=locate((str(key),), (path, ())), remedy=hint)
    try:
        vet(tree)
    except Distrust as refused:
        raise _refusal(refused, path) from None


def _usual_place(key: Any) -> str:
    """Where other recipes have a key that stands too far left; empty if none has it."""
    found: list[tuple[int, str, str]] = []

    def look(tree: Any, at: tuple[str, ...], name: str) -> None:
        for word, value in tree.items() if isinstance(tree, Mapping) else ():
            if word == key and at:
                found.append((len(at), ".".join(at), name))
            look(value, (*at, str(word)), name)

    for name in recipe_names():
        look(read_yaml(RECIPES / f"{name}.yaml"), (), name)
    return "It belongs under {1}, as in {2}".format(*min(found)) if found else ""


def shareable(text: str) -> str:
    """A run's recipe as it may leave the machine: of files that the data are read from only the names.

    Args:
        text: YAML, as `RunFolder.write_recipe` writes it: paths are absolute.
    """
    node: yaml.Node | None = yaml.compose(text, Loader=yaml.SafeLoader)
    for key in ("data", "init_args"):
        node = _entries(node)[key][1] if key in _entries(node) else None
    values = [value for _, value in _entries(node).values()]
    values = [one for value in values for one in (value.value if isinstance(value, yaml.SequenceNode) else [value])]
    paths = [one for one in values if isinstance(one, yaml.ScalarNode) and Path(one.value).is_absolute()]
    for one in sorted(paths, key=lambda one: one.start_mark.index, reverse=True):
        name = json.dumps(Path(one.value).name, ensure_ascii=False)
        text = f"{text[: one.start_mark.index]}{name}{text[one.end_mark.index :]}"
    return text


def locate(keys: tuple[str, ...], *places: tuple[Path, tuple[str, ...]]) -> str:
    """``file:line`` of a key, where most of its path is found; of several such places the last.

    Args:
        keys: Path of the key in a tree.
        places: Files, and the path in each of what is laid into that tree.
    """
    found = []
    for path, prefix in places:
        depth, line = _line(path, (*prefix, *keys))
        found.append((depth - len(prefix), f"{path}:{line}"))
    deepest = max(depth for depth, _ in found)
    return next(where for depth, where in reversed(found) if depth == deepest)


def _line(path: Path, keys: tuple[str, ...]) -> tuple[int, int]:
    """How many of the keys a file has, one below the other, and the line of the last."""
    node = _composed(path.read_text(encoding="utf-8"))
    line, depth = 1, 0
    for key in keys:
        entries = _entries(node)
        if key not in entries and key in ("class_path", "init_args"):
            continue  # on top of a part, arguments may stand without them
        if key not in entries and "init_args" in entries:
            entries = _entries(entries["init_args"][1])  # options and messages leave them out
        if key not in entries:
            break
        line, node, depth = entries[key][0].start_mark.line + 1, entries[key][1], depth + 1
    return depth, line


@lru_cache(maxsize=8)
def _composed(text: str) -> yaml.Node | None:
    """Nodes of a YAML text with their places: a message may ask for several keys of one file."""
    return yaml.compose(text, Loader=yaml.SafeLoader)


def _entries(node: yaml.Node | None) -> dict[str, tuple[yaml.Node, yaml.Node]]:
    """Key and value nodes of a mapping, by the key; empty for what is no mapping."""
    entries = node.value if isinstance(node, yaml.MappingNode) else ()
    return {name.value: (name, value) for name, value in entries if isinstance(name, yaml.ScalarNode)}
