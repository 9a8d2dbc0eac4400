"""Recipes as text: finding, reading and merging them. Nothing heavy is imported and nothing is instantiated here."""

from __future__ import annotations

import copy
import dataclasses
import difflib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from polyfm.shared.errors import RecipeError, UsageError

ROOT = Path(__file__).resolve().parents[2]
"""Holds recipes/ and data_cards/: the checkout, or the installed package."""

RECIPES = ROOT / "recipes"
KEYS = ("title", "task", "paper", "seed_everything", "data", "model", "trainer", "checkpoint", "patience", "sizes")
"""Top-level keys of a recipe, in the order of the flow."""

# With these alone a recipe made Lightning fetch a URL or unpickle a file; resuming is `polyfm fit --resume RUN`.
FORBIDDEN = ("ckpt_path", "weights_only", "default_root_dir")


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


def read_yaml(path: Path) -> dict[str, Any]:
    """A YAML mapping, read safely.

    Args:
        path: Of the file.
    """
    try:
        tree = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        mark = getattr(error, "problem_mark", None)
        where = f"{path}:{mark.line + 1}" if mark is not None else str(path)
        problem = getattr(error, "problem", None) or str(error)
        raise RecipeError(f"this is not valid YAML: {problem}", where=where) from None
    if not isinstance(tree, dict):
        raise RecipeError("a recipe is a mapping of keys such as data: and model:", where=path)
    return tree


def find_recipe(target: str) -> Recipe:
    """A recipe by name (``molecules/spmm``) or by the path of a YAML file.

    Args:
        target: As a user wrote it.
    """
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
    tree = read_yaml(path)
    check_keys(tree, path, (*KEYS, "domain", "member"))
    if tree.get("task") not in ("pretrain", "finetune"):
        raise RecipeError(
            f"task must be pretrain or finetune, not {tree.get('task')!r}", where=locate(("task",), (path, ()))
        )
    return Recipe(name=name, path=path, tree=merge(read_yaml(base_of(tree)), tree))


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
    if not path.is_file():
        raise UsageError("there is no such file", where=path, remedy="--config takes a YAML file")
    tree = read_yaml(path)
    check_keys(tree, path, tuple(key for key in KEYS if key not in ("task", "paper", "sizes")))
    return tree


def check_keys(tree: Mapping[str, Any], path: Path, known: Sequence[str]) -> None:
    """Refuse top-level keys that are not known, and keys that may stand nowhere.

    Args:
        tree: Content of a file.
        path: Of the file.
        known: Top-level keys.
    """
    for key in tree:
        if key not in known:
            near = difflib.get_close_matches(str(key), known, n=1)
            hint = f"Did you mean {near[0]!r}?" if near else f"Known keys: {', '.join(known)}"
            raise RecipeError(f"unknown key {key!r}", where=locate((str(key),), (path, ())), remedy=hint)
    for keys in walk(tree):
        if keys[-1] in FORBIDDEN:
            raise RecipeError(
                f"{'.'.join(keys)} may not stand in a recipe",
                where=locate(keys, (path, ())),
                remedy="To continue a run: polyfm fit --resume RUN; its folder is chosen with --out",
            )


def walk(tree: Any, prefix: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    """The paths of all keys in a tree.

    Args:
        tree: Mappings and lists.
        prefix: Path of the tree itself.
    """
    found = []
    entries = tree.items() if isinstance(tree, Mapping) else enumerate(tree) if isinstance(tree, list) else ()
    for key, value in entries:
        path = (*prefix, str(key))
        found += [path, *walk(value, path)]
    return found


def shareable(text: str) -> str:
    """A run's recipe as it may leave the machine: of the data's path only the file's name.

    Args:
        text: YAML, as `RunFolder.write_recipe` writes it.
    """
    node = yaml.compose(text, Loader=yaml.SafeLoader)
    for key in ("data", "init_args", "path"):
        if key not in _entries(node):
            return text
        node = _entries(node)[key][1]
    if not isinstance(node, yaml.ScalarNode):
        return text
    name = json.dumps(Path(node.value).name, ensure_ascii=False)
    return f"{text[: node.start_mark.index]}{name}{text[node.end_mark.index :]}"


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
    node = yaml.compose(path.read_text(encoding="utf-8"), Loader=yaml.SafeLoader)
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


def _entries(node: yaml.Node | None) -> dict[str, tuple[yaml.Node, yaml.Node]]:
    """Key and value nodes of a mapping, by the key; empty for what is no mapping."""
    return {name.value: (name, value) for name, value in node.value} if isinstance(node, yaml.MappingNode) else {}
