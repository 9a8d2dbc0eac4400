"""Every mistake of some kinds that a recipe's author can make at every key: what is written, and what a message must say.

A mistake is made in the recipe as it stands after its anchors, written out with each key on a line of its own, so that
the right line is known without asking the code under test.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Iterator
from typing import Any

import yaml

KINDS = ("typo", "wrong type", "wrong parent", "missing", "missing from a size")
"""A size is laid over the recipe: what it leaves out is as there. Nothing is missing, only the numbers may not fit."""
FORM = ("class_path", "init_args")

Keys = tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Mistake:
    """One wrong recipe."""

    kind: str
    """Of `KINDS`."""
    keys: Keys
    """Path of the key that was right."""
    text: str
    """The wrong recipe."""
    size: str
    """At which the key counts."""
    word: str
    """The name that a message must hold: the key as it now stands, or, where it is gone, as it should."""
    line: int
    """Where it stands, or, where it is gone, the mapping that lacks it."""
    right: tuple[str, ...]
    """What is to be done; a message must say one of these."""


def mistakes(tree: dict[str, Any]) -> Iterator[Mistake]:
    """Every key of a recipe with every kind of mistake.

    Args:
        tree: The recipe.
    """
    tree = yaml.safe_load(write(tree))  # what aliases shared is shared no longer
    for keys in paths(tree):
        if keys == ("domain",):
            continue  # only recipes outside the package have it
        for kind, make in MAKERS.items():
            made = make(tree, keys)
            if made is not None:
                wrong, at, word, right = made
                size = (
                    keys[1] if keys[0] == "sizes" and len(keys) > 2 and keys[1] in wrong.get("sizes", {}) else "paper"
                )
                within = " from a size" if kind == "missing" and keys[0] == "sizes" and len(keys) > 2 else ""
                yield Mistake(kind + within, keys, write(wrong), size, word, line_of(wrong, at), right)


def paths(tree: dict[str, Any], above: Keys = ()) -> Iterator[Keys]:
    """Paths of all keys of mappings, in order.

    Args:
        tree: A mapping.
        above: Its own path.
    """
    for key, value in tree.items():
        yield (*above, key)
        if isinstance(value, dict):
            yield from paths(value, (*above, key))


def write(tree: dict[str, Any]) -> str:
    """YAML with each key on a line of its own, without anchors.

    Args:
        tree: A mapping.
    """
    return yaml.dump(tree, Dumper=_WithoutAnchors, sort_keys=False, width=1 << 20)


def line_of(tree: dict[str, Any], keys: Keys) -> int:
    """The line of a key in what `write` writes, from 1: keys stand in order, one a line.

    Args:
        tree: A mapping.
        keys: Path of the key; the whole recipe stands in line 1.
    """
    if not keys:
        return 1
    line, before = 1, keys
    for path in paths(tree):
        if path == before:
            return line
        value = _at(tree, path)
        lines = len(value) if isinstance(value, list) and value else 0
        line += 1 + lines
    raise KeyError(keys)


def typo(word: str) -> str:
    """Two neighbouring letters swapped, or, where that changes nothing, one doubled.

    Args:
        word: Spelt right.
    """
    i = len(word) // 2
    swapped = f"{word[: i - 1]}{word[i]}{word[i - 1]}{word[i + 1 :]}" if i else f"{word}{word}"
    return swapped if swapped != word else f"{word[:i]}{word[i]}{word[i:]}"


def _typo(tree: dict[str, Any], keys: Keys) -> tuple[dict[str, Any], Keys, str, tuple[str, ...]]:
    """A key misspelt."""
    key, wrong = keys[-1], typo(keys[-1])
    out = copy.deepcopy(tree)
    parent = _at(out, keys[:-1])
    renamed = {wrong if name == key else name: value for name, value in parent.items()}
    parent.clear()
    parent.update(renamed)
    return out, (*keys[:-1], wrong), wrong, (f"'{key}'", key)


def _wrong_type(tree: dict[str, Any], keys: Keys) -> tuple[dict[str, Any], Keys, str, tuple[str, ...]]:
    """A value of another kind, and the words of which one must say what the value should be."""
    out = copy.deepcopy(tree)
    parent, key = _at(out, keys[:-1]), keys[-1]
    value = parent[key]
    if isinstance(value, bool):
        wrong, right = "perhaps", ("true or false", "bool")
    elif isinstance(value, int | float):
        wrong, right = "several", ("a whole number", "a number", "int", "float", "must be")
    elif isinstance(value, str):
        wrong, right = [1, 2], ("a text", "the name of ", "a domain", "no choice", "must be", "pretrain or finetune")
    elif isinstance(value, list):
        wrong, right = 7, ("a list",)
    else:
        wrong, right = [1, 2], ("a mapping", "no mapping", "the keys")
    parent[key] = wrong
    return out, keys, key, right


def _wrong_parent(tree: dict[str, Any], keys: Keys) -> tuple[dict[str, Any], Keys, str, tuple[str, ...]] | None:
    """A level too high, or, at the top, in the first mapping beside it: the two slips of indentation."""
    out = copy.deepcopy(tree)
    key, above = keys[-1], keys[:-1]
    value = _at(out, above).pop(key)
    if above:
        to = above[:-1]
    else:
        to = next(((name,) for name, beside in out.items() if isinstance(beside, dict)), ())
    if not isinstance(_at(out, to), dict) or key in _at(out, to):
        return None  # there it replaces another: no slip
    _at(out, to)[key] = value
    home = ".".join(above[2:] if above[0:1] == ("sizes",) and len(above) > 2 else above)
    return out, (*to, key), key, (f"belongs under {home}" if above else "belongs at the top",)


def _missing(tree: dict[str, Any], keys: Keys) -> tuple[dict[str, Any], Keys, str, tuple[str, ...]]:
    """Left out."""
    out = copy.deepcopy(tree)
    del _at(out, keys[:-1])[keys[-1]]
    return out, keys[:-1], keys[-1], (keys[-1],)


MAKERS = {"typo": _typo, "wrong type": _wrong_type, "wrong parent": _wrong_parent, "missing": _missing}


def _at(tree: Any, keys: Keys) -> Any:
    for key in keys:
        tree = tree[key]
    return tree


class _WithoutAnchors(yaml.SafeDumper):
    def ignore_aliases(self, data: Any) -> bool:
        return True
