"""The ledger: one honest row per published system, in step with the recipes folder."""

from __future__ import annotations

import csv
import os
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

RECIPES = Path(__file__).parents[2] / "recipes"
COLUMNS = [
    *("number", "system", "title", "class", "domain", "kind", "recipe_or_component", "owner"),
    *("claim", "mechanism", "implemented", "command", "measured", "status"),
]
DOMAINS = {"radiology", "webpages", "documents", "pointclouds", "molecules", "singlecell", "general", "shared"}
STATUSES = {"planned", "runs", "mechanism verified", "effect measured", "parity"}
NUM_SYSTEMS = 119
BESIDE_THEM = {"molecules/unimol", "singlecell/geneformer", "singlecell/scgpt"}
"""Recipes that follow a paper which is none of these systems."""


def read_ledger() -> list[dict[str, str]]:
    with (RECIPES / "ledger.csv").open(newline="", encoding="utf-8") as file:
        reader = csv.DictReader(file, strict=True)
        assert reader.fieldnames == COLUMNS
        return list(reader)


def recipes_of_papers() -> Iterator[str]:
    """Names (`molecules/spmm`) of the recipes that implement a paper; task recipes have no paper block."""
    for path in sorted(RECIPES.glob("[!_]*/*.yaml")):
        if yaml.safe_load(path.read_text(encoding="utf-8")).get("paper") is not None:
            yield path.relative_to(RECIPES).with_suffix("").as_posix()


LEDGER = read_ledger()


def test_every_system_has_exactly_one_row_in_order() -> None:
    assert [row["number"] for row in LEDGER] == [str(number) for number in range(1, NUM_SYSTEMS + 1)]
    assert len({row["system"] for row in LEDGER}) == NUM_SYSTEMS


@pytest.mark.parametrize("row", LEDGER, ids=lambda row: row["system"])
def test_row_is_complete_and_uses_the_allowed_values(row: dict[str, str]) -> None:
    # A row with a stray comma has surplus cells under None; a short one has None values.
    assert all(isinstance(value, str) and value == value.strip() for value in row.values())
    for column in ("system", "title", "class", "owner", "claim", "mechanism"):
        assert row[column], column
    assert row["domain"] in DOMAINS
    assert row["kind"] in {"recipe", "component"}
    assert row["status"] in STATUSES
    assert re.fullmatch(r"planned|issue \d+", row["owner"])
    # A recipe is named as on the command line, a component by its file; both lie in the row's own domain.
    suffix = r"[a-z0-9_]+" if row["kind"] == "recipe" else r"[a-z0-9_/]+\.py"
    assert re.fullmatch(rf"{row['domain']}/{suffix}", row["recipe_or_component"])
    if row["domain"] == "shared":
        assert row["kind"] == "component"


@pytest.mark.parametrize("row", LEDGER, ids=lambda row: row["system"])
def test_status_rests_on_what_the_row_shows(row: dict[str, str]) -> None:
    if row["status"] == "planned":
        assert not row["command"]
        assert not row["measured"]
    else:
        assert row["implemented"]
        assert row["command"]
        assert row["owner"] != "planned"
    if row["status"] in {"effect measured", "parity"}:
        assert re.search(r"\d", row["measured"]), "a measured status needs a figure"


def test_each_recipe_belongs_to_one_row() -> None:
    names = [row["recipe_or_component"] for row in LEDGER if row["kind"] == "recipe"]
    assert len(set(names)) == len(names)


def test_ledger_and_folder_agree() -> None:
    for row in LEDGER:
        name = row["recipe_or_component"]
        file = RECIPES / f"{name}.yaml" if row["kind"] == "recipe" else RECIPES.parent / name
        assert row["status"] == "planned" or file.is_file(), f"row {row['number']} is {row['status']} without {file}"
    named = {row["recipe_or_component"] for row in LEDGER if row["kind"] == "recipe"}
    assert set(recipes_of_papers()) - BESIDE_THEM <= named, (
        "a recipe with a `paper:` block needs its row in recipes/ledger.csv"
    )
    assert BESIDE_THEM <= set(recipes_of_papers()) - named


@pytest.mark.realdata
def test_titles_are_those_of_the_papers() -> None:
    text = (Path(os.environ["POLYFM_DATA"]).parent / "specs" / "systems.txt").read_text(encoding="utf-8")
    titles = dict(re.findall(r"^(\d+)\. (.+)$", text, flags=re.MULTILINE))
    assert {row["number"]: row["title"] for row in LEDGER} == titles
