"""What no recipe may hold: the rules themselves. Whole hostile recipes stand in tests/safety/test_recipes.py."""

from __future__ import annotations

from typing import Any

import pytest
import yaml
from lightning.pytorch import callbacks

from polyfm.shared.training.recipe import RECIPES
from polyfm.shared.training.trust import CALLBACKS, Distrust, storable, vet, vet_text, walk


def test_walk_gives_every_key_with_its_path() -> None:
    found = dict(walk({"a": {"b": [{"c": 1}]}}))
    assert list(found) == [("a",), ("a", "b"), ("a", "b", "0"), ("a", "b", "0", "c")]
    assert found["a", "b", "0", "c"] == 1


def test_aliases_are_counted_as_often_as_they_stand() -> None:
    text = "a: &a [1, 2]\n" + "".join(f"{b}: &{b} [{', '.join([f'*{a}'] * 7)}]\n" for a, b in zip("abcde", "bcdef", strict=True))  # fmt: skip
    vet_text(yaml.compose(text, Loader=yaml.SafeLoader))
    with pytest.raises(Distrust, match="entries once aliases are written out"):
        vet_text(yaml.compose(f"{text}g: [{', '.join(['*f'] * 7)}]", Loader=yaml.SafeLoader))
    vet_text(None)


@pytest.mark.parametrize(
    "tree",
    [
        {"title": "as in https://example.org/paper", "paper": {"identifier": "https://doi.org/x"}},
        {"trainer": {"logger": False, "max_time": "00:00:01:00", "profiler": "simple", "callbacks": None}},
        {"trainer": {"callbacks": [{"class_path": "lightning.pytorch.callbacks.Timer"}, "LearningRateMonitor"]}},
        {"data": {"init_args": {"path": "/data/x.csv", "targets": ["../y"]}}},
        {"sizes": {"small": {"model": {"width": 8}}}},
        {"domain": "molecules"},
    ],
    ids=str,
)
def test_what_is_harmless_passes(tree: dict[str, Any]) -> None:
    vet(tree)


@pytest.mark.parametrize(
    ("tree", "keys"),
    [
        ({"sizes": [1]}, ("sizes",)),
        ({"sizes": {"small": 3}}, ("sizes", "small")),
        ({"sizes": {"small": {"trainer": {"plugins": "x"}}}}, ("sizes", "small", "trainer", "plugins")),
        ({"trainer": {"strategy": {"init_args": {"x": "C:\\..\\x"}}}}, ("trainer", "strategy", "init_args", "x")),
        ({"checkpoint": {"monitor": "~/x"}}, ("checkpoint", "monitor")),
        ({"model": {"a": [{"b": "ftp://x"}]}}, ("model", "a", "0", "b")),
    ],
)
def test_what_is_not_is_named(tree: dict[str, Any], keys: tuple[str, ...]) -> None:
    with pytest.raises(Distrust) as refused:
        vet(tree)
    assert refused.value.keys == keys


def test_of_what_the_user_says_that_is_stored_which_may_be_read_again() -> None:
    trainer = {"max_epochs": 3, "logger": {"class_path": "WandbLogger"}, "callbacks": ["ModelCheckpoint"]}
    assert storable(trainer) == {"max_epochs": 3}


def test_callbacks_that_may_be_named_exist() -> None:
    assert set(CALLBACKS) <= set(callbacks.__all__)


@pytest.mark.parametrize("path", sorted(RECIPES.glob("*/*.yaml")), ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_our_own_recipes_pass(path: Any) -> None:
    text = path.read_text(encoding="utf-8")
    vet_text(yaml.compose(text, Loader=yaml.SafeLoader))
    vet(yaml.safe_load(text))
