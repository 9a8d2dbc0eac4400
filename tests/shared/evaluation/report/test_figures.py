"""Figures and tables as HTML: escaped, with ids of their own."""

from __future__ import annotations

import re

import numpy as np

from polyfm.shared.evaluation.report.figures import figure, plain, svg, table, text, unique_ids


def test_text_is_escaped_and_numbers_are_short() -> None:
    assert text("<script>alert('x')</script> & more") == (
        "&lt;script&gt;alert(&#x27;x&#x27;)&lt;/script&gt; &amp; more"
    )
    assert [text(value) for value in (0.123456, 12345.6, float("nan"), 7, None)] == [
        "0.1235", "1.235e+04", "–", "7", "None",
    ]  # fmt: skip


def test_a_table_escapes_names_and_cells_and_marks_rows() -> None:
    html = table(["<b>", "x"], [["<i>", 1.5], ["ours", 2]], ["best", "ours"])
    assert "<b>" not in html
    assert "<i>" not in html
    assert '<tr class="best"><td>&lt;i&gt;</td><td class="number">1.5</td></tr>' in html
    assert '<tr class="ours">' in html
    assert "<tr><td>a</td></tr>" in table(["n"], [["a"]])


def drawing(label: str = "x") -> str:
    drawn, ax = figure()
    ax.plot([0, 1], [1, 2], label=label)
    ax.set_xlabel(label)
    ax.legend()
    return svg(drawn)


def test_a_figure_is_inline_svg_without_a_date() -> None:
    picture = drawing()
    assert picture.startswith("<svg")
    assert picture.rstrip().endswith("</svg>")
    assert "<dc:date>" not in picture
    assert "<?xml" not in picture


def test_two_figures_share_no_id_and_each_finds_its_own() -> None:
    first, second = drawing(), drawing()
    ids = [set(re.findall(r'\bid="([^"]+)"', picture)) for picture in (first, second)]
    assert ids[0]
    assert not ids[0] & ids[1]
    for picture, own in zip((first, second), ids, strict=True):
        used = set(re.findall(r'href="#([^"]+)"', picture)) | set(re.findall(r"url\(#([^)]+)\)", picture))
        assert used
        assert used <= own


def test_ids_in_either_kind_of_quotes_are_made_unique() -> None:
    picture = unique_ids("<svg><clipPath id='c'/><g id=\"d\" clip-path='url(#c)'/><use href='#d'/></svg>")
    prefix = re.search(r"id='(p\d+-)c'", picture)[1]  # type: ignore[index]
    assert picture == (
        f"<svg><clipPath id='{prefix}c'/><g id=\"{prefix}d\" clip-path='url(#{prefix}c)'/><use href='#{prefix}d'/></svg>"
    )


def test_names_from_data_are_no_formulas_and_no_markup() -> None:
    picture = drawing(plain(r"IC50 ($\mu$M) <b> $\undefined"))
    assert r"IC50 ($\mu$M) &lt;b&gt; $\undefined" in picture


def test_several_plots_side_by_side() -> None:
    _, axes = figure(columns=3)
    assert np.shape(axes) == (3,)
