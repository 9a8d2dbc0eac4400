"""Recipes as text: finding, reading and merging them. Nothing heavy is imported and nothing is instantiated here."""

from __future__ import annotations

import copy
import dataclasses
import difflib
from collections.abc import Mapping
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
    def domain(self) -> str:
        """The domain package that must be imported before it is parsed."""
        data = self.tree.get("data", {})
        return str(self.tree.get("domain") or self.path.parent.name or data)

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
            raise UsageError(f"recipe {self.name} has no size {size!r}", remedy=f"Choose one of: {', '.join(self.sizes)}")
        return tree if size == "paper" else merge(tree, overlays[size])


def merge(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """``over`` on top of ``base``, key by key; another ``class_path`` drops the arguments of the old one.

    Args:
        base: Tree below.
        over: Tree on top.
    """
    out = dict(base)
    if "class_path" in over and over["class_path"] != base.get("class_path"):
        out.pop("init_args", None)
    for key, value in over.items():
        below = out.get(key)
        if isinstance(below, str) and isinstance(value, Mapping) and "class_path" not in value and "init_args" in value:
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
                f"there is no recipe {target!r}", remedy=f"{hint}`polyfm list` shows all; a path to a YAML file works too"
            )
        name = path.stem
    tree = read_yaml(path)
    _check(tree, path)
    base = read_yaml(RECIPES / "_base" / f"{tree['task']}.yaml")
    return Recipe(name=name, path=path, tree=merge(base, tree))


def _check(tree: dict[str, Any], path: Path) -> None:
    """Keys that a recipe may not have, and keys it must have."""
    known = (*KEYS, "domain")
    for key in tree:
        if key not in known:
            near = difflib.get_close_matches(str(key), known, n=1)
            hint = f"Did you mean {near[0]!r}?" if near else f"Known keys: {', '.join(known)}"
            raise RecipeError(f"unknown key {key!r}", where=locate(path, (str(key),)), remedy=hint)
    if tree.get("task") not in ("pretrain", "finetune"):
        raise RecipeError(f"task must be pretrain or finetune, not {tree.get('task')!r}", where=path)
    for forbidden in walk(tree):
        if forbidden[-1] in FORBIDDEN:
            raise RecipeError(
                f"{'.'.join(forbidden)} may not stand in a recipe",
                where=locate(path, forbidden),
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


def locate(path: Path, keys: tuple[str, ...]) -> str:
    """``file:line`` of a key, as far down as the file has it.

    Args:
        path: Of the YAML file.
        keys: Path of the key.
    """
    node = yaml.compose(path.read_text(encoding="utf-8"), Loader=yaml.SafeLoader)
    line = 1
    for key in keys:
        if not isinstance(node, yaml.MappingNode):
            break
        for name, value in node.value:
            if name.value == key:
                line, node = name.start_mark.line + 1, value
                break
        else:
            break
    return f"{path}:{line}"
