"""What a recipe can reach: short names are unique, types are plain, every part can be named."""

from __future__ import annotations

import inspect
import types
import typing
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from polyfm.shared.training.build import DOMAIN_FILES, TASKS, RecipeParser, fields_of, register
from polyfm.shared.training.recipe import find_recipe
from polyfm.shared.training.schema import Schema, _item, _members, _part, parameters

ROOT = Path(__file__).resolve().parents[2]
DOMAINS = sorted(path.parent.name for path in (ROOT / "domains").glob("*/data.py"))

# A part that may be absent: None says so in one word, and a class that does nothing would be a name more to learn.
ABSENT_PARTS = {("Block", "cross")}


def schema(task: str, domain: str) -> Schema:
    return Schema(fields_of(task), register(domain))


def parts_in(hint: Any) -> Iterator[tuple[type, int]]:
    """Classes that a type lets a recipe name, at any depth."""
    part, item = _part(hint), _item(hint)
    if part is not None:
        yield part
    for inner in (_members(hint) or []) + ([item] if item is not None else []):
        yield from parts_in(inner)


def reachable(schema: Schema) -> dict[type, int]:
    """Every class of ours that a recipe can name, with the number of arguments that its owner gives."""
    pending, found = [(kind, 0) for hint in schema.fields.values() for kind, _ in parts_in(hint)], {}
    while pending:
        base, given = pending.pop()
        if not base.__module__.startswith("polyfm."):
            continue  # where any module of torch fits (a norm), those of torch are meant
        for kind in {base, *schema.classes(base).values()}:
            if kind in found:
                continue
            found[kind] = given
            for hint in (parameters(kind, given) or {}).values():
                pending += parts_in(hint)
    return found


@pytest.fixture(scope="module", params=[(task, domain) for task in TASKS for domain in DOMAINS], ids="-".join)
def classes(request: pytest.FixtureRequest) -> dict[type, int]:
    return reachable(schema(*request.param))


def test_the_walk_reaches_the_parts_that_recipes_are_made_of(classes: dict[type, int]) -> None:
    names = {kind.__name__ for kind in classes}
    assert {"Encoder", "Transformer", "PostNorm", "Attention", "SwiGLU", "RotaryPositions", "AdamW", "Stage"} <= names
    assert len(names) > 40


def test_short_names_are_unique() -> None:
    """Over shared/ and all domains together: a checkpoint holds short names, and one process may load several."""
    homes: dict[str, set[str]] = defaultdict(set)
    for domain in DOMAINS:
        for task in TASKS:
            for kind in reachable(schema(task, domain)):
                homes[kind.__name__].add(kind.__module__)
    assert {name: modules for name, modules in homes.items() if len(modules) > 1} == {}


def unions(hint: Any) -> Iterator[Any]:
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        yield hint
    for inner in typing.get_args(hint):
        yield from unions(inner) if not isinstance(inner, list) else ()


def test_no_type_is_a_union(classes: dict[type, int]) -> None:
    """Of a value that fits no member of a union, jsonargparse tells what is wrong with each; nobody can read it."""
    found = {
        (kind.__name__, name)
        for kind, given in classes.items()
        for name, hint in (parameters(kind, given) or {}).items()
        if list(unions(hint))
    }
    assert found == ABSENT_PARTS


def test_every_type_is_one_that_a_recipe_can_write(classes: dict[type, int]) -> None:
    """Numbers, texts, choices, parts, and lists, tuples or mappings of these."""

    def plain(hint: Any) -> bool:
        if hint in (int, float, str, bool) or typing.get_origin(hint) is typing.Literal or _part(hint) is not None:
            return True
        inner = [arg for arg in typing.get_args(hint) if arg is not Ellipsis]
        return bool(inner) and all(plain(arg) for arg in inner)

    wrong = {
        f"{kind.__name__}.{name}: {hint}"
        for kind, given in classes.items()
        for name, hint in (parameters(kind, given) or {}).items()
        if not plain(hint)
    }
    assert wrong == set()


def test_named_parts_stand_in_mappings_never_in_lists(classes: dict[type, int]) -> None:
    """An overlay can change one entry of a mapping; a list it can only replace."""
    lists = {
        f"{kind.__name__}.{name}"
        for kind, given in classes.items()
        for name, hint in (parameters(kind, given) or {}).items()
        if typing.get_origin(hint) in (list, tuple) and any(_part(arg) for arg in typing.get_args(hint))
    }
    assert lists == set()


def test_arguments_are_documented(classes: dict[type, int]) -> None:
    """`fit --help-all` shows these texts."""

    def text(kind: type, name: str) -> str:
        own = [inspect.getdoc(base) or "" for base in kind.__mro__ if base.__module__.startswith("polyfm.")]
        return "\n".join(own) + (inspect.getsource(kind) if name in getattr(kind, "__dataclass_fields__", {}) else "")

    missing = {
        f"{kind.__name__}.{name}"
        for kind, given in classes.items()
        for name in parameters(kind, given) or {}
        if f"{name}:" not in text(kind, name)
    }
    assert missing == set()


def test_modules_that_recipes_may_name_are_those_of_the_house() -> None:
    assert set(DOMAIN_FILES) == {"data", "reaction_data", "embedder", "transforms", "heads", "backbone", "objectives"}


def test_there_is_one_recipe_parser_for_all_tasks() -> None:
    recipe = find_recipe("molecules/spmm")
    assert type(RecipeParser(recipe, recipe.sized("small"), ["--data.path=x"]).model) is TASKS["pretrain"]
