"""Molecules as pictures: safe in a page, whatever was written."""

from __future__ import annotations

import re

import pytest

from polyfm.domains.molecules.render import card, draw


def test_a_molecule_is_a_picture() -> None:
    picture = draw("c1ccccc1O")
    assert picture.startswith("<svg")
    assert "</svg>" in picture
    assert "width='150px' height='110px'" in picture


@pytest.mark.parametrize("smiles", ["CC(", "", "<script>alert(1)</script>", "C" * 5 + "&<"])
def test_what_is_no_molecule_is_shown_as_text(smiles: str) -> None:
    shown = draw(smiles)
    assert shown.startswith("<code>")
    assert "<script>" not in shown
    assert ("(empty)" in shown) == (smiles == "")


def test_pictures_share_no_id() -> None:
    ids = [set(re.findall(r"\bid=['\"]([^'\"]+)", draw("CCO"))) for _ in range(2)]
    assert not ids[0] & ids[1]


def test_a_card_escapes_its_caption() -> None:
    html = card("CCO", "<b>rank 1</b>", "right")
    assert '<div class="card right">' in html
    assert "&lt;b&gt;rank 1&lt;/b&gt;" in html
