"""Every key of every recipe, mistyped, of a wrong type, at a wrong place, or left out: does the message help?

A mistake that leaves a recipe that builds (a key with a default left out, an objective under another name) is none. Of
the others is counted which message names the key with file and line, and which says the right remedy.
"""

from __future__ import annotations

import random
import re
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
import yaml
from tests.errors.mistakes import KINDS, Mistake, mistakes, typo

from polyfm.shared.backbones.encoder import on_meta
from polyfm.shared.errors import RecipeError
from polyfm.shared.training.build import RecipeParser
from polyfm.shared.training.recipe import RECIPES, find_recipe, read_yaml, recipe_names

NAMED, SUGGESTED = 0.90, 0.85
SAMPLE = 80
MIXED = {
    "data": {"class_path": "D", "init_args": {"a": 1, "b": [1, 2]}},
    "model": {"c": True},
    "sizes": {"small": {"model": {"c": False}}},
    "domain": "x",
}


def test_the_corpus_is_what_it_says() -> None:
    found = {(mistake.kind, ".".join(mistake.keys)): mistake for mistake in mistakes(MIXED)}
    assert Counter(kind for kind, _ in found) == {
        "typo": 11, "wrong type": 11, "wrong parent": 11, "missing": 9, "missing from a size": 2,
    }  # fmt: skip
    typo = found["typo", "data.init_args"]
    assert (typo.word, typo.text.splitlines()[typo.line - 1]) == ("ini_targs", "  ini_targs:")
    assert yaml.safe_load(found["wrong type", "model.c"].text)["model"] == {"c": "perhaps"}
    moved = found["wrong parent", "sizes.small.model.c"]
    assert yaml.safe_load(moved.text)["sizes"]["small"] == {"model": {}, "c": False}
    assert (moved.size, moved.right) == ("small", ("belongs under model",))
    lost = found["missing", "data.init_args.b"]
    assert lost.text.splitlines()[lost.line - 1] == "  init_args:"


def corpus() -> list[tuple[str, Mistake]]:
    """Every mistake in every recipe, with the recipe's name."""
    return [(name, mistake) for name in recipe_names() for mistake in mistakes(tree_of(name))]


def tree_of(name: str) -> dict[str, Any]:
    return {**read_yaml(RECIPES / f"{name}.yaml"), "domain": name.partition("/")[0]}


def error_of(path: Path, text: str, size: str = "paper") -> Exception | None:
    """What building a recipe raises; nothing is allocated and nothing read."""
    path.write_text(text)
    label = "--data.label=y" if "domain: singlecell" in text else "--data.targets=[y]"
    labels = [label] if "task: finetune" in text else []
    try:
        recipe = find_recipe(str(path))
        on_meta(lambda: RecipeParser(recipe, recipe.sized(size), ["--data.path=x.csv", *labels]).model)
    except Exception as error:  # whatever it is: an error of another kind is counted as no help
        return error
    return None


def judge(cases: Iterable[tuple[str, Mistake]], path: Path) -> dict[str, Counter[str]]:
    """By kind: how many mistakes, how many are none, how many were named, and for how many the remedy was right."""
    counts = {kind: Counter[str]() for kind in KINDS}
    for name, mistake in cases:
        error, count = error_of(path, mistake.text, mistake.size), counts[mistake.kind]
        if error is None:
            count["harmless"] += 1
            continue
        helps = isinstance(error, RecipeError)
        said, remedy = str(error), getattr(error, "remedy", "") or ""
        named = helps and mistake.word in said and said.startswith(f"{path}:{mistake.line}:")
        # What was meant stands in the remedy, and nothing longer; what is expected, or missing, in the message.
        meant = mistake.kind in ("typo", "wrong parent")
        right = helps and any(
            re.search(rf"{re.escape(word)}(?![\w.]*\w)", remedy) if meant else word in said for word in mistake.right
        )
        count.update(cases=1, named=named, right=right)
        if not (named and right):
            print(f"{name}: {mistake.kind} of {'.'.join(mistake.keys)}: {said.splitlines()[0]}")
    return counts


def shares(counts: dict[str, Counter[str]]) -> dict[str, tuple[float, float]]:
    """Prints the table; by kind, and in total, the shares that were named and rightly remedied."""
    table = {**counts, "total": sum(counts.values(), Counter[str]())}
    found = {}
    for kind, count in table.items():
        cases = max(count["cases"], 1)
        found[kind] = count["named"] / cases, count["right"] / cases
        print(
            f"{kind:<20} {count['cases']:>5} mistakes ({count['harmless']} more are none): "
            f"{count['named'] / cases:.1%} named with file and line, {count['right'] / cases:.1%} with the right remedy"
        )
    return found


def test_a_sample_of_all_mistakes_in_all_recipes(tmp_path: Path) -> None:
    cases = corpus()
    print(f"{len(cases)} mistakes, of which {SAMPLE} are made here")
    assert len(cases) >= 1_100
    found = shares(judge(random.Random(0).sample(cases, SAMPLE), tmp_path / "recipe.yaml"))
    assert found["total"][0] >= NAMED
    assert found["total"][1] >= SUGGESTED


@pytest.mark.full
@pytest.mark.timeout(3_600)
def test_all_mistakes_in_all_recipes(tmp_path: Path) -> None:
    found = shares(judge(corpus(), tmp_path / "recipe.yaml"))
    for kind in set(found) - {"missing from a size"}:
        assert found[kind][0] >= NAMED, kind
        assert found[kind][1] >= SUGGESTED, kind


@pytest.mark.full
@pytest.mark.parametrize("name", recipe_names())
def test_lines_are_right_where_a_recipe_has_anchors(name: str, tmp_path: Path) -> None:
    """In the file as its author wrote it: several keys in a line, parts that stand elsewhere."""
    path, text = tmp_path / "recipe.yaml", (RECIPES / f"{name}.yaml").read_text(encoding="utf-8")
    right, said = 0, []
    for key in keys_of(yaml.compose(text, Loader=yaml.SafeLoader)):
        wrong = f"{text[: key.start_mark.index]}{typo(key.value)}{text[key.end_mark.index :]}"
        error = error_of(path, f"{wrong}\ndomain: {name.partition('/')[0]}\n")
        if error is not None:
            said.append(str(error))
            right += f"{path}:{key.start_mark.line + 1}:" in said[-1] and typo(key.value) in said[-1]
    print(f"{name}: {len(said)} mistakes, {right / len(said):.1%} named with file and line")
    assert right >= NAMED * len(said)


def keys_of(node: yaml.Node) -> list[yaml.ScalarNode]:
    """Keys of all mappings; what several aliases name once."""
    found: dict[int, yaml.ScalarNode] = {}
    for key, value in node.value if isinstance(node, yaml.MappingNode) else ():
        for one in (key, *keys_of(value)):
            found[one.start_mark.index] = one
    return list(found.values())
