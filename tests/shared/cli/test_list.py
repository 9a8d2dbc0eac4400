"""`polyfm list`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from polyfm.shared.cli.list import data_cards, domains
from polyfm.shared.training.recipe import ROOT, recipe_names


def test_every_domain_recipe_and_data_set_is_shown(polyfm: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    shown = polyfm("list")
    assert shown.code == 0
    assert f"Domains: {', '.join(domains())}" in shown.out
    for name in (*recipe_names(), *(card["name"] for card in data_cards())):
        assert name in shown.out
    assert "paper, small" in shown.out


def test_domains_are_the_folders_that_have_data() -> None:
    assert "molecules" in domains()
    assert all((ROOT / "domains" / name / "data.py").is_file() for name in domains())


def test_data_cards_say_what_a_user_must_know() -> None:
    cards = data_cards()
    assert cards
    for card in cards:
        assert {"name", "domain", "rows", "licence", "title"} <= set(card)


def test_it_takes_no_words(polyfm: Callable[..., Any]) -> None:
    assert polyfm("list", "molecules").code == 2
