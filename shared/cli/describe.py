"""`polyfm describe RECIPE`: the paper, its claim, inputs, sizes and parameters."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from functools import partial
from typing import Any

from polyfm.shared.cli.arguments import Arguments
from polyfm.shared.training.recipe import RECIPES, Recipe, find_recipe


def run(words: Sequence[str]) -> None:
    """Run the verb.

    Args:
        words: After ``describe``.
    """
    parser = Arguments("describe", "The paper, its claim, inputs, sizes and parameters of a recipe.")
    parser.add_argument("recipe", help="a name from `polyfm list`, or a YAML file")
    recipe = find_recipe(parser.parse(words).recipe)
    for line in describe(recipe):
        print(line)


def describe(recipe: Recipe) -> list[str]:
    """The lines that describe a recipe.

    Args:
        recipe: Described.
    """
    from polyfm.shared.backbones.encoder import num_parameters, num_trained, on_meta

    lines = [f"{recipe.name}: {recipe.tree.get('title', '')}", f"  file        {recipe.path}"]
    if "paper" in recipe.tree:
        paper = recipe.tree["paper"]
        lines.append(f"  paper       {paper['title']} ({paper['year']}, {paper['identifier']})")
        lines.append(f"  differs     {paper['differs']}")
    row = ledger_row(recipe.name)
    if row:
        lines.append(f"  claim       {row['claim']}")
        lines.append(f"  measured    {row['measured'] or 'nothing yet'} [{row['status']}]")
    encoders = recipe.tree["model"]["encoders"]
    lines.append(f"  inputs      {', '.join(encoders)}")
    if "objectives" in recipe.tree["model"]:
        lines.append(f"  objectives  {', '.join(recipe.tree['model']['objectives'])}")
    for size in recipe.sizes:
        tree = recipe.sized(size)
        tree["data"].setdefault("init_args", {}).setdefault("path", "none")
        task: Any = on_meta(partial(_task, recipe, tree))
        each = ", ".join(f"{name} {num_parameters(part) / 1e6:.1f}M" for name, part in task.model.encoders.items())
        lines.append(f"  size {size:<6} {num_trained(task) / 1e6:,.1f} million trained parameters ({each})")
    lines.append(f"Next: polyfm check {recipe.target} --data.path YOUR_FILE --size small")
    return lines


def _task(recipe: Recipe, tree: dict[str, Any]) -> Any:
    from polyfm.shared.training.build import RecipeParser

    return RecipeParser(recipe, tree).model


def ledger_row(name: str) -> dict[str, str] | None:
    """The ledger's row of a recipe; none for task recipes.

    Args:
        name: Of the recipe.
    """
    with (RECIPES / "ledger.csv").open(encoding="utf-8", newline="") as file:
        return next((row for row in csv.DictReader(file) if row["recipe_or_component"] == name), None)
