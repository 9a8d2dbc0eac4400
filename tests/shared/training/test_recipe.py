"""Recipes as text: finding, merging, sizes, and where in a file a key stands."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from polyfm.shared.errors import RecipeError, UsageError
from polyfm.shared.training.recipe import (
    RECIPES,
    Recipe,
    find_recipe,
    followers,
    locate,
    merge,
    read_overlay,
    read_yaml,
    recipe_names,
    shareable,
)
from polyfm.shared.training.trust import FORBIDDEN

TREE = """\
task: finetune
domain: molecules
data: {class_path: MoleculeDataModule, init_args: {batch_size: 8}}
model:
  encoders:
    smiles: &one
      width: 16
      backbone: {class_path: Transformer, init_args: {depth: 2}}
    other: *one
sizes:
  small:
    model: {encoders: {smiles: {width: 8}}}
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "mine.yaml"
    path.write_text(TREE)
    return path


class TestMerge:
    def test_key_by_key(self) -> None:
        base = {"a": {"b": 1, "c": {"d": 2}}, "e": [1, 2]}
        assert merge(base, {"a": {"c": {"d": 3, "f": 4}}, "e": [5]}) == {"a": {"b": 1, "c": {"d": 3, "f": 4}}, "e": [5]}
        assert base == {"a": {"b": 1, "c": {"d": 2}}, "e": [1, 2]}

    def test_arguments_go_on_top_of_a_part(self) -> None:
        base = {"part": {"class_path": "A", "init_args": {"x": 1, "y": 2}}}
        expected = {"part": {"class_path": "A", "init_args": {"x": 3, "y": 2}}}
        assert merge(base, {"part": {"init_args": {"x": 3}}}) == expected
        assert merge(base, {"part": {"x": 3}}) == expected
        assert merge(base, {"part": {"class_path": "A", "init_args": {"x": 3}}}) == expected

    def test_another_class_drops_the_arguments_of_the_old_one(self) -> None:
        base = {"part": {"class_path": "A", "init_args": {"x": 1}}}
        assert merge(base, {"part": {"class_path": "B"}}) == {"part": {"class_path": "B"}}
        assert merge(base, {"part": "B"}) == {"part": "B"}

    @pytest.mark.parametrize("over", [{"init_args": {"x": 1}}, {"x": 1}])
    def test_the_short_form_takes_arguments(self, over: dict[str, Any]) -> None:
        merged = merge({"part": "A"}, {"part": over})
        assert merged == {"part": {"class_path": "A", "init_args": {"x": 1}}}

    @given(st.recursive(st.integers(), lambda x: st.dictionaries(st.sampled_from("abc"), x, max_size=3), max_leaves=8))
    def test_nothing_and_itself_change_nothing(self, tree: Any) -> None:
        base = {"root": tree}
        assert merge(base, {}) == base
        assert merge(base, base) == base
        assert merge({}, base) == base


class TestFinding:
    def test_every_recipe_of_the_package_is_found_by_name(self) -> None:
        assert recipe_names()
        for name in recipe_names():
            recipe = find_recipe(name)
            assert (recipe.name, recipe.domain) == (name, name.split("/")[0])
            assert recipe.tree["seed_everything"] == 0  # from the defaults of its task
            assert not name.startswith("_")

    def test_a_path_is_found_too(self, file: Path) -> None:
        recipe = find_recipe(str(file))
        assert (recipe.name, recipe.domain) == ("mine", "molecules")
        assert recipe.tree["trainer"]["max_epochs"] == 100  # the defaults of fine-tuning

    def test_a_wrong_name_is_told_the_nearest(self) -> None:
        with pytest.raises(UsageError, match=r"there is no recipe 'molecules/spm'. Did you mean molecules/spmm\?"):
            find_recipe("molecules/spm")
        with pytest.raises(UsageError, match="`polyfm list` shows all; a path to a YAML file works too"):
            find_recipe("zzzzzz")

    def test_a_recipe_elsewhere_must_say_its_domain(self, file: Path) -> None:
        file.write_text(TREE.replace("domain: molecules\n", ""))
        with pytest.raises(RecipeError, match=r"must say its domain. Add a line such as domain: molecules"):
            _ = find_recipe(str(file)).domain

    @pytest.mark.parametrize("task", ["task: training", "title: x"])
    def test_the_task_must_be_known(self, file: Path, task: str) -> None:
        file.write_text(TREE.replace("task: finetune", task))
        with pytest.raises(RecipeError, match=f"{file}:1: task must be pretrain or finetune, not"):
            find_recipe(str(file))


class TestKeys:
    def test_an_unknown_top_level_key_is_told_its_line_and_the_nearest(self, file: Path) -> None:
        file.write_text(TREE.replace("sizes:", "size:"))
        with pytest.raises(RecipeError, match=f"{file}:10: unknown key 'size'. Did you mean 'sizes'?"):
            find_recipe(str(file))
        file.write_text("whatever: 1\n" + TREE)
        with pytest.raises(RecipeError, match=f"{file}:1: unknown key 'whatever'. Known keys: title, task"):
            find_recipe(str(file))

    def test_a_key_too_far_left_is_told_where_other_recipes_have_it(self, file: Path) -> None:
        file.write_text("encoders: {}\n" + TREE)
        with pytest.raises(
            RecipeError,
            match=f"{file}:1: unknown key 'encoders'. It belongs under model, as in molecules/conformer_property",
        ):
            find_recipe(str(file))

    @pytest.mark.parametrize("key", FORBIDDEN)
    def test_keys_that_ran_code_are_refused_wherever_they_stand(self, file: Path, key: str) -> None:
        file.write_text(TREE.replace("      width: 16", f"      {key}: https://example.org/x.ckpt"))
        where = f"{file}:7: model.encoders.smiles.{key} may not stand in a recipe"
        with pytest.raises(RecipeError, match=where) as error:
            find_recipe(str(file))
        assert "polyfm fit --resume RUN" in str(error.value)

    def test_what_is_no_yaml_is_told_the_line(self, file: Path) -> None:
        file.write_text("task: finetune\ndata: {class_path: X\nmodel: 3\n")
        with pytest.raises(RecipeError, match=rf"{file}:3: this is not valid YAML"):
            read_yaml(file)
        file.write_text("- a\n- b\n")
        with pytest.raises(RecipeError, match="a recipe is a mapping"):
            read_yaml(file)
        file.write_bytes(b"task: \xff\xfe")
        with pytest.raises(RecipeError, match="not valid YAML"):
            read_yaml(file)

    def test_yaml_cannot_make_objects(self, file: Path) -> None:
        file.write_text("task: !!python/object/apply:os.system ['touch /tmp/never']\n")
        with pytest.raises(RecipeError, match=f"{file}:1: task has the tag !!python/object/apply:os.system. A recipe"):
            read_yaml(file)

    def test_former_names_of_parts_are_read_as_their_present_ones(
        self, file: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(
            "polyfm.shared.training.recipe.ALIASES", {"Stack": "Transformer", "OldTokens": "TextTokens"}
        )
        file.write_text(TREE.replace("Transformer", "Stack").replace("width: 16", "embedder: OldTokens"))
        encoder = find_recipe(str(file)).tree["model"]["encoders"]["smiles"]
        assert encoder["backbone"]["class_path"] == "Transformer"
        assert encoder["embedder"] == "TextTokens"
        file.write_text("data: {init_args: {targets: [Stack]}}\n")
        assert read_yaml(file)["data"]["init_args"]["targets"] == ["Stack"]  # a column

    def test_an_overlay_may_not_change_what_a_recipe_is(self, tmp_path: Path) -> None:
        over = tmp_path / "over.yaml"
        over.write_text("trainer: {max_epochs: 3}\n")
        assert read_overlay(over) == {"trainer": {"max_epochs": 3}}
        over.write_text("sizes: {}\n")
        with pytest.raises(RecipeError, match=f"{over}:1: unknown key 'sizes'"):
            read_overlay(over)
        with pytest.raises(UsageError, match="there is no such file. --config takes a YAML file"):
            read_overlay(tmp_path / "none.yaml")


class TestSizes:
    def test_paper_is_the_tree_itself(self, file: Path) -> None:
        recipe = find_recipe(str(file))
        assert recipe.sizes == ["paper", "small"]
        assert recipe.sized("paper")["model"]["encoders"]["smiles"]["width"] == 16
        assert "sizes" not in recipe.sized("paper")

    def test_another_size_is_laid_on_top(self, file: Path) -> None:
        small = find_recipe(str(file)).sized("small")
        assert small["model"]["encoders"]["smiles"]["width"] == 8
        assert small["model"]["encoders"]["smiles"]["backbone"]["init_args"] == {"depth": 2}
        assert small["model"]["encoders"]["other"]["width"] == 16

    def test_a_size_that_is_not_there_is_refused(self, file: Path) -> None:
        with pytest.raises(UsageError, match="recipe mine has no size 'large'. Choose one of: paper, small"):
            find_recipe(str(file)).sized("large")

    def test_sized_trees_are_copies(self, file: Path) -> None:
        recipe = find_recipe(str(file))
        recipe.sized("paper")["model"]["encoders"].clear()
        recipe.sized("small")["model"]["encoders"].clear()
        assert recipe.sized("paper")["model"]["encoders"]


class TestLocate:
    def test_line_of_a_key(self, file: Path) -> None:
        lines = {("task",): 1, ("model", "encoders", "smiles", "width"): 7, ("sizes", "small", "model"): 12}
        for keys, line in lines.items():
            assert locate(keys, (file, ())) == f"{file}:{line}"

    def test_as_far_down_as_the_file_has_it(self, file: Path) -> None:
        assert locate(("model", "encoders", "smiles", "widht"), (file, ())) == f"{file}:6"
        assert locate(("nowhere",), (file, ())) == f"{file}:1"

    def test_through_an_anchor(self, file: Path) -> None:
        assert locate(("model", "encoders", "other", "width"), (file, ())) == f"{file}:7"

    def test_the_place_that_has_most_of_it_and_of_equals_the_last(self, file: Path) -> None:
        keys = ("model", "encoders", "smiles", "width")
        assert locate(keys, (file, ()), (file, ("sizes", "small"))) == f"{file}:12"
        keys = ("model", "encoders", "smiles", "backbone")
        assert locate(keys, (file, ()), (file, ("sizes", "small"))) == f"{file}:8"
        assert locate(("task",), (file, ()), (file, ("sizes", "small"))) == f"{file}:1"


@pytest.mark.parametrize("path", ["/home/someone/secret plans/x.csv", "x.csv", "/a: b/ü #1.csv"])
def test_a_recipe_that_is_passed_on_says_only_the_name_of_the_file(path: str) -> None:
    given = {"path": path, "batch_size": 8, "ontology": [path, "a.obo"], "aliases": ""}
    tree = {"title": "mine", "data": {"class_path": "Data", "init_args": given}, "task": "x"}
    text = f"# As it was run.\n{yaml.safe_dump(tree, sort_keys=False, allow_unicode=True)}"
    again = shareable(text)
    assert again.startswith("# As it was run.\n")
    given |= {"path": Path(path).name, "ontology": [Path(path).name, "a.obo"]}
    assert yaml.safe_load(again) == tree
    assert shareable(again) == again


@pytest.mark.parametrize("text", ["title: mine", "data: {}", "data: {init_args: {targets: [y]}}", "[1, 2]"])
def test_a_recipe_without_a_path_is_passed_on_as_it_is(text: str) -> None:
    assert shareable(text) == text


@pytest.mark.parametrize("name", recipe_names())
def test_house_rules_of_recipes(name: str) -> None:
    """At most 60 lines, keys in the order of the flow, a comment on top, both sizes."""
    path = RECIPES / f"{name}.yaml"
    text = path.read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 60
    assert text.startswith("# ")
    order = ["title", "task", "paper", "data", "model", "trainer", "checkpoint", "patience", "sizes"]
    keys = list(yaml.safe_load(text))
    assert keys == sorted(keys, key=order.index)
    assert {"title", "task", "data", "model", "sizes"} <= set(keys)
    assert Recipe(name, path, yaml.safe_load(text)).sizes == ["paper", "small"]


@pytest.mark.parametrize(
    ("encoders", "names"),
    [
        (["smiles", "properties"], ["molecules/property", "molecules/property_views"]),
        (["graph", "text", "knowledge"], ["molecules/graph_property"]),
        (["conformer"], ["molecules/conformer_property"]),
        (["nothing"], []),
    ],
)
def test_recipes_that_follow_a_run(encoders: list[str], names: list[str]) -> None:
    assert followers("molecules", encoders) == names
