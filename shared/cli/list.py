"""`polyfm list`: domains, recipes and data sets."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import yaml

from polyfm.shared.cli.arguments import Arguments
from polyfm.shared.training.recipe import ROOT, find_recipe, recipe_names


def run(words: Sequence[str]) -> None:
    """Run the verb.

    Args:
        words: After ``list``.
    """
    from rich.console import Console
    from rich.table import Column, Table

    Arguments("list", "Domains, recipes and data sets.").parse(words)
    console = Console()
    whole = partial(Column, no_wrap=True)  # names are to be copied from here
    left: dict[str, Any] = {"title_justify": "left", "box": None}
    recipes = Table(whole("recipe"), "task", "sizes", "what it does", title="Recipes", **left)
    for name in recipe_names():
        recipe = find_recipe(name)
        recipes.add_row(name, recipe.tree["task"], ", ".join(recipe.sizes), recipe.tree.get("title", ""))
    cards = Table(whole("data set"), "domain", "rows", "licence", "what it is", title="Data sets", **left)
    for card in data_cards():
        rows = "" if card["rows"] is None else f"{card['rows']:,}"
        cards.add_row(card["name"], card["domain"], rows, card["licence"], card["title"])
    console.print(f"Domains: {', '.join(domains())}\n", highlight=False)
    console.print(recipes)
    console.print()
    console.print(cards)
    console.print("\nNext: polyfm describe RECIPE, or data_cards/NAME.md for a data set", highlight=False)


def domains() -> list[str]:
    """Names of the domain packages."""
    # By name: shared code never imports a domain, it only looks which there are.
    return sorted(path.parent.name for path in (ROOT / "domains").glob("*/data.py"))


def data_cards() -> list[dict[str, Any]]:
    """Front matter of every data card, sorted by name."""
    cards = []
    for path in sorted((ROOT / "data_cards").glob("*.md")):
        cards.append(yaml.safe_load(path.read_text(encoding="utf-8").split("---")[1]))
    return cards
